"""Command lines of the commands that are listed in ``dp_basicsr/utils/arguments.py``."""
