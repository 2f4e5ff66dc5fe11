"""Data set downloads: catalogue, resumable download, safe unpacking."""
