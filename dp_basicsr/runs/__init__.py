"""The bodies of train.py and test.py: start, refuse, build or restore, train; and ``--check``."""
