"""Several processes: start, process group, collectives."""
