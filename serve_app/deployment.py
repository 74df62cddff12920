"""The Ray Serve application: one deployment that takes HTTP and runs the model, without a hop between them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from detect_ai.core.config import ServeConfig
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import CARD_FILE
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from serve_app.auth.access import AccessControl
from serve_app.auth.api_keys import KeyStore
from serve_app.auth.rate_limit import connect_limiter

APP = "detect_ai"
DEPLOYMENT = "Detector"
LOOK_BACK_S = 12.0  # of the load that autoscaling goes by; Serve measures every 10 seconds
WARM_UP_WORDS = (8, 100, 1000)
MAX_CONCURRENT_PER_KEY = 32


@serve.ingress()
class Replica:
    """One process that answers requests with one version of the model.

    Args:
        config: of the service.
        storage_root: where the registry lies.
        version: of the bundle, pinned: a move of the champion changes nothing here.
        keys: hashed API keys of the environment, as JSON, beside those of the file; None: everybody may ask.
    """

    def __init__(self, config: ServeConfig, storage_root: str, version: str, keys: str | None) -> None:
        from serve_app.engine.engine import Service
        from serve_app.engine.metrics import RayTelemetry, Telemetry
        from serve_app.engine.versions import Traffic

        def lanes(detector: Detector) -> int:
            return config.threads if detector.backend.has_lanes else 1

        main = load(config, storage_root, version)
        model = ThreadPoolExecutor(lanes(main[0]), "model")  # of all versions: no more batches at once than that

        def service(found: tuple[Detector, str], telemetry: Telemetry) -> Service:
            detector, card = found
            model.submit(warm_up, detector, config.threads).result()
            return Service(detector, config, model, telemetry, card, lanes(detector))

        def other(name: str, telemetry: Telemetry) -> Service | None:
            return service(load(config, storage_root, name), telemetry) if name else None

        self.telemetry = RayTelemetry()
        self.traffic = Traffic(
            service(main, self.telemetry),
            other(config.canary, self.telemetry),
            config.canary_share,
            other(config.shadow, Telemetry()),  # it answers nobody
            self.telemetry,
        )
        self.access = AccessControl(
            connect_limiter(),
            config.rate_per_minute,
            MAX_CONCURRENT_PER_KEY,
            None if keys is None else KeyStore(Storage(storage_root), keys).read,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        from serve_app.api.app import create_app

        return create_app(self.traffic, self.access, self.telemetry)

    def check_health(self) -> None:
        """Ask Serve for another replica when this one's batches have stopped."""
        if not self.traffic.alive:
            raise RuntimeError("the batcher has stopped")


def load(config: ServeConfig, storage_root: str, version: str) -> tuple[Detector, str]:
    """The detector of a version, every byte of it checked, and its model card, empty where there is none."""
    device = "cuda" if config.use_gpu else "cpu"
    with Registry(Storage(storage_root)).folder(version) as folder:
        card = folder / CARD_FILE
        detector = Detector.load(folder, device, config.precision, config.batch_tokens)
        return detector, card.read_text(encoding="utf-8") if card.exists() else ""


def warm_up(detector: Detector, threads: int) -> None:
    """Run texts of several lengths, so that the first request finds kernels and memory ready."""
    import torch

    torch.set_num_threads(threads)
    for words in WARM_UP_WORDS:
        detector.detect([" ".join(["word"] * words)])


def build(
    config: ServeConfig,
    storage_root: str,
    version: str,
    runtime_env: dict[str, Any] | None = None,
    keys: str | None = None,
) -> serve.Application:
    """The application that serves one version.

    Args:
        config: of the service.
        storage_root: an absolute path or a URI: replicas run in another folder.
        version: of the bundle in the registry.
        runtime_env: of the replicas; that of the job when None.
        keys: hashed API keys of the environment, as JSON; None: everybody may ask.
    """
    actor: dict[str, Any] = {"num_cpus": config.cpus_per_replica, "num_gpus": int(config.use_gpu)}
    if runtime_env is not None:
        actor["runtime_env"] = runtime_env
    deployment = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options=actor,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config=BackpressureConfig(retry_after_s=1),
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=config.target_ongoing_requests,
            upscale_delay_s=config.upscale_delay_s,
            downscale_delay_s=config.downscale_delay_s,
            look_back_period_s=LOOK_BACK_S,
        ),
        graceful_shutdown_wait_loop_s=1,
        # What is in flight has its own bound; the rest is time to answer.
        graceful_shutdown_timeout_s=config.request_timeout_s + 10,
        max_surge_percent=100,  # the old version answers until the new one is ready, also with one replica
        max_constructor_retry_count=2,
        # Serve's own proxy writes one line a request already.
        logging_config=LoggingConfig(enable_access_log=os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"),
    )
    return deployment(Replica).bind(config, storage_root, version, keys)
