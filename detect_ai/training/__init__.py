"""Training, from shards to checkpoints: Ray Train, Ray Tune and the training loop."""
