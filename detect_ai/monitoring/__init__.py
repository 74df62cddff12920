"""Operation of a deployed detector: log of predictions, feedback, drift and retraining."""
