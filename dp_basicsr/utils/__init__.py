"""What several rooms use: atomic writes, safe loading, tiles, staging, process pool, console."""
