"""What a run needs besides its model and data: signals, progress, random state, lock, dry run."""
