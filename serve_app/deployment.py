"""Ray Serve application: one deployment that accepts HTTP and runs the model in the same process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import metrics
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig
from ray.serve.schema import LoggingConfig

from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from serve_app.api.app import create_app
from serve_app.auth.rate_actor import connect_limiter
from serve_app.autoscaling import DEMAND, scale_on_demand
from serve_app.desired_state import State
from serve_app.engine.metrics import METRICS, SECONDS, Metric, Record
from serve_app.service import build_service

DEPLOYMENT = "Detector"
TARGET_ONGOING_REQUESTS = 16  # per replica
# Per replica, far above the target: admission control is inside the replica.
MAX_ONGOING_REQUESTS = 256
MAX_QUEUED_REQUESTS = 128


@serve.ingress()
class Replica:
    """One process that serves requests with one version of the model, and optionally a canary.

    `storage_root` is absolute, because replicas run in another directory. The version of `state` is pinned: it does not
    follow the champion.
    """

    def __init__(self, state: State, storage_root: str) -> None:
        config, storage = state.sections["serve"], Storage(storage_root)
        registry, monitoring = Registry(storage), state.sections["monitoring"]
        service = build_service(
            registry.folder,
            state.version,
            config,
            monitoring,
            storage,
            state.keys,
            connect_limiter(),
            ray_metrics(),
        )
        self.versions, self.access, self.feedback = service.versions, service.access, service.feedback

    def reconfigure(self, settings: dict[str, list[str]]) -> None:
        """Apply settings that need no restart; Serve calls this after the start and when they change."""
        for engine in self.versions.engines:
            engine.abstain_domains = frozenset(settings["abstain_domains"])

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.versions, self.access, self.feedback)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics for the autoscaling policy; Serve calls this periodically, on the event loop."""
        return {DEMAND: sum(engine.batcher.demand() for engine in self.versions.engines)}

    def check_health(self) -> None:
        """Raise if the deployed version hangs, so that Serve replaces this replica."""
        if not self.versions.main.batcher.alive:
            raise RuntimeError("the batcher has stopped")


def build(state: State, storage_root: str, runtime_env: dict[str, Any]) -> serve.Application:
    """The application of a state; `runtime_env` is the runtime environment of its replicas.

    Replicas of an earlier state with the same `replicas` keep running and apply the new `serve.abstain_domains`.
    """
    config = state.sections["serve"]
    needs = config.replica_resources
    resources: dict[str, Any] = {"num_cpus": needs.pop("CPU", 0), "num_gpus": needs.pop("GPU", 0)}
    if memory := needs.pop("memory", 0):
        resources["memory"] = memory
    if needs:  # the custom resource
        resources["resources"] = needs
    deployment = serve.deployment(
        name=DEPLOYMENT,
        user_config={"abstain_domains": config.abstain_domains},
        ray_actor_options={**resources, "runtime_env": runtime_env},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        backpressure_config=BackpressureConfig(retry_after_s=1),
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=TARGET_ONGOING_REQUESTS,
            upscale_delay_s=5.0,
            downscale_delay_s=config.downscale_delay_s,
            look_back_period_s=12.0,  # replicas report every 10 seconds
            policy=AutoscalingPolicy(policy_function=scale_on_demand),
        ),
        graceful_shutdown_wait_loop_s=1,
        # The timeout of requests in flight, plus time to send their responses.
        graceful_shutdown_timeout_s=config.request_timeout_s + 10,
        max_surge_percent=100,  # the old version serves until the new one is ready, also with one replica
        max_constructor_retry_count=2,
        # The application has an access log of its own.
        logging_config=LoggingConfig(encoding="JSON", enable_access_log=False),
    )
    replica = deployment(Replica)
    if state.replicas:  # without one, Serve gives every deployment a new version, which restarts all replicas
        replica = replica.options(version=state.replicas, _internal=True)
    return replica.bind(state, storage_root)


def ray_metrics() -> Record:
    """Create Ray Serve's metrics; call it inside a replica."""

    def create(name: str, metric: Metric) -> Callable[..., None]:
        labels: Any = metric.labels  # Ray's type hint is a tuple with one element
        given = (f"detect_ai_{name}", metric.description)
        if metric.kind == "histogram":
            return metrics.Histogram(*given, list(SECONDS), labels).observe
        return metrics.Counter(*given, labels).inc if metric.kind == "counter" else metrics.Gauge(*given, labels).set

    created = {name: create(name, metric) for name, metric in METRICS.items()}
    counters = {name for name, metric in METRICS.items() if metric.kind == "counter"}

    def record(metric: str, value: float = 1, **labels: str) -> None:
        if value or metric not in counters:  # Ray refuses to add 0
            created[metric](value, tags=labels)

    return record
