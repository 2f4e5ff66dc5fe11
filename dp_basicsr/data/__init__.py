"""Data: preparing it (the commands in ``scripts/`` are thin shells over these modules) and reading it.

Importing this package imports neither torch nor basicsr: the preparation's worker processes start fast.
"""
