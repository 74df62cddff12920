"""The service behind HAProxy, as on a cluster: the same answers, and no text in a log."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from detect_ai.core.local_cluster import LocalCluster
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from tests.e2e.conftest import deployed
from tests.fixtures import tiny_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CANARY = "canary8c31 the council met on tuesday to vote on the bridge"
REQUEST_ID = "the-clients-own"


@pytest.fixture(scope="module")
def service(store: Storage) -> Iterator[tuple[LocalCluster, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        patch.setenv("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
        with deployed(store) as service:
            yield service
    left = [p for p in psutil.process_iter(["status"]) if os.getsid(p.pid) == service[0].pid]
    assert [p for p in left if p.info["status"] != psutil.STATUS_ZOMBIE] == []


@pytest.fixture
def client(service: tuple[LocalCluster, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service[1], timeout=60) as client:
        yield client


def logs(service: tuple[LocalCluster, str]) -> str:
    """All logs of the cluster."""
    return "".join(path.read_text(errors="replace") for path in service[0].folder.rglob("session_2*/logs/**/*.*"))


def test_the_service_agrees_with_the_detector(
    client: httpx.Client, service: tuple[LocalCluster, str], tiny_bundle: Path
) -> None:
    assert "HAProxy" in logs(service)
    texts = [row["text"] for row in tiny_models.rows(4)]
    response = client.post("/v1/detect", json={"texts": texts}, headers={"X-Request-ID": REQUEST_ID})
    probabilities = [verdict["probability"] for verdict in response.json()["verdicts"]]
    expected = [verdict.probability for verdict in Detector.load(tiny_bundle).detect(texts)]
    assert probabilities == pytest.approx(expected, abs=1e-4)
    assert response.headers["X-Request-ID"] == response.json()["request_id"] == REQUEST_ID


def test_bad_requests_are_problems(client: httpx.Client) -> None:
    response = client.post("/v1/detect", json={"texts": [CANARY, 5]})
    assert (response.status_code, response.headers["Content-Type"]) == (422, "application/problem+json")
    assert CANARY not in response.text


def test_no_text_reaches_the_log(client: httpx.Client, service: tuple[LocalCluster, str]) -> None:
    client.post("/v1/detect", json={"text": CANARY}).raise_for_status()
    client.get(f"/v1/detect?text={CANARY}")
    time.sleep(1)
    assert "POST /v1/detect 200" in logs(service)
    assert "canary8c31" not in logs(service)
