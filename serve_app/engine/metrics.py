"""Counters and histograms of a replica, exported by Ray to Prometheus. Numbers and fixed names only, never a text.

Ray's metrics endpoint of each node (`/metrics` on its metrics export port) has them as `ray_detect_ai_…`, with the
labels that Serve adds (application, deployment, replica), beside Serve's own of requests and latencies.
"""

from __future__ import annotations

from collections.abc import Iterable

from detect_ai.schemas import Verdict

TOKENS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
GAPS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3]


class Telemetry:
    """Keeps nothing: what a service has outside Ray."""

    def answered(self, verdicts: Iterable[Verdict]) -> None:
        """Verdicts were given."""

    def ran(self, tokens: int, seconds: float, waiting: int) -> None:
        """The model read a batch of so many tokens, and so many wait."""

    def refused(self, status: int) -> None:
        """A request was answered with a problem."""

    def compared(self, mine: Verdict, other: Verdict) -> None:
        """A version in the shadow judged a text that was answered by another."""


class RayTelemetry(Telemetry):
    """Counts in the metrics of Ray Serve; made inside a replica."""

    def __init__(self) -> None:
        from ray.serve import metrics

        def counter(name: str, description: str, *tags: str) -> metrics.Counter:
            return metrics.Counter(f"detect_ai_{name}", description, tags)  # type: ignore[arg-type]

        def histogram(name: str, description: str, edges: list[float], *tags: str) -> metrics.Histogram:
            return metrics.Histogram(f"detect_ai_{name}", description, list(edges), tags)  # type: ignore[arg-type]

        self._texts = counter("texts", "Texts judged, by label and version.", "label", "model_version")
        self._refused = counter("refused", "Requests answered with a problem, by status.", "status")
        self._tokens = histogram("batch_tokens", "Padded tokens of a batch of the model.", [float(n) for n in TOKENS])
        self._seconds = histogram("batch_seconds", "Seconds of a batch of the model.", SECONDS)
        self._waiting = metrics.Gauge("detect_ai_waiting_tokens", description="Tokens that wait for the model.")
        self._compared = counter(
            "shadow_texts", "Texts judged in the shadow, by whether both said the same.", "model_version", "agree"
        )
        self._gap = histogram("shadow_gap", "Difference of the two probabilities.", GAPS, "model_version")

    def answered(self, verdicts: Iterable[Verdict]) -> None:
        """Count the verdicts by label."""
        for verdict in verdicts:
            self._texts.inc(tags={"label": verdict.label.value, "model_version": verdict.model_version})

    def ran(self, tokens: int, seconds: float, waiting: int) -> None:
        """Count a batch."""
        self._tokens.observe(tokens)
        self._seconds.observe(seconds)
        self._waiting.set(waiting)

    def refused(self, status: int) -> None:
        """Count a problem."""
        self._refused.inc(tags={"status": str(status)})

    def compared(self, mine: Verdict, other: Verdict) -> None:
        """Count whether two versions agree."""
        agree = str(mine.label == other.label).lower()
        self._compared.inc(tags={"model_version": other.model_version, "agree": agree})
        self._gap.observe(abs(mine.probability - other.probability), tags={"model_version": other.model_version})
