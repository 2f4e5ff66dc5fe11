"""Checkpoints: which files belong together, and how to resume from them."""
