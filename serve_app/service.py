"""Parts of one serving process: engines, access control, prediction log and feedback. Independent of Ray."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detect_ai.core.config import MonitoringConfig, ServeConfig
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import CARD_FILE
from detect_ai.detector.detector import Detector
from detect_ai.monitoring.drift import DriftWatch
from detect_ai.monitoring.feedback import Feedback
from detect_ai.monitoring.prediction_log import PredictionLog
from serve_app.auth.access import AccessControl
from serve_app.auth.api_keys import KeyStore
from serve_app.auth.rate_limit import Limiter
from serve_app.engine.engine import Engine
from serve_app.engine.metrics import Record
from serve_app.engine.versions import Versions


@dataclass(frozen=True)
class Service:
    """The parts of a service, from which `serve_app.api.app.create_app` makes an application."""

    versions: Versions
    access: AccessControl
    feedback: Feedback | None  # None: labels are not accepted


def build_service(
    bundle_of: Callable[[str], AbstractContextManager[Path]],
    version: str,
    config: ServeConfig,
    monitoring: MonitoringConfig,
    storage: Storage,
    keys: str | None,
    limiter: Limiter,
    record: Record,
) -> Service:
    """Load and warm up a version, and the canary of `config` if it names one.

    Args:
        bundle_of: opens the folder of a version; loading verifies every byte of it.
        version: the version to serve.
        config: request limits and model resources.
        monitoring: settings of the prediction log, its audit and drift detection.
        storage: where the log, the labels and the API keys are.
        keys: hashed API keys in addition to those in storage, as JSON; None: requests need no key.
        limiter: enforces rate and concurrency limits.
        record: receives metrics.

    Raises BundleError, RegistryError or ConfigError.
    """
    log = PredictionLog(storage, monitoring, record)
    feedback = Feedback(storage, monitoring) if monitoring.log else None

    def engine(name: str) -> Engine:
        with bundle_of(name) as folder:
            detector = Detector.load(folder, "cuda" if config.use_gpu else "cpu", config.batch_tokens)
            card = folder / CARD_FILE
            text = card.read_text(encoding="utf-8") if card.exists() else ""
        loaded = Engine(detector, config, record, text, log if monitoring.log else None)
        loaded.abstain_domains = frozenset(config.abstain_domains)
        loaded.warm_up()
        return loaded

    canary = engine(config.canary) if config.canary else None
    versions = Versions(engine(version), canary, config.canary_fraction)
    if monitoring.log:
        log.observe = DriftWatch(storage, versions.main.detector.spec, monitoring.drift, record).add
    else:
        log.start()  # deletes what an earlier log has kept
    access = AccessControl(
        limiter,
        config.tokens_per_minute,
        config.max_concurrent_per_key,
        None if keys is None else partial(KeyStore(storage, keys).read, strict=False),
    )
    return Service(versions, access, feedback)
