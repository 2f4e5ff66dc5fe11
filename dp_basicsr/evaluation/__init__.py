"""Evaluation of results: tables, figures and training curves."""
