"""Prometheus metrics of a service. Numbers and fixed names only, never text or client addresses.

On a cluster Ray's metrics endpoint of each node (`/metrics` on its metrics export port) serves them as
`ray_detect_ai_…`, with the labels that Serve adds (application, deployment, replica). A call costs 2 to 3 µs. A
one-process service exports them itself, as `detect_ai_…`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SHORT_TOKENS = 512  # requests of at most this many tokens have the size `short`, others `long`
Record = Callable[..., None]  # records a value (default: 1) of a metric by name, with its labels


@dataclass(frozen=True)
class Metric:
    """A metric: its kind, its labels, and what it measures. Histograms are in seconds."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    description: str


VERSION = ("model_version",)
METRICS = {
    "requests": Metric("counter", ("route", "status"), "Requests; 499: the client disconnected"),
    "problems": Metric("counter", ("reason",), "Refused and failed requests; `canary`: the deployed version answered"),
    "request_seconds": Metric(
        "histogram", ("phase", "size", *VERSION), "Seconds of a request: read, wait, model, respond, and their total"
    ),
    "texts": Metric("counter", ("label", "nearest_domain", *VERSION), "Verdicts"),
    "abstentions": Metric("counter", ("reason", *VERSION), "Reasons of `uncertain` verdicts"),
    "tampered_texts": Metric("counter", ("kind",), "Texts with removed or replaced characters"),
    "files": Metric("counter", ("kind", "result"), "Uploaded files; result: `read`, or why there is no text"),
    "key_requests": Metric("counter", ("key",), "Admitted requests for verdicts, by id of the API key"),
    "key_tokens": Metric("counter", ("key",), "Tokens that the model read, by id of the API key"),
    "windows": Metric("counter", VERSION, "Windows that were scored"),
    "batch_tokens": Metric("counter", ("kind",), "Tokens in batches: `text` or `padding`"),
    "batch_seconds": Metric("histogram", VERSION, "Seconds of a batch in the model"),
    "waiting_tokens": Metric("gauge", VERSION, "Tokens that wait for the model"),
    "loaded": Metric("gauge", ("role", *VERSION), "1 for each version that a replica has loaded: `main` or `canary`"),
    "log_waiting": Metric("gauge", ("log",), "Rows of the prediction log that are not written yet"),
    "log_dropped": Metric("gauge", ("log",), "Rows that a replica has dropped: storage or the row failed"),
    "log_errors": Metric("gauge", ("step",), "Errors of a replica's log by step: a log, `retention` or `drift`"),
    "log_age_seconds": Metric("gauge", (), "Seconds since all steps of the prediction log succeeded"),
    "drift_p_value": Metric("gauge", ("signal",), "How often a window of texts without drift differs as much"),
    "drift_alarm": Metric("gauge", ("signal",), "1 if the last window of a replica has changed"),
    "accusation_budget_spent": Metric("gauge", VERSION, "Evidence that the target is exceeded on humans; 1: proven"),
    "keys_age_seconds": Metric("gauge", (), "Seconds since API keys were read; 0 without keys"),
}


def discard(metric: str, value: float = 1, **labels: str) -> None:
    """Discard a metric."""


def start_exporter(port: int) -> Record:
    """Create metrics of this process and serve them at `/metrics` on a loopback port."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

    registry = CollectorRegistry()

    def create(name: str, metric: Metric) -> Callable[..., None]:
        given = (f"detect_ai_{name}", metric.description, metric.labels)
        if metric.kind == "histogram":
            histogram = Histogram(*given, buckets=SECONDS, registry=registry)
            return lambda value, **labels: (histogram.labels(**labels) if labels else histogram).observe(value)
        if metric.kind == "counter":
            counter = Counter(*given, registry=registry)
            return lambda value, **labels: (counter.labels(**labels) if labels else counter).inc(value)
        gauge = Gauge(*given, registry=registry)
        return lambda value, **labels: (gauge.labels(**labels) if labels else gauge).set(value)

    created = {name: create(name, metric) for name, metric in METRICS.items()}

    def record(metric: str, value: float = 1, **labels: str) -> None:
        created[metric](value, **labels)

    start_http_server(port, "127.0.0.1", registry)
    return record
