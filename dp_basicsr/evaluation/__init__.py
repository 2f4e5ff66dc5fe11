"""Measuring images and showing what was measured: tables, figures, curves and the report."""
