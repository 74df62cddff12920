"""The service under load: killed replicas, updates, overload, autoscaling, memory."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray.serve._private.common import ReplicaState

from detect_ai.core.config import Config, ServeConfig
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from serve_app import deployment
from serve_app.deploy import APP, deploy, rollback_service, stop
from serve_app.deployment import DEPLOYMENT
from tests.e2e.load_generator import REPLICA, Load, actors, wait_for
from tests.fixtures import tiny_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SOAK_S = 600


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@contextmanager
def serving(encoder: Path, store: Storage, **settings: object) -> Iterator[tuple[str, Config]]:
    """The service with these settings."""
    config = tiny_models.config(encoder, Path(store.root))
    config.serve = ServeConfig(port=free_port(), cpus_per_replica=1, threads_per_replica=1).model_copy(update=settings)
    try:
        yield str(deploy(config, store)["url"]), config
    finally:
        stop(app=True, serve_too=True)


def running() -> int:
    """Number of running replicas."""
    states = serve.status().applications[APP].deployments[DEPLOYMENT].replica_states
    return states.get(ReplicaState.RUNNING, 0)


def test_a_killed_replica_costs_one_retry(encoder: Path, store: Storage, tiny_bundle: Path) -> None:
    with serving(encoder, store, min_replicas=2, max_replicas=2) as (url, _):
        load = Load(url, Detector.load(tiny_bundle), retries=1)

        async def scenario() -> None:
            async with load.during(clients=8) as seen:
                for count in (3_000, 6_000):
                    await wait_for(lambda: len(seen.statuses) >= count, 300)  # noqa: B023 - awaited at once
                    actors()[0].kill()
                await wait_for(lambda: len(seen.statuses) >= 10_000, 300)
                await wait_for(lambda: running() == 2, 60)

        asyncio.run(scenario())
        seen = load.seen
        succeeded = seen.statuses.count(200) / len(seen.statuses)
        print(f"{len(seen.statuses)} requests, {succeeded:.4%} succeeded, {len(seen.wrong)} wrong")
        assert len(seen.statuses) >= 10_000
        assert succeeded >= 0.999
        assert seen.wrong == []


def test_a_rolling_update_fails_no_request(encoder: Path, store: Storage, tiny_bundle: Path, tmp_path: Path) -> None:
    registry = Registry(store)
    before = registry.require_champion()
    tiny_models.make_bundle(tmp_path / "next", encoder, seed=1)
    after = registry.add(tmp_path / "next")
    with serving(encoder, store, min_replicas=2, max_replicas=2) as (url, config):
        load = Load(url, Detector.load(tiny_bundle), Detector.load(tmp_path / "next"))

        async def scenario() -> None:
            async with load.during(clients=8) as seen:
                for version in (after, before, after):
                    config.serve.version = version
                    await asyncio.to_thread(deploy, config, store)
                    at = len(seen.versions)
                    await wait_for(lambda: len(seen.versions) >= at + 300, 60)  # noqa: B023 - awaited at once

        asyncio.run(scenario())
        assert set(load.seen.statuses) == {200}
        assert load.seen.wrong == []
        assert set(load.seen.versions) == {before, after}
        assert set(load.seen.versions[-50:]) == {after}


def test_a_canary_is_promoted_and_rolled_back(
    encoder: Path, store: Storage, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(store)
    before = registry.require_champion()
    tiny_models.make_bundle(tmp_path / "next", encoder, seed=2)
    after = registry.add(tmp_path / "next")
    with serving(encoder, store, max_replicas=1, canary=after, canary_fraction=0.5) as (url, config):
        load = Load(url, Detector.load(tiny_bundle), Detector.load(tmp_path / "next"))
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)

        def move() -> None:
            registry.set_champion(after)
            config.serve.canary = ""
            deploy(config, store)

        async def scenario() -> None:
            async with load.during(clients=4) as seen:
                await wait_for(lambda: len(seen.versions) >= 300, 60)
                for act, answers in ((move, after), (partial(rollback_service, config, store), before)):
                    shared = len(seen.versions)
                    await asyncio.to_thread(act)
                    at = len(seen.versions)
                    await wait_for(lambda: len(seen.versions) >= at + 300, 60)  # noqa: B023 - awaited at once
                    assert set(seen.versions[-50:]) == {answers}
                    if act is move:
                        assert 0.3 < seen.versions[:shared].count(after) / shared < 0.7

        asyncio.run(scenario())
        assert registry.require_champion() == before
        assert set(load.seen.statuses) == {200}
        assert load.seen.wrong == []


def test_overload_is_refused_quickly(tmp_path: Path) -> None:
    # As large as MiniLM: with the tiny encoder, HTTP takes most of the time.
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    encoder, storage = tiny_models.make_encoder(tmp_path / "encoder", **sizes), Storage(str(tmp_path / "store"))
    tiny_models.make_bundle(tmp_path / "bundle", encoder)
    Registry(storage).set_champion(Registry(storage).add(tmp_path / "bundle"))
    detector = Detector.load(tmp_path / "bundle")
    settings = {"max_replicas": 1, "batch_tokens": 2048, "max_wait_s": 0.5}
    with serving(encoder, storage, **settings) as (url, _):
        load, ends = Load(url, detector, words=(200, 400)), time.monotonic() + 30
        # Four such texts fill a batch.
        full = asyncio.run(load.run(4, lambda: time.monotonic() > ends))
        rate = len(full.seconds) / 30
        over = asyncio.run(Load(url, detector, words=(200, 400)).offer(4 * rate, 30))
    unloaded, loaded = np.quantile(full.seconds, 0.99), np.quantile(over.seconds, 0.99)
    refused = np.quantile(over.refused, 0.95)
    print(f"{rate:.1f} requests a second; p99 {unloaded:.3f} s at a full batch, {loaded:.3f} s at 4 times that rate")
    print(f"{len(over.refused)} of {len(over.statuses)} refused, in {1000 * refused:.1f} ms (p95)")
    assert set(full.statuses) == {200}
    assert set(over.statuses) == {200, 503}
    assert loaded <= 2 * unloaded
    assert refused < 0.05


def test_replicas_follow_the_load(
    encoder: Path, store: Storage, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"min_replicas": 0, "max_replicas": 3, "downscale_delay_s": 5}
    monkeypatch.setattr(deployment, "TARGET_ONGOING_REQUESTS", 2)
    with serving(encoder, store, **settings) as (url, _):
        load = Load(url, Detector.load(tiny_bundle))

        async def scenario() -> None:
            async with load.during(clients=16):
                await wait_for(lambda: running() == 3, 120)
            await wait_for(lambda: running() == 0, 120)
            response = await asyncio.to_thread(httpx.get, f"{url}/readyz", timeout=60)  # starts a replica again
            assert response.status_code == 200
            assert running() >= 1

        asyncio.run(scenario())
        assert set(load.seen.statuses) == {200}
        assert load.seen.wrong == []


def test_refused_requests_add_replicas(
    encoder: Path, store: Storage, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The number of ongoing requests stays far below the target, because most are rejected.
    settings = {"max_replicas": 3, "max_wait_s": 0.1, "batch_tokens": 2048}
    monkeypatch.setattr(deployment, "TARGET_ONGOING_REQUESTS", 100)
    with serving(encoder, store, **settings) as (url, _):
        load = Load(url, Detector.load(tiny_bundle), words=(3000, 4000))

        async def scenario() -> None:
            async with load.during(clients=16):
                await wait_for(lambda: running() == 3, 120)

        asyncio.run(scenario())
        assert set(load.seen.statuses) == {200, 503}
        assert load.seen.wrong == []


def test_memory_stays_constant(encoder: Path, store: Storage, tiny_bundle: Path) -> None:
    # oneDNN keeps code for every number of tokens in a batch: with small batches it soon has all of them.
    with serving(encoder, store, max_replicas=1, batch_tokens=512) as (url, _):
        load = Load(url, Detector.load(tiny_bundle), words=(20, 600))
        names = (REPLICA, "ray::ProxyActor", "ray::ServeController")
        memory: dict[str, list[int]] = {name: [] for name in names}

        async def ask_for_odd_texts() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                while True:
                    text = " ".join(uuid4().hex * random.randint(1, 20) for _ in range(10))
                    (await client.post("/v1/detect", json={"text": text})).raise_for_status()

        async def scenario() -> None:
            processes = {name: actors(name)[0] for name in names if actors(name)}
            odd = asyncio.create_task(ask_for_odd_texts())
            async with load.during(clients=8):
                for _ in range(20):
                    await asyncio.sleep(SOAK_S / 20)
                    for name, process in processes.items():
                        memory[name].append(process.memory_info().rss)
            odd.cancel()

        asyncio.run(scenario())
        assert set(load.seen.statuses) == {200}
        for name, rss in memory.items():
            print(f"{len(load.seen.statuses)} requests; {name}: resident megabytes {[round(n / 1e6) for n in rss]}")
        for rss in filter(None, memory.values()):
            settled, last = rss[4:10], rss[-6:]
            assert sum(last) / len(last) <= 1.02 * sum(settled) / len(settled) + 2e6
        assert memory[REPLICA]
