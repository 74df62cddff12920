"""API keys, rate limits and overlapping deployments on a real Ray Serve with two replicas."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import ray
from ray import serve

from detect_ai.core.config import Config
from detect_ai.core.errors import ConflictError
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from serve_app import deploy as deployment
from serve_app.auth import api_keys
from serve_app.auth.api_keys import KeyStore, Scope
from serve_app.auth.rate_actor import ACTOR_NAME, NAMESPACE, PREFIX
from serve_app.auth.rate_limit import RateLimits
from serve_app.deploy import APP, deploy, is_deployed, rollback_service, stop
from tests.fixtures import tiny_models

RATE, CONNECTIONS = 1000, 16  # tokens per minute of the slow key
KEYS = {"user": {}, "slow": {"tokens_per_minute": RATE}, "chief": {"scopes": [Scope.ADMIN]}, "gone": {}}


class Service(NamedTuple):
    """A service with API keys by name, and two champions in its registry."""

    url: str
    tokens: dict[str, str]
    config: Config
    storage: Storage

    def detect(self, name: str = "") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        body = {"text": "The council met near the bridge on Tuesday."}
        return httpx.post(f"{self.url}/v1/detect", json=body, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def keyed(
    cluster: Path,
    config: Config,
    store: Storage,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bundle: Path,
    encoder: Path,
) -> Iterator[Service]:
    """A service with keys, in place of the shared one."""
    folder = tmp_path_factory.mktemp("keyed")
    storage, tokens = Storage(str(folder / "store")), {}
    tiny_models.make_bundle(folder / "next", encoder, seed=1)
    for bundle in (tiny_bundle, folder / "next"):
        Registry(storage).set_champion(Registry(storage).add(bundle))
    for name, limits in KEYS.items():
        tokens[name], key = api_keys.create_key(name, **limits)
        KeyStore(storage).put(key)
    own, is_shared = config.model_copy(deep=True), is_deployed()
    own.serve.min_replicas = own.serve.max_replicas = 2
    yield Service(str(deploy(own, storage)["url"]), tokens, own, storage)
    if is_shared:
        deploy(config, store)
    else:
        stop(app=True, serve_too=True)


def test_a_key_permits_its_scope_only(keyed: Service) -> None:
    assert [keyed.detect(name).status_code for name in ("user", "", "chief")] == [200, 401, 403]
    assert httpx.get(f"{keyed.url}/v1/model").status_code == 401
    paths = ("/", "/docs", "/static/app.js", "/openapi.json", "/healthz", "/readyz")
    assert {httpx.get(keyed.url + path).status_code for path in paths} == {200}


def test_two_replicas_together_keep_a_rate(keyed: Service) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        responses = list(pool.map(lambda _: keyed.detect("slow"), range(RATE // 5)))
    refilled = RATE * (time.monotonic() - started) / 60
    counts = Counter(response.status_code for response in responses)
    cost = 1 + next(r for r in responses if r.status_code == 200).json()["verdicts"][0]["num_tokens"]
    assert set(counts) == {200, 429}
    assert RATE - cost <= counts[200] * cost <= RATE + refilled + CONNECTIONS * cost
    assert {1 <= int(r.headers["retry-after"]) <= 60 for r in responses if r.status_code == 429} == {True}
    assert keyed.detect("user").status_code == 200


def test_a_revoked_key_is_refused_without_a_restart(keyed: Service) -> None:
    assert keyed.detect("gone").status_code == 200
    assert api_keys.main(["--root", keyed.storage.root, "revoke", keyed.tokens["gone"].split("_")[1]]) == 0
    deadline = time.monotonic() + 20
    while {keyed.detect("gone").status_code for _ in range(10)} != {401}:
        assert time.monotonic() < deadline
    assert keyed.detect("user").status_code == 200


def test_no_log_contains_a_key(keyed: Service, cluster: Path) -> None:
    keyed.detect("")
    time.sleep(1)
    files = [file for root in (cluster, Path(keyed.storage.root)) for file in root.rglob("*") if file.is_file()]
    written = b"".join(file.read_bytes() for file in files)
    assert b"POST /v1/detect 401" in written
    assert not [name for name, token in keyed.tokens.items() if token.split("_", 2)[2].encode() in written]


@pytest.mark.slow
def test_overlapping_deployments_and_a_rollback(keyed: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deploys with more CPUs than there are, so that its replicas never start; B deploys; then a rollback."""
    monkeypatch.setattr(deployment, "cluster_stays", lambda: True)

    @ray.remote(num_cpus=0)
    def deploy_elsewhere(config: Config, root: str) -> None:
        """Deploy in another process, as commands do: Ray Serve cannot build applications in two threads."""
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("RAY_ADDRESS")  # as in the process of this test
            patch.setattr(deployment, "require_resources", lambda *_: None)
            deploy(config, Storage(root))

    hanging, limited = keyed.config.model_copy(deep=True), keyed.config.model_copy(deep=True)
    hanging.serve.cpus_per_replica, limited.serve.max_texts = 1000, 1
    options = {"name": f"{PREFIX}old", "namespace": NAMESPACE, "lifetime": "detached", "num_cpus": 0}
    ray.remote(RateLimits).options(**options).remote()  # of another release
    champion = Registry(keyed.storage).require_champion()
    first = deploy_elsewhere.remote(hanging, keyed.storage.root)
    while serve.status().applications[APP].status != "DEPLOYING":
        assert not ray.wait([first], timeout=0.1)[0]
    assert deploy(limited, keyed.storage)["model_version"] == champion
    with pytest.raises(ConflictError, match=f"version {champion} was deployed meanwhile"):
        ray.get(first, timeout=60)
    actors = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert {name for name in actors if name.startswith(PREFIX)} == {ACTOR_NAME}
    result = rollback_service(Config(), keyed.storage)
    assert result["before"] == champion != result["champion"] == result["deploy"]["model_version"]
    model = httpx.get(f"{keyed.url}/v1/model", headers={"Authorization": f"Bearer {keyed.tokens['user']}"}).json()
    assert (model["model_version"], model["limits"]["max_texts"]) == (result["champion"], 1)
