"""Metrics of a detector on labelled texts."""
