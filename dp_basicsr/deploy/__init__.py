"""Using a trained network: read it from any form, upscale images with it, hand it on."""
