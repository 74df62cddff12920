"""Operation of a deployed detector: prediction log, feedback, drift and retraining."""
