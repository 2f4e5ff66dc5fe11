"""Preparing data: from a folder of HR images to sub-images, their LR and LMDBs, in parallel and never half-written."""
