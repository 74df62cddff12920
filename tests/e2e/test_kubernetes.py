"""What KubeRay does with `serveConfigV2` of ops/kubernetes/serving.yaml: PUT it to the dashboard of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from detect_ai.core.local_cluster import LocalCluster
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from serve_app.auth.api_keys import KeyStore, create_key
from serve_app.deploy import APP
from serve_app.deployment import DEPLOYMENT
from tests.e2e.conftest import CHECKOUT
from tests.fixtures import tiny_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
APPLICATIONS = "/api/serve/applications/"


def manifest() -> dict[str, Any]:
    documents = yaml.safe_load_all((CHECKOUT / "ops/kubernetes/serving.yaml").read_text(encoding="utf-8"))
    config: dict[str, Any] = yaml.safe_load(next(documents)["spec"]["serveConfigV2"])
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Storage:
    """A storage root whose champion is the tiny bundle."""
    storage = Storage(str(tmp_path_factory.mktemp("kubernetes")))
    Registry(storage).set_champion(Registry(storage).add(tiny_bundle))
    return storage


@pytest.fixture(scope="module")
def token(root: Storage) -> str:
    token, key = create_key("one")
    KeyStore(root).put(key)
    return token


@pytest.fixture(scope="module")
def dashboard() -> Iterator[httpx.Client]:
    """A client, with KubeRay's header, of the dashboard of a cluster with the variables of the manifest's pods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        patch.setenv("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
        cluster = LocalCluster()
    secret = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    with httpx.Client(base_url=cluster.address, headers={"x-ray-authorization": f"Bearer {secret}"}) as client:
        yield client
        client.delete(APPLICATIONS, timeout=120)  # HAProxy outlives a cluster that is killed, and keeps its ports
    cluster.stop()


@pytest.fixture(scope="module")
def config(root: Storage) -> dict[str, Any]:
    """The manifest's configuration, adapted to this machine."""
    config = manifest()
    config["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
    config["applications"][0]["args"]["overrides"] += [f"storage.root={root.root}", "serve.min_replicas=1"]
    return config


@pytest.fixture(scope="module")
def service(dashboard: httpx.Client, config: dict[str, Any], token: str) -> Iterator[httpx.Client]:
    put(dashboard, config)
    until(lambda: application(dashboard)["status"] == "RUNNING", lambda: application(dashboard))
    base, headers = f"http://127.0.0.1:{config['http_options']['port']}", {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
        yield client


def put(dashboard: httpx.Client, config: dict[str, Any]) -> None:
    response = dashboard.put(APPLICATIONS, json=config, timeout=120)
    assert response.status_code == 200, response.text


def application(dashboard: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = dashboard.get(APPLICATIONS, timeout=60).json()["applications"][APP]
    return found


def replicas(dashboard: httpx.Client) -> set[str]:
    return {item["replica_id"] for item in application(dashboard)["deployments"][DEPLOYMENT]["replicas"]}


def until(holds: Callable[[], bool], state: Callable[[], object]) -> None:
    deadline = time.monotonic() + 180
    while not holds():
        assert time.monotonic() < deadline, state()
        time.sleep(0.5)


def test_the_champion_answers_with_a_key(service: httpx.Client, root: Storage) -> None:
    assert service.get("/readyz").json()["model_version"] == Registry(root).champion()
    assert service.get("/-/healthz").status_code == 200  # the readiness probe
    text = {"text": tiny_models.rows(1)[0]["text"]}
    assert service.post("/v1/detect", json=text).status_code == 200
    assert service.post("/v1/detect", json=text, headers={"Authorization": ""}).status_code == 401


def test_verdicts_pause_without_a_restart(
    service: httpx.Client, dashboard: httpx.Client, config: dict[str, Any]
) -> None:
    before, text = replicas(dashboard), {"text": tiny_models.rows(1)[0]["text"]}

    def reasons() -> list[str]:
        (verdict,) = service.post("/v1/detect", json=text).json()["verdicts"]
        return list(verdict["reasons"])

    assert "abstaining" not in reasons()
    for domains in (["*"], []):
        config["applications"][0]["deployments"][0]["user_config"]["abstain_domains"] = domains
        put(dashboard, config)
        until(lambda domains=domains: ("abstaining" in reasons()) == bool(domains), reasons)
    assert replicas(dashboard) == before


def test_an_unknown_version_is_refused_and_the_service_stays(
    service: httpx.Client, dashboard: httpx.Client, config: dict[str, Any], root: Storage
) -> None:
    wrong = yaml.safe_load(yaml.safe_dump(config))
    wrong["applications"][0]["args"]["overrides"].append("serve.version=0123456789ab")
    put(dashboard, wrong)
    until(lambda: application(dashboard)["status"] == "DEPLOY_FAILED", lambda: application(dashboard))
    assert "RegistryError" in application(dashboard)["message"]
    assert service.get("/readyz").json()["model_version"] == Registry(root).champion()
