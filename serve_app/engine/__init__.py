"""The inference engine: batching, versions and metrics."""
