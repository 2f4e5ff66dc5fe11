"""Checkpoints: the files that belong to one, and resuming from them."""
