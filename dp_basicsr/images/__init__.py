"""Image files: which there are, how they are opened, read and written."""
