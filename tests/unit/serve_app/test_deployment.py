"""The start of a replica with and without a prediction log."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from detect_ai.core.compose import load_config
from detect_ai.core.config import MonitoringConfig, ServeConfig
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from serve_app import deployment
from serve_app.auth.rate_limit import Limiter
from serve_app.desired_state import State
from serve_app.engine.metrics import discard

Start = Callable[[MonitoringConfig], deployment.Replica]


@pytest.fixture
def start(storage: Storage, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(deployment, "ray_metrics", lambda: discard)
    monkeypatch.setattr(deployment, "connect_limiter", lambda: Limiter(AsyncMock()))
    version = Registry(storage).add(tiny_bundle)
    plain = deployment.Replica.__mro__[1]  # without Serve's wrapper

    def started(monitoring: MonitoringConfig) -> deployment.Replica:
        settings = {"settings": ServeConfig().model_dump(), "monitoring": monitoring.model_dump()}
        replica: deployment.Replica = plain(State(status="live", version=version, keys=None, **settings), storage.root)
        return replica

    return started


@pytest.mark.parametrize(
    ("serve", "options"),
    [("local", (1, None, None)), ("cluster", (0, {"serve": 4}, 8 * 2**30))],
)
def test_replicas_on_a_cluster_take_serving_nodes_only(serve: str, options: tuple[Any, ...]) -> None:
    settings = load_config([f"serve={serve}"]).serve.model_dump()
    app = deployment.build(State(status="live", version="v1", settings=settings, keys=None), "/r", {})
    given = app._bound_deployment.ray_actor_options
    assert (given["num_cpus"], given.get("resources"), given.get("memory")) == options


def test_texts_of_an_earlier_log_are_deleted_without_a_log(storage: Storage, start: Start) -> None:
    storage.write_bytes("monitoring/texts/day=2026-01-01/w-000001.parquet", b"")
    replica = start(MonitoringConfig())
    deadline = time.monotonic() + 10
    while storage.list("monitoring/texts"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert replica.versions.main.log is None
    assert storage.list("monitoring") == ["texts"]


def test_a_replica_starts_on_a_full_disk(storage: Storage, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "create", full)
    replica = start(MonitoringConfig(log=True, feedback_url="sqlite://"))
    assert replica.versions.main.log is not None
