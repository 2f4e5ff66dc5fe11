"""Data: reading it (``stream``), preparing it (``preparation``), fetching it (``downloads``), MATLAB's ``imresize``.

Importing this package imports neither torch nor basicsr: the preparation's worker processes start fast.
"""
