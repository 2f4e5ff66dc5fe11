"""Prepare training data in parallel: from a folder of HR images to sub-images, their LR and LMDBs."""
