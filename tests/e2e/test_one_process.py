"""`detect-ai serve`: the same verdicts as the deployment on Ray Serve, keys, metrics and clients that disconnect."""

from __future__ import annotations

import http.client
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from serve_app.auth.api_keys import KeyStore, create_key
from tests.e2e.conftest import BATCH_TOKENS, CHECKOUT, listening, one_process
from tests.fixtures import documents, tiny_models

TEXTS = [row["text"] for row in tiny_models.rows(4)]
LEFT = 'detect_ai_requests_total{route="/v1/detect",status="499"}'
LONG_TEXT = tiny_models.text("ai", random.Random(2), words=25_000)


class Service(NamedTuple):
    process: subprocess.Popen[bytes]
    client: httpx.Client
    metrics: str  # URL

    def counted(self, series: str) -> bool:
        """Whether the metrics have a series that starts with this."""
        return any(line.startswith(series) for line in httpx.get(self.metrics).text.splitlines())


@pytest.fixture(scope="module")
def service(store: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    port, log = free_port(), tmp_path_factory.mktemp("one") / "log"
    patient = (f"serve.batch_tokens={BATCH_TOKENS}", "serve.max_wait_s=600", "serve.max_tokens=1000000")
    with (
        one_process(store, log, f"--metrics-port={port}", "monitoring.log=true", *patient) as (process, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield Service(process, client, f"http://127.0.0.1:{port}/metrics")


def test_verdicts_are_those_of_ray_serve(service: Service, client: httpx.Client) -> None:
    body = {"texts": TEXTS, "return_spans": True}
    alone, deployed = (one.post("/v1/detect", json=body).json() for one in (service.client, client))
    assert len(alone["verdicts"]) == len(TEXTS)
    for mine, other in zip(alone["verdicts"], deployed["verdicts"], strict=True):
        assert mine.pop("probability") == pytest.approx(other.pop("probability"), abs=1e-4)
        assert [span["probability"] for span in mine.pop("spans")] == pytest.approx(
            [span["probability"] for span in other.pop("spans")], abs=1e-4
        )
        assert mine.keys() == other.keys()
        assert (mine["label"], mine["reasons"], mine["num_tokens"]) == (
            *(other["label"], other["reasons"], other["num_tokens"]),
        )


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v1/model"])
def test_pages_and_routes_are_those_of_ray_serve(service: Service, client: httpx.Client, path: str) -> None:
    alone, deployed = service.client.get(path), client.get(path)
    assert alone.status_code == deployed.status_code == 200
    assert alone.headers["Content-Type"] == deployed.headers["Content-Type"]
    assert set(deployed.headers) - {"content-length"} <= {*alone.headers, "server"}
    if path == "/openapi.json":
        assert alone.json() == deployed.json()


def test_files_are_read(service: Service) -> None:
    file = ("essay.docx", documents.docx(TEXTS[0]))
    answer = service.client.post("/v1/detect/file", files=[("files", file)])
    assert answer.json()["files"][0]["verdict"]["label"] in ("human", "ai", "uncertain")


def test_a_response_has_the_id_of_its_request(service: Service) -> None:
    answer = service.client.post("/v1/detect", json={"text": TEXTS[0]}, headers={"X-Request-ID": "mine"})
    assert answer.headers.get_list("X-Request-ID") == [answer.json()["request_id"]] == ["mine"]
    problem = service.client.post("/v1/detect", json={"texts": 5})
    assert (problem.status_code, problem.headers["X-Request-ID"]) == (422, problem.json()["request_id"])


def test_it_listens_on_loopback_only(service: Service) -> None:
    assert listening(service.process.pid) == {"127.0.0.1"}


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/healthz"])
def test_a_response_is_counted_as_such(service: Service, path: str) -> None:
    """Not as a client that disconnects: files are sent by a task that reads on while it sends."""

    def requests() -> Counter[str]:
        """Number of requests by status."""
        metrics, counts = httpx.get(service.metrics).text, Counter[str]()
        for status, number in re.findall(r'^detect_ai_requests_total{.*status="(\d+)"} (\S+)$', metrics, re.MULTILINE):
            counts[status] += int(float(number))
        return counts

    before = requests()
    assert all(service.client.get(path).status_code == 200 for _ in range(3))
    assert requests() - before == {"200": 3}


def test_a_client_that_leaves_is_counted_and_its_work_ends(service: Service) -> None:
    body = json.dumps({"text": LONG_TEXT, "return_spans": True})
    assert not service.counted(LEFT)
    connections = [http.client.HTTPConnection("127.0.0.1", service.client.base_url.port) for _ in range(8)]
    for connection in connections:  # more than can be answered before they disconnect
        connection.request("POST", "/v1/detect", body, {"Content-Type": "application/json"})
    for connection in connections:
        connection.close()
    deadline = time.monotonic() + 20
    while not service.counted(LEFT):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_keys_are_required_where_there_are_any(tmp_path: Path, tiny_bundle: Path) -> None:
    storage = Storage(str(tmp_path / "store"))
    token, key = create_key("me", tokens_per_minute=60)
    KeyStore(storage).put(key)
    with one_process(storage, tmp_path / "log", f"--bundle={tiny_bundle}", "serve.host=0.0.0.0") as (_, url):
        body = {"texts": TEXTS}
        assert httpx.post(f"{url}/v1/detect", json=body).status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        answers = [httpx.post(f"{url}/v1/detect", json=body, headers=headers).status_code for _ in range(2)]
        assert answers == [200, 429]  # the first one made the balance negative


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["serve.host=0.0.0.0"], "no API keys"),
        (["serve.canary=4e21"], "serve.canary"),
        (["train.lr=1"], "train.lr=1"),
        (["serve.port=high"], "serve.port=high"),
        (["serve.abstain_domains=[poems]"], "poems"),
        (["--bundle=/nowhere"], "/nowhere"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, tiny_bundle: Path, arguments: list[str], found: str) -> None:
    command = [sys.executable, "-m", "detect_ai.cli.__main__", "serve", "--root", str(tmp_path)]
    bundle = [] if arguments[0].startswith("--bundle") else [f"--bundle={tiny_bundle}"]
    done = subprocess.run([*command, *bundle, *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(error)) == (2, 1)
    assert found in error[0]
    assert "Traceback" not in done.stderr
