"""Raw scores to probabilities, thresholds and domains."""
