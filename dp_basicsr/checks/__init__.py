"""The checks of option files before a run: keys, classes, combinations, files; and the editors' schema."""
