"""The training loop and its parts: signals, progress, random state, lock, dry run."""
