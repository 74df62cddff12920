"""From texts to a served champion on an object store where 20% of calls fail."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from detect_ai.core import audit_log
from detect_ai.core.config import Config
from detect_ai.core.job import run_stage
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.registry import Registry
from detect_ai.detector.score import score
from detect_ai.detector.verdict_table import Verdicts
from serve_app.auth.api_keys import KeyStore, create_key
from serve_app.deploy import deploy, stop
from tests.fixtures import faults, gcs
from tests.fixtures.waiting import wait_for
from tests.integration.runs import LOOP, object_store_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
OUTAGE_S = 60
TEXT = "The council met by the old bridge. " * 5


@pytest.fixture(scope="module")
def through(gcs_bucket: str) -> Iterator[tuple[str, Any]]:
    with faults.faulty(gcs.under(gcs_bucket, "faulty"), stall_s=30) as (uri, proxy):
        yield uri, proxy


@pytest.fixture(scope="module")
def config(through: tuple[str, Any], encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = object_store_config(encoder, tmp_path_factory.mktemp("faulty"), through[0])
    config.serve.port, config.serve.max_replicas, config.serve.cpus_per_replica = free_port(), 1, 1
    config.monitoring.log = True
    return config


@pytest.fixture(scope="module")
def results(config: Config, through: tuple[str, Any]) -> Iterator[dict[str, Any]]:
    """The results of all stages and of a deployment, all with faults; the service continues without them."""
    storage, proxy, results = Storage(config.storage.root), through[1], {}
    proxy.draw(0.2)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: stop(app=True, serve_too=True))
        for name, stage in {**LOOP, "score": score}.items():
            if name == "score":
                config = config.model_copy(update={"data": config.corpus.sources[0].path})
            started, before = time.monotonic(), len(proxy.calls())
            results[name] = run_stage(name, stage, config, storage)
            print_stage(name, started, proxy.calls()[before:])
        started, before = time.monotonic(), len(proxy.calls())
        KeyStore(storage).put(create_key("owner")[1])
        results["deploy"] = deploy(config, storage)
        print_stage("deploy", started, proxy.calls()[before:])
        proxy.draw(0)
        for (operation, fault), (injected, repeated) in proxy.outcomes().items():
            print(f"| {operation} | {fault} | {injected} | {repeated} |")
        yield results


def print_stage(name: str, started: float, calls: list[faults.Call]) -> None:
    injected = sum(call.fault is not None for call in calls)
    print(f"{name}: {len(calls)} calls, {injected} faults, {time.monotonic() - started:.0f} s")


def test_every_kind_of_fault_was_injected(results: dict[str, Any], through: tuple[str, Any]) -> None:
    kinds = {(operation, fault) for operation, names in faults.FAULTS.items() for fault in names}
    assert set(through[1].outcomes()) == kinds


def test_everything_is_whole(results: dict[str, Any], gcs_bucket: str) -> None:
    storage = Storage(gcs.under(gcs_bucket, "faulty"))
    Corpus.open(storage, results["prepare"]["corpus"]).verify()
    state = Registry(storage).verify()
    assert (state["champion"], state["problems"]) == (results["publish"]["champion"], [])
    assert len(Verdicts.read(storage, results["score"]["out"].partition("?")[0].partition("faulty/")[2]).rows) == 160
    assert [event["action"] for event in audit_log.events(storage)] == ["publish", "deploy"]


def test_replica_outlasts_an_outage(results: dict[str, Any], config: Config, through: tuple[str, Any]) -> None:
    url, proxy = results["deploy"]["url"], through[1]
    token, key = create_key("admin", ["admin", "detect"])
    KeyStore(Storage(config.storage.root)).put(key)

    def answers() -> bool:
        headers = {"Authorization": f"Bearer {token}"}
        with contextlib.suppress(httpx.HTTPError):
            return httpx.post(f"{url}/v1/detect", json={"text": TEXT}, headers=headers, timeout=5).status_code == 200
        return False

    wait_for(answers, 60)
    pid = httpx.get(f"{url}/v1/admin/status", headers={"Authorization": f"Bearer {token}"}).json()["pid"]
    proxy.reset()
    proxy.down_for(OUTAGE_S)
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not answers(), 30)
    assert wait_for(answers, 300) > 0
    seconds = time.monotonic() - started
    print(f"outage of {OUTAGE_S} s: {len(proxy.calls())} calls, the service answers after {seconds:.0f} s")
    assert seconds > OUTAGE_S  # the replica needed the store
