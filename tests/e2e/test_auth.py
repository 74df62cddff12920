"""API keys, rate limits and overlapping deployments on a real Ray Serve with two replicas."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import httpx
import pytest
from ray import serve

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, ConflictError
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from serve_app import deploy as deployment
from serve_app.auth import api_keys
from serve_app.auth.api_keys import ENVIRONMENT, KeyStore, Scope
from serve_app.deploy import deploy, is_deployed, rollback_service, stop
from serve_app.deployment import APP
from tests.fixtures import tiny_models

RATE = 2000  # tokens per minute
CONNECTIONS = 16
BODY = {"text": "The council met near the bridge on Tuesday."}


@pytest.fixture(scope="module")
def keyed_store(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, encoder: Path) -> Storage:
    """A storage root with two champions, and no keys yet."""
    folder = tmp_path_factory.mktemp("keyed")
    storage = Storage(str(folder / "store"))
    tiny_models.make_bundle(folder / "next", encoder, seed=1)
    for bundle in (tiny_bundle, folder / "next"):
        Registry(storage).set_champion(Registry(storage).add(bundle))
    return storage


@pytest.fixture(scope="module")
def keyed_config(config: Config) -> Config:
    keyed = deepcopy(config)
    keyed.serve.min_replicas = keyed.serve.max_replicas = 2
    keyed.serve.keys_refresh_s = 0.2
    return keyed


@pytest.fixture(scope="module")
def tokens(keyed_store: Storage) -> dict[str, str]:
    """Keys in the store of the service, by name."""
    keys = {
        "user": api_keys.create_key("user"),
        "slow": api_keys.create_key("slow", tokens_per_minute=RATE),
        "chief": api_keys.create_key("chief", [Scope.ADMIN]),
        "gone": api_keys.create_key("gone"),
    }
    for _, key in keys.values():
        KeyStore(keyed_store).put(key)
    return {name: token for name, (token, _) in keys.items()}


@pytest.fixture(scope="module")
def keyed_url(
    cluster: Path, config: Config, store: Storage, keyed_config: Config, keyed_store: Storage, tokens: dict[str, str]
) -> Iterator[str]:
    """A service with keys, in place of the shared one."""
    is_shared = is_deployed()
    yield str(deploy(keyed_config, keyed_store)["url"])
    if is_shared:
        deploy(config, store)
    else:
        stop(app=True, serve_too=True)


def detect(url: str, token: str | None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(f"{url}/v1/detect", json=BODY, headers=headers, timeout=60)


def test_a_key_permits_what_its_scope_says(keyed_url: str, tokens: dict[str, str]) -> None:
    callers = (tokens["user"], None, tokens["chief"])
    assert [detect(keyed_url, token).status_code for token in callers] == [200, 401, 403]
    assert httpx.get(f"{keyed_url}/v1/model").status_code == 401
    paths = ("/", "/docs", "/static/app.js", "/openapi.json", "/healthz", "/readyz")
    assert {httpx.get(keyed_url + path).status_code for path in paths} == {200}


def test_no_body_is_read_without_a_key(keyed_url: str) -> None:
    response = httpx.post(f"{keyed_url}/v1/detect", content=b"no json", headers={"Content-Type": "application/json"})
    assert response.status_code == 401


def test_pages_elsewhere_cannot_use_the_service(keyed_url: str, tokens: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {tokens['user']}", "Origin": "https://evil.example"}
    response = httpx.post(f"{keyed_url}/v1/detect/file", files={"files": b"a text"}, headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (403, "application/problem+json")


def test_two_replicas_together_keep_a_rate(keyed_url: str, tokens: dict[str, str]) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        responses = list(pool.map(lambda _: detect(keyed_url, tokens["slow"]), range(RATE // 5)))
    refilled = RATE * (time.monotonic() - started) / 60
    counts = Counter(response.status_code for response in responses)
    cost = 1 + next(r for r in responses if r.status_code == 200).json()["verdicts"][0]["num_tokens"]
    assert set(counts) == {200, 429}
    assert RATE - cost <= counts[200] * cost <= RATE + refilled + CONNECTIONS * cost
    refused = next(response for response in responses if response.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert detect(keyed_url, tokens["user"]).status_code == 200


def test_a_revoked_key_is_refused_without_a_restart(
    keyed_url: str, tokens: dict[str, str], keyed_store: Storage
) -> None:
    assert detect(keyed_url, tokens["gone"]).status_code == 200
    assert api_keys.main(["--root", keyed_store.root, "revoke", tokens["gone"].split("_")[1]]) == 0
    deadline = time.monotonic() + 20
    while {detect(keyed_url, tokens["gone"]).status_code for _ in range(10)} != {401}:
        assert time.monotonic() < deadline
    assert detect(keyed_url, tokens["user"]).status_code == 200


def test_no_log_contains_a_key(keyed_url: str, tokens: dict[str, str], keyed_store: Storage, cluster: Path) -> None:
    detect(keyed_url, tokens["user"])
    time.sleep(1)
    files = [file for root in (cluster, Path(keyed_store.root)) for file in root.rglob("*") if file.is_file()]
    written = b"".join(file.read_bytes() for file in files)
    assert b"POST /v1/detect 401" in written
    assert not [name for name, token in tokens.items() if token.split("_", 2)[2].encode() in written]


def test_invalid_keys_end_a_deployment(
    keyed_config: Config, keyed_store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, '{"keys": 1}')
    with pytest.raises(ConfigError, match=ENVIRONMENT):
        deploy(keyed_config, keyed_store)


def test_a_deployment_that_hangs_gives_way_and_rollback_keeps_settings(
    keyed_url: str,
    tokens: dict[str, str],
    keyed_config: Config,
    keyed_store: Storage,
    cluster: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A deploys with more CPUs than there are, so that its replicas never start; B deploys; then a rollback."""
    monkeypatch.setattr(deployment, "require_resources", lambda *_: None)
    monkeypatch.setattr(deployment, "cluster_stays", lambda: True)
    hanging, limited = deepcopy(keyed_config), deepcopy(keyed_config)
    hanging.serve.cpus_per_replica, limited.serve.max_texts = 1000, 1
    champion = Registry(keyed_store).require_champion()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(deploy, hanging, keyed_store)
        while serve.status().applications[APP].status != "DEPLOYING":
            time.sleep(0.1)
        assert deploy(limited, keyed_store)["model_version"] == champion
        with pytest.raises(ConflictError, match=f"version {champion} was deployed meanwhile"):
            first.result(60)
    result = rollback_service(Config(), keyed_store)
    assert result["before"] == champion != result["champion"] == result["deploy"]["model_version"]
    headers = {"Authorization": f"Bearer {tokens['user']}"}
    model = httpx.get(f"{keyed_url}/v1/model", headers=headers).json()
    assert (model["model_version"], model["limits"]["max_texts"]) == (result["champion"], 1)
