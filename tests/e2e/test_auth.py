"""API keys and rates over HTTP: a real Ray Serve with two replicas."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from serve_app.auth import api_keys
from serve_app.auth.api_keys import Scope
from serve_app.deploy import deploy, stop
from tests.fixtures import tiny_models

RATE = 120
BODY = {"text": "The council met near the bridge on Tuesday."}


@pytest.fixture(scope="module")
def config(encoder: Path, store: Storage) -> Config:
    made = tiny_models.config(encoder, Path(store.root))
    made.serve.port = free_port()
    made.serve.min_replicas = made.serve.max_replicas = 2
    made.serve.keys_file, made.serve.keys_refresh_s = "auth/test_keys.json", 0.2
    return made


@pytest.fixture(scope="module")
def tokens(config: Config, store: Storage) -> dict[str, str]:
    """Keys in the file of the service, by name."""
    made = {
        "user": api_keys.made("user"),
        "slow": api_keys.made("slow", rate_per_minute=RATE),
        "chief": api_keys.made("chief", [Scope.ADMIN]),
        "gone": api_keys.made("gone"),
    }
    kept = [key.model_dump(mode="json", exclude_none=True) for _, key in made.values()]
    store.write_json(config.serve.keys_file, {"keys": kept})
    return {name: token for name, (token, _) in made.items()}


@pytest.fixture(scope="module")
def url(config: Config, store: Storage, tokens: dict[str, str]) -> Iterator[str]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield str(deploy(config, store)["url"])
    stop(app=True, serve_too=True)
    ray.shutdown()


def ask(url: str, token: str | None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(f"{url}/v1/detect", json=BODY, headers=headers, timeout=30)


def test_a_key_opens_what_its_scope_says(url: str, tokens: dict[str, str]) -> None:
    assert ask(url, tokens["user"]).status_code == 200
    nobody = ask(url, None)
    assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, 'Bearer realm="detect_ai"')
    assert nobody.json()["detail"].startswith("Expected the header `Authorization: Bearer <key>`")
    assert ask(url, tokens["chief"]).status_code == 403
    assert httpx.get(f"{url}/v1/model").status_code == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/openapi.json", "/healthz", "/readyz"])
def test_pages_and_health_need_no_key(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 200


def test_a_body_is_not_read_for_somebody_without_a_key(url: str) -> None:
    response = httpx.post(f"{url}/v1/detect", content=b"no json", headers={"Content-Type": "application/json"})
    assert response.status_code == 401


def test_two_replicas_together_hold_a_rate(url: str, tokens: dict[str, str]) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: ask(url, tokens["slow"]), range(2 * RATE)))
    filled = RATE * (time.monotonic() - started) / 60
    counted = Counter(response.status_code for response in found)
    assert set(counted) == {200, 429}
    assert 0.9 * RATE <= counted[200] <= RATE + filled + 1
    refused = next(response for response in found if response.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["detail"].startswith(f"At most {RATE} texts a minute")
    assert ask(url, tokens["user"]).status_code == 200  # keys do not share


def test_a_revoked_key_is_refused_without_a_restart(
    url: str, tokens: dict[str, str], config: Config, store: Storage
) -> None:
    assert ask(url, tokens["gone"]).status_code == 200
    gone = tokens["gone"].split("_")[1]
    assert api_keys.main(["--root", store.root, "--file", config.serve.keys_file, "revoke", gone]) == 0
    deadline = time.monotonic() + 20
    while ask(url, tokens["gone"]).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)  # the other replica reads the file too
    assert {ask(url, tokens["gone"]).status_code for _ in range(20)} == {401}
    assert ask(url, tokens["user"]).status_code == 200


def test_no_log_holds_a_key(url: str, tokens: dict[str, str], store: Storage) -> None:
    ask(url, tokens["user"])
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    time.sleep(1)
    written = b"".join(f.read_bytes() for root in (session, Path(store.root)) for f in root.rglob("*") if f.is_file())
    assert b"POST /v1/detect 401" in written
    for token in tokens.values():
        assert token.split("_", 2)[2].encode() not in written


def test_a_service_that_others_can_reach_wants_keys(config: Config, store: Storage) -> None:
    open_to_all = config.serve.model_copy(update={"host": "0.0.0.0", "keys_file": "auth/none.json"})
    with pytest.raises(
        ConfigError, match=r"serve.host=0.0.0.0 lets other machines ask, .* serve_app.auth.api_keys --root"
    ):
        deploy(Config(serve=open_to_all), store)


def test_keys_that_cannot_be_read_end_a_deployment(config: Config, store: Storage) -> None:
    store.write_bytes("auth/broken.json", json.dumps({"keys": 1}).encode())
    with pytest.raises(ConfigError, match=r"auth/broken.json: expected \{"):
        deploy(Config(serve=config.serve.model_copy(update={"keys_file": "auth/broken.json"})), store)
