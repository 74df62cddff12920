"""Deployments, rollbacks and pauses by their commands, on one service with its own settings."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from detect_ai.core.local_cluster import LocalCluster
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from serve_app.auth.api_keys import KeyStore, Scope, create_key
from serve_app.desired_state import DesiredState, State
from tests.e2e.conftest import CHECKOUT
from tests.e2e.load_generator import Load, wait_for
from tests.fixtures import tiny_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RATE, MAX_TEXTS, LOAD_KEYS = 1000, 3, 16  # tokens per minute of a key without its own rate
GAP_S = 2  # between the starts of commands that overlap; each takes ten times as long


class Service(NamedTuple):
    """A cluster with a service, a registry of three versions, and keys: the administrator's, then those for load."""

    cluster: LocalCluster
    storage: Storage
    detectors: list[Detector]
    tokens: list[str]
    port: int

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command from the checkout, with the storage root in its environment."""
        environment = self.cluster.environment | {"DETECT_AI_STORAGE_ROOT": self.storage.root}
        return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)

    def job(self, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        """`python jobs/NAME.py OVERRIDES`."""
        return self.run(sys.executable, f"jobs/{name}.py", *overrides)

    def submit(self, name: str, *overrides: str) -> None:
        """`ray job submit -- python jobs/NAME.py OVERRIDES`, as docs/JOBS.md says."""
        variables = json.dumps({"env_vars": {"DETECT_AI_STORAGE_ROOT": self.storage.root}})
        ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", self.cluster.address]
        command = [*ray, "--working-dir", ".", "--runtime-env-json", variables, "--", "python", f"jobs/{name}.py"]
        done = self.run(*command, *overrides)
        assert done.returncode == 0, done.stdout[-3000:]

    def champions(self) -> tuple[str, str]:
        """Make the second version the champion after the first; return both."""
        first, second = (detector.version for detector in self.detectors[:2])
        for version in (first, second):
            Registry(self.storage).set_champion(version)
        return first, second

    def state(self) -> State:
        """The desired state."""
        state = DesiredState(self.storage).read()[1]
        assert state is not None
        return state

    def ask(self, path: str, token: int = 0, **body: object) -> httpx.Response:
        """GET, or POST if there is a body."""
        headers = {"Authorization": f"Bearer {self.tokens[token]}"}
        method, url = "POST" if body else "GET", f"http://127.0.0.1:{self.port}{path}"
        return httpx.request(method, url, json=body or None, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, encoder: Path, tiny_bundle: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("rollout")
    storage, bundles, tokens = Storage(str(folder / "store")), [tiny_bundle], []
    for seed in (1, 2):
        bundles.append(folder / str(seed))
        tiny_models.make_bundle(bundles[-1], encoder, seed)
    for bundle in bundles:
        Registry(storage).add(bundle)
    for limits in [{"scopes": [Scope.DETECT, Scope.ADMIN]}] + [{"tokens_per_minute": 10**8}] * LOAD_KEYS:
        token, key = create_key("any", **limits)
        KeyStore(storage).put(key)
        tokens.append(token)
    detectors = [Detector.load(bundle) for bundle in bundles]
    cluster = LocalCluster()
    try:
        service = Service(cluster, storage, detectors, tokens, free_port())
        service.champions()
        service.submit(
            "deploy",
            *(f"serve.port={service.port}", f"serve.tokens_per_minute={RATE}", f"serve.max_texts={MAX_TEXTS}"),
            *("serve.max_concurrent_per_key=5", "serve.max_replicas=1", "serve.max_wait_s=60"),
            *(f"serve.canary={detectors[2].version}", "serve.canary_fraction=0.5"),
        )
        yield service
    finally:
        cluster.stop()


def test_a_submitted_job_pauses_verdicts_without_a_restart(service: Service) -> None:
    before = service.ask("/v1/admin/status").json()
    service.submit("abstain", "serve.abstain_domains=['*']")
    status = service.ask("/v1/admin/status").json()
    assert (before["abstain_domains"], status["abstain_domains"]) == ([], ["*"])
    assert status["pid"] == before["pid"]
    verdict = service.ask("/v1/detect", 1, text=tiny_models.rows(1)[0]["text"]).json()["verdicts"][0]
    assert "abstaining" in verdict["reasons"]


def test_a_rollback_keeps_all_settings_and_requests(service: Service) -> None:
    to, _ = service.champions()
    before, canary = service.state(), service.detectors[2].version
    load = Load(f"http://127.0.0.1:{service.port}", *service.detectors, tokens=service.tokens[1:])

    async def scenario() -> tuple[float, set[str]]:
        async with load.during(clients=2) as seen:
            await wait_for(lambda: len(seen.statuses) >= 500, 300)
            started = time.monotonic()
            done = await asyncio.to_thread(service.job, "rollback")
            seconds, at = time.monotonic() - started, len(seen.versions)
            assert done.returncode == 0, done.stderr
            await wait_for(lambda: len(seen.statuses) >= max(2000, at + 500), 300)
        return seconds, set(seen.versions[-300:])

    seconds, versions = asyncio.run(scenario())
    statuses = load.seen.statuses
    print(f"rollback in {seconds:.1f} s; {len(statuses)} requests, {len(statuses) - statuses.count(200)} failed")
    assert len(statuses) >= 2000
    assert set(statuses) == {200}
    assert load.seen.wrong == []
    assert seconds < 60
    assert versions == {to, canary}
    after = service.state()
    assert after.version == to != before.version
    same = {"settings": {**before.settings, "version": to}, "version": to, "replicas": after.replicas}
    assert after == before.model_copy(update=same)
    text = tiny_models.rows(1)[0]["text"]
    assert service.ask("/v1/detect", 1, texts=[text] * (MAX_TEXTS + 1)).status_code == 413
    costly = [service.ask("/v1/detect", 0, text=" ".join([str(text)] * 50)).status_code for _ in range(2)]
    assert costly == [200, 429]


@pytest.mark.parametrize("order", list(itertools.permutations(["one", "two", "rollback"])))
def test_the_live_version_is_that_of_the_command_that_succeeded_last(service: Service, order: tuple[str, ...]) -> None:
    first, second = service.champions()
    versions = {"one": second, "two": service.detectors[2].version, "rollback": first}

    def run(name: str) -> tuple[float, int, str]:
        time.sleep(GAP_S * order.index(name))
        deployment = (f"serve.version={versions[name]}", f"serve.port={service.port}", "serve.max_replicas=1")
        done = service.job("rollback") if name == "rollback" else service.job("deploy", *deployment)
        return time.monotonic(), done.returncode, done.stderr

    with ThreadPoolExecutor(3) as pool:
        ended = dict(zip(order, pool.map(run, order), strict=True))
    print(*(f"{name} ended with {code} at {at:.1f} s" for name, (at, code, _) in ended.items()), sep="; ")
    assert [name for name, (_, code, log) in ended.items() if code and "was deployed meanwhile" not in log] == []
    _, winner = max((at, name) for name, (at, code, _) in ended.items() if code == 0)
    headers = {"Authorization": f"Bearer {(service.cluster.folder / 'token').read_text()}"}
    deadline = time.monotonic() + 60
    while True:  # until Serve has reached its target
        applications = httpx.get(f"{service.cluster.address}/api/serve/applications/", headers=headers).json()
        if applications["applications"]["detect_ai"]["status"] == "RUNNING":
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    model, state = service.ask("/v1/model").json(), service.state()
    assert model["model_version"] == state.version == versions[winner]
    assert (state.status, state.settings["max_texts"]) == ("live", model["limits"]["max_texts"])
