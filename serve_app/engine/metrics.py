"""Prometheus metrics of a replica, exported by Ray. Numbers and fixed names only, never text.

Ray's metrics endpoint of each node (`/metrics` on its metrics export port) serves them as `ray_detect_ai_…`, with the
labels that Serve adds (application, deployment, replica).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detect_ai.schemas import Verdict

TOKENS = [64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0]
SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]


class Telemetry:
    """Metrics outside Ray: none."""

    def answered(self, verdicts: Iterable[Verdict]) -> None:
        """Count verdicts."""

    def batch(self, tokens: int, seconds: float) -> None:
        """Record a batch of the model."""

    def waiting(self, model_version: str, tokens: int) -> None:
        """Record the tokens that wait for a version."""

    def refused(self, status: int) -> None:
        """Count a request that was answered with a problem; 499: the client disconnected."""


class RayTelemetry(Telemetry):
    """Metrics of Ray Serve; created inside a replica."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Gauge, Histogram

        labels: Any = ("label", "model_version")  # Ray annotates a tuple of one
        self._texts = Counter("detect_ai_texts", "Verdicts by label and version.", labels)
        self._refused = Counter(
            "detect_ai_refused", "Requests without a verdict, by status; 499: disconnected.", ("status",)
        )
        self._tokens = Histogram("detect_ai_batch_tokens", "Padded tokens of a batch.", TOKENS)
        self._seconds = Histogram("detect_ai_batch_seconds", "Seconds of a batch in the model.", SECONDS)
        self._waiting = Gauge("detect_ai_waiting_tokens", "Tokens that wait for the model.", ("model_version",))

    def answered(self, verdicts: Iterable[Verdict]) -> None:
        """Count verdicts by label."""
        for verdict in verdicts:
            self._texts.inc(tags={"label": verdict.label.value, "model_version": verdict.model_version})

    def batch(self, tokens: int, seconds: float) -> None:
        """Record a batch of the model."""
        self._tokens.observe(tokens)
        self._seconds.observe(seconds)

    def waiting(self, model_version: str, tokens: int) -> None:
        """Record the tokens that wait for a version."""
        self._waiting.set(tokens, tags={"model_version": model_version})

    def refused(self, status: int) -> None:
        """Count a request that was answered with a problem."""
        self._refused.inc(tags={"status": str(status)})
