"""Distributed training: launchers, process group, collectives."""
