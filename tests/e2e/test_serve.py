"""The service as a client meets it: a real Ray Serve, real HTTP, every bad input, and no word of a text in any log."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve
from ray.serve.context import _get_global_client

from detect_ai.core.config import Config, ServeConfig
from detect_ai.core.errors import BundleError, RegistryError, ResourceError
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from serve_app.deploy import deploy
from serve_app.deployment import build
from tests.e2e.conftest import BATCH_TOKENS, CHECKOUT, foreground
from tests.fixtures import tiny_models

CANARY = "canary7f3a"
TEXT = tiny_models.text("human", random.Random(1))
LONG_TEXT = tiny_models.text("ai", random.Random(2), words=25_000)
IN_FLIGHT = 8
JSON = {"Content-Type": "application/json"}


def test_a_port_in_use_is_named_before_anything_starts(cluster: Path, config: Config, store: Storage) -> None:
    with socket.create_server((config.serve.host, config.serve.port)):
        with pytest.raises(ResourceError, match=f"port {config.serve.port} on 127.0.0.1 is in use: .*serve.port="):
            deploy(config, store)
        assert _get_global_client(raise_if_no_controller_running=False) is None


def test_a_damaged_bundle_never_reaches_the_service(
    cluster: Path, config: Config, tiny_bundle: Path, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    registry = Registry(storage)
    registry.set_champion(version := registry.add(tiny_bundle))
    weights = tmp_path / f"registry/versions/{version}/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model\.safetensors has sha256"):
        deploy(config, storage)
    assert _get_global_client(raise_if_no_controller_running=False) is None


def test_a_registry_without_champion_is_named(cluster: Path, config: Config, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"run jobs/publish\.py first"):
        deploy(config, Storage(str(tmp_path)))


# name: (request, status, what the detail says)
BAD = {
    "no text": ({"json": {}}, 422, "exactly one of `text`"),
    "empty text": ({"json": {"text": ""}}, 422, "a text is empty"),
    "white space only": ({"json": {"texts": ["a", " \n\t"]}}, 422, "a text is empty"),
    "no texts": ({"json": {"texts": []}}, 422, "at least one text"),
    "both": ({"json": {"text": CANARY, "texts": [CANARY]}}, 422, "exactly one of `text`"),
    "null": ({"json": {"text": None}}, 422, "exactly one of `text`"),
    "a number": ({"json": {"text": 5}}, 422, "`text`: expected a string, found a number"),
    "a list": ({"json": {"text": [CANARY]}}, 422, "`text`: expected a string, found a list"),
    "an object": ({"json": {"text": {CANARY: 1}}}, 422, "`text`: expected a string, found an object"),
    "no list": ({"json": {"texts": CANARY}}, 422, "`texts`: expected a list of strings, found a string"),
    "mixed list": ({"json": {"texts": [CANARY, 5]}}, 422, "`texts`[1]: expected a string, found a number"),
    "no object": ({"json": [CANARY]}, 422, "the body: expected an object"),
    "unknown field": ({"json": {"text": "a", "threshold": 1}}, 422, "unknown field `threshold`: expected text, texts"),
    "a text as field": ({"json": {f"{CANARY} says": "a"}}, 422, "unknown field a field of another name"),
    "wrong flag": ({"json": {"text": CANARY, "return_spans": "yes"}}, 422, "`return_spans`: expected true or false"),
    "unknown target": ({"json": {"text": CANARY, "target_fpr": 0.3}}, 422, "thresholds for 0.05, 0.1"),
    "impossible target": ({"json": {"text": CANARY, "target_fpr": 2}}, 422, "`target_fpr`: expected a number above 0"),
    "NaN": ({"content": b'{"text":"a","target_fpr":NaN}', "headers": JSON}, 422, "`target_fpr`: expected a number"),
    "no body": ({"content": b"", "headers": JSON}, 400, "not valid JSON"),
    "bad JSON": ({"content": f'{{"text": "{CANARY}'.encode(), "headers": JSON}, 400, "not valid JSON: EOF"),
    "deep JSON": ({"content": b"[" * 100_000, "headers": JSON}, 400, "recursion limit exceeded"),
    "invalid UTF-8": (
        {"content": b'{"text": "ab\xff"}', "headers": JSON},
        400,
        "not UTF-8: invalid byte at position",
    ),
    "lone surrogate": ({"content": rb'{"text": "a\ud800b"}', "headers": JSON}, 400, "not valid JSON"),
    "form": ({"data": {"text": CANARY}}, 415, "Content-Type: application/json"),
    "plain text": ({"content": CANARY}, 415, "Content-Type: application/json"),
    "10 MB": ({"json": {"text": CANARY * 1_000_000}}, 413, "at most 1000000 are read"),
    "10 MB in chunks": ({"content": iter([b" " * 100_000] * 100), "headers": JSON}, 413, "more than 1000000 bytes"),
    "too many texts": ({"json": {"texts": [CANARY] * 257}}, 413, "`texts` has 257, at most 256 are read"),
    "too many characters": ({"json": {"text": CANARY * 30_000}}, 413, "300000 characters, at most 200000 are read"),
    "bad request id": ({"json": {"text": CANARY}, "headers": {"X-Request-ID": "a b"}}, 400, "X-Request-ID: expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_answered_with_a_problem_that_repeats_no_text(client: httpx.Client, name: str) -> None:
    request, status, detail = BAD[name]
    check_problem(client.post("/v1/detect", **request), status, detail)


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", f"/v2/{CANARY}", 404, "No such path: expected /, /docs, /card, /v1/detect"),
        ("GET", f"/v1/detect?text={CANARY}", 405, "Another method is expected here: POST."),
        ("POST", "/", 405, "Another method is expected here: GET."),
        ("GET", f"/static/..%2fapp.py?{CANARY}", 404, "No such path"),
    ],
)
def test_a_wrong_address_is_answered_with_a_problem(
    client: httpx.Client, method: str, path: str, status: int, detail: str
) -> None:
    check_problem(client.request(method, path), status, detail)


def check_problem(response: httpx.Response, status: int, detail: str) -> None:
    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert detail in problem["detail"]
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert CANARY not in response.text


@pytest.mark.parametrize("surrogates", [r"\ud83d\ude00", r"\u0000", r"\ufffe"])
def test_odd_escapes_are_answered(client: httpx.Client, surrogates: str) -> None:
    body = f'{{"text": "The council {surrogates} met."}}'.encode()
    assert client.post("/v1/detect", content=body, headers=JSON).status_code == 200


@pytest.mark.parametrize("given", ["trace-0123", None])
def test_a_response_carries_the_request_id_that_came_or_one_made(client: httpx.Client, given: str | None) -> None:
    headers = {"X-Request-ID": given} if given else {}
    response = client.post("/v1/detect", json={"text": TEXT}, headers=headers)
    sent = response.headers.get_list("x-request-id")
    assert sent == [response.json()["request_id"]]
    assert sent == [given] if given else len(sent[0]) >= 16


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/v1/model", "/nothing"])
def test_every_response_carries_a_strict_policy(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_http_says_what_the_detector_says(client: httpx.Client, tiny_bundle: Path) -> None:
    texts = [tiny_models.text(kind, random.Random(i), 20 + 60 * i) for i, kind in enumerate(["human", "ai"] * 4)]
    answered = client.post("/v1/detect", json={"texts": texts}).json()["verdicts"]
    for found, expected in zip(answered, Detector.load(tiny_bundle).detect(texts), strict=True):
        assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert (found["label"], found["num_tokens"]) == (expected.label, expected.num_tokens)


def test_a_text_scores_the_same_alone_and_among_many(client: httpx.Client) -> None:
    texts = [tiny_models.text("ai", random.Random(i), 10 + 9 * i) for i in range(24)]

    def score(text: str) -> float:
        return float(client.post("/v1/detect", json={"text": text}).json()["verdicts"][0]["probability"])

    alone = [score(text) for text in texts]
    with ThreadPoolExecutor(len(texts)) as pool:
        among = list(pool.map(score, texts))
    assert among == pytest.approx(alone, abs=1e-5)


def test_spans_point_into_the_text_as_sent(client: httpx.Client) -> None:
    sentences = [
        "The coun\u200bcil met on Tuesday.",
        "\U0001d413he bridge was old \U0001f642.",
        "Nobody w\u0435nt near.",
    ]
    text = "  ".join(sentences)
    verdict = client.post("/v1/detect", json={"text": text, "return_spans": True}).json()["verdicts"][0]
    assert [text[span["start"] : span["end"]] for span in verdict["spans"]] == sentences
    assert verdict["tampering"] == {"invisible": 1, "lookalike_form": 1, "homoglyph": 1}


def test_the_service_listens_on_loopback_only(url: str) -> None:
    assert set(listeners(int(url.rsplit(":", 1)[1]))) == {"127.0.0.1"}


def listeners(port: int) -> list[str]:
    """Addresses on which this machine listens for TCP connections to a port."""
    if not Path("/proc/net/tcp").exists():
        command = ["lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fn"]
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        return [name[1:].rsplit(":", 1)[0] for name in names if name.startswith("n")]
    rows = [line.split() for file in ("tcp", "tcp6") for line in Path(f"/proc/net/{file}").read_text().splitlines()]
    local = [row[1].split(":") for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    return [".".join(str(byte) for byte in reversed(bytes.fromhex(address))) for address, _ in local]


def test_too_much_at_once_is_refused_with_503_and_the_rest_answered(client: httpx.Client) -> None:
    text = tiny_models.text("ai", random.Random(3), words=2000)
    limits = httpx.Limits(max_connections=100)
    with httpx.Client(base_url=client.base_url, timeout=60, limits=limits) as many, ThreadPoolExecutor(100) as pool:
        found = list(pool.map(lambda _: many.post("/v1/detect", json={"text": text}), range(100)))
    refused = [response for response in found if response.status_code != 200]
    assert 0 < len(refused) < 100
    assert {response.status_code for response in refused} == {503}
    assert all("retry-after" in response.headers for response in refused)


def test_another_port_than_the_one_serve_has_is_named(url: str, config: Config, store: Storage) -> None:
    other = Config(serve=type(config.serve)(port=free_port()))
    with pytest.raises(ResourceError, match=rf"already runs on 127.0.0.1:{config.serve.port}, not on .*serve.port="):
        deploy(other, store)


def test_a_version_that_does_not_start_leaves_the_old_one_answering(
    client: httpx.Client, config: Config, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = ["/nowhere"]

    def build_elsewhere(config: ServeConfig, root: str, *more: Any) -> serve.Application:
        return build(config, roots.pop() if roots else root, *more)

    monkeypatch.setattr("serve_app.deployment.build", build_elsewhere)
    with pytest.raises(ResourceError, match=r"did not start: .*no version .* under /nowhere"):
        deploy(config, store)
    assert client.post("/v1/detect", json={"text": TEXT}).status_code == 200
    # Serve must know the old version again: it starts another replica where one dies.
    os.kill(client.get("/v1/admin/status").json()["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while client.post("/v1/detect", json={"text": TEXT}).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)


@contextmanager
def requests_without_a_pause(client: httpx.Client) -> Iterator[list[tuple[int, float]]]:
    """Ask one request after another until the block ends; the status and the seconds of each."""
    found: list[tuple[int, float]] = []
    ending = threading.Event()

    def ask() -> None:
        while not ending.is_set():
            response = client.post("/v1/detect", json={"text": TEXT})
            found.append((response.status_code, response.elapsed.total_seconds()))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        yield found
        ending.set()
        asking.result()


def test_the_deploy_job_replaces_the_replicas_and_no_request_fails_or_waits_for_it(
    client: httpx.Client, config: Config, store: Storage, tmp_path: Path
) -> None:
    command = [sys.executable, str(CHECKOUT / "jobs/deploy.py"), f"storage.root={store.root}"]
    command += [f"serve.port={config.serve.port}", "serve.max_replicas=1", f"serve.batch_tokens={BATCH_TOKENS}"]
    command += ["serve.max_wait_s=600"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    started = time.monotonic()
    with requests_without_a_pause(client) as found:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["model_version"] == Registry(store).champion()
    assert {status for status, _ in found} == {200}
    # A replica takes a good part of that time to start: waiting for it would show.
    assert max(waited for _, waited in found) < seconds / 5


def test_no_word_of_a_text_reaches_a_log(cluster: Path, client: httpx.Client, store: Storage) -> None:
    client.post("/v1/detect", json={"text": f"{CANARY} {TEXT}", "return_spans": True}).raise_for_status()
    client.post("/v1/detect", json={"texts": [CANARY, 5]})
    client.get(f"/v1/detect?text={CANARY}")
    time.sleep(2)
    written = b"".join(f.read_bytes() for root in (cluster, Path(store.root)) for f in root.rglob("*") if f.is_file())
    assert b"POST /v1/detect 200" in written
    assert CANARY.encode() not in written


def test_metrics_are_those_of_the_docs_and_hold_no_text(client: httpx.Client) -> None:
    documented = set(re.findall(r"`(ray_detect_ai_\w+)`", (CHECKOUT / "docs/SERVING.md").read_text()))
    expected = {name for name in documented if "_shadow_" not in name}
    assert len(documented) > len(expected) > 3
    port, deadline, found = ray.nodes()[0]["MetricsExportPort"], time.monotonic() + 60, ""
    while not all(name in found for name in expected):
        assert time.monotonic() < deadline, sorted(name for name in expected if name not in found)
        client.post("/v1/detect", json={"text": f"{CANARY} {TEXT}"}).raise_for_status()
        client.post("/v1/detect", json={"text": ""})
        time.sleep(1)
        found = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert set(re.findall(r"(ray_detect_ai_[a-z_]+?)(?:_bucket|_count|_sum|_total)?\{", found)) == expected
    assert CANARY not in found


def answers_while(url: str, act: Callable[[], None]) -> list[httpx.Response]:
    """The answers to requests that are in the model, or wait for it, when something happens."""
    body = {"text": LONG_TEXT, "return_spans": True}
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
        asked = [pool.submit(client.post, "/v1/detect", json=body) for _ in range(IN_FLIGHT)]
        time.sleep(0.7)
        assert not all(each.done() for each in asked), "over before anything happened: ask for more"
        act()
        return [each.result() for each in asked]


def test_deleting_the_application_answers_what_is_in_flight(url: str) -> None:
    responses = answers_while(url, lambda: serve.delete("detect_ai"))
    assert [response.status_code for response in responses] == [200] * IN_FLIGHT
    assert responses[0].json()["verdicts"][0]["num_windows"] > 100


def test_sigterm_answers_what_is_in_flight_and_ends_all_that_was_started(store: Storage, tmp_path: Path) -> None:
    patient = (f"serve.batch_tokens={BATCH_TOKENS}", "serve.max_wait_s=600")
    with foreground(store, tmp_path / "log", *patient) as (process, url):
        responses = answers_while(url, partial(process.send_signal, signal.SIGTERM))
        assert process.wait(60) == 0, (tmp_path / "log").read_text()
    assert [response.status_code for response in responses] == [200] * IN_FLIGHT
    assert listeners(int(url.rsplit(":", 1)[1])) == []


def test_the_foreground_names_a_clash_in_one_line(store: Storage) -> None:
    command = [sys.executable, "-m", "serve_app", f"storage.root={store.root}", "serve.version=none"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no version 'none' under {store.root}; found ")
