"""Measurements of speed, memory and cost; not in the wheel."""
