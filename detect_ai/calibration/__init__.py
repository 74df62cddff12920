"""Scores to probabilities and thresholds."""
