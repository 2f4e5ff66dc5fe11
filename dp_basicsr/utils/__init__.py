"""Helpers shared by several packages: atomic writes, safe loading, tiles, staging, process pool, console."""
