"""Prometheus metrics of a replica, exported by Ray. Numbers and fixed names only, never text.

Ray's metrics endpoint of each node (`/metrics` on its metrics export port) serves them as `ray_detect_ai_…`, with the
labels that Serve adds (application, deployment, replica).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TOKENS = [64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0]
SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
Record = Callable[..., None]  # records a value (default: 1) of a metric by name, with its labels


def discard(metric: str, value: float = 1, **labels: str) -> None:
    """Outside Ray there are no metrics."""


def ray_metrics() -> Record:
    """Metrics of Ray Serve; called inside a replica."""
    from ray.serve.metrics import Counter, Gauge, Histogram

    of_text: Any = ("label", "model_version")  # Ray annotates a tuple of one
    refused = "Requests without a verdict, by status; 499: disconnected."
    waiting = "Tokens that wait for the model."
    metrics: dict[str, Callable[..., None]] = {
        "texts": Counter("detect_ai_texts", "Verdicts by label and version.", of_text).inc,
        "refused": Counter("detect_ai_refused", refused, ("status",)).inc,
        "batch_tokens": Histogram("detect_ai_batch_tokens", "Padded tokens of a batch.", TOKENS).observe,
        "batch_seconds": Histogram("detect_ai_batch_seconds", "Seconds of a batch in the model.", SECONDS).observe,
        "waiting_tokens": Gauge("detect_ai_waiting_tokens", waiting, ("model_version",)).set,
    }

    def record(metric: str, value: float = 1, **labels: str) -> None:
        metrics[metric](value, tags=labels)

    return record
