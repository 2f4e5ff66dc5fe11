"""Training and test data: reading (``stream``), preparation, downloads, and MATLAB's ``imresize``.

Importing this package does not import torch or basicsr, so the worker processes of the preparation start fast.
"""
