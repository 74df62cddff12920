"""One deployed service over real HTTP: answers, limits, files, logs, metrics, replacement and shutdown."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import ray
import schemathesis
from hypothesis import HealthCheck, given, settings
from ray import serve
from schemathesis.specs.openapi import checks

from detect_ai.core.config import Config
from detect_ai.core.errors import ResourceError
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from serve_app.deploy import abstain, deploy
from serve_app.deployment import build
from serve_app.desired_state import State
from tests.e2e.conftest import BATCH_TOKENS, CHECKOUT, listening, one_process
from tests.fixtures import documents, tiny_models

CANARY = "canary7f3a"
TEXT = tiny_models.text("human", random.Random(1))
LONG_TEXT = tiny_models.text("ai", random.Random(2), words=25_000)
JSON, FORM = {"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data; boundary=b"}
IN_FLIGHT = 8
SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


def files(*given: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", file) for file in given]


def check_problem(response: httpx.Response, status: int, named: str = "") -> None:
    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert named in problem["detail"]
    assert CANARY not in response.text


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"json": {"texts": [CANARY, 5]}}, 422, "`texts.1`"),
        ({"data": {"text": CANARY}}, 415, "application/json"),
        ({"content": iter([b" " * 100_000] * 100), "headers": JSON}, 413, "1000000"),
        ({"json": {"text": CANARY}, "headers": {"X-Request-ID": "a b"}}, 400, "X-Request-ID"),
    ],
)
def test_bad_requests_are_problems(client: httpx.Client, request_: dict[str, Any], status: int, named: str) -> None:
    check_problem(client.post("/v1/detect", **request_), status, named)


@pytest.mark.parametrize("given", ["trace-0123", None])
def test_a_response_carries_one_request_id(client: httpx.Client, given: str | None) -> None:
    response = client.post("/v1/detect", json={"text": TEXT}, headers={"X-Request-ID": given} if given else {})
    ids = response.headers.get_list("x-request-id")
    assert ids == [response.json()["request_id"]]
    assert ids == [given] if given else len(ids[0]) >= 16
    assert float(response.headers["server-timing"].removeprefix("replica;dur=")) >= 0


@pytest.mark.parametrize("path", ["/", "/docs", "/static/app.js", "/v1/model", "/readyz", "/nothing"])
def test_every_response_has_a_strict_policy(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "access-control-allow-origin" not in response.headers
    assert client.head(path).status_code == response.status_code


def test_the_service_agrees_with_the_detector_alone_and_in_batches(client: httpx.Client, tiny_bundle: Path) -> None:
    texts = [tiny_models.text("ai", random.Random(i), 10 + 9 * i) for i in range(24)]
    expected = [verdict.probability for verdict in Detector.load(tiny_bundle).detect(texts)]

    def score(text: str) -> float:
        return float(client.post("/v1/detect", json={"text": text}).json()["verdicts"][0]["probability"])

    assert [score(text) for text in texts] == pytest.approx(expected, abs=1e-5)
    with ThreadPoolExecutor(len(texts)) as pool:
        assert list(pool.map(score, texts)) == pytest.approx(expected, abs=1e-5)
    together = client.post("/v1/detect", json={"texts": texts}).json()["verdicts"]
    assert [verdict["probability"] for verdict in together] == pytest.approx(expected, abs=1e-5)


def test_spans_refer_to_the_text_as_sent(client: httpx.Client) -> None:
    sentences = ["The coun\u200bcil met twice.", "\U0001d413he bridge was old \U0001f642.", "Nobody w\u0435nt near."]
    text = "  ".join(sentences)
    verdict = client.post("/v1/detect", json={"text": text, "return_spans": True}).json()["verdicts"][0]
    assert [text[span["start"] : span["end"]] for span in verdict["spans"]] == sentences
    assert verdict["tampering"] == {"invisible": 1, "lookalike_form": 1, "homoglyph": 1}


CLASSIFY = """
import json, sys
from huggingface_hub import InferenceClient
client = InferenceClient(sys.argv[1])
text = sys.stdin.read()
both, one = client.text_classification(text), client.text_classification(text, top_k=1, function_to_apply="softmax")
print(json.dumps([[(label.label, label.score) for label in labels] for labels in (both, one)]))
"""


def test_the_hugging_face_client_works(url: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}  # it sends requests to the service only
    command = [sys.executable, "-c", CLASSIFY, f"{url}/predict"]
    done = subprocess.run(command, input=TEXT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    both, one = json.loads(done.stdout)
    assert sum(dict(both).values()) == pytest.approx(1)
    assert both[0][1] >= both[1][1]
    assert one == both[:1]


def test_files_of_all_kinds_are_read(client: httpx.Client, tiny_bundle: Path) -> None:
    texts = [tiny_models.text(kind, random.Random(i), 60) for i, kind in enumerate(["human", "ai"] * 2)]
    sent = files(
        ("a.txt", texts[0].encode()),
        ("b.md", texts[1].encode()),
        ("c.docx", documents.docx(texts[2])),
        ("d.pdf", documents.pdf(texts[3])),
    )
    data = {"target_fpr": "0.1", "return_text": "true", "return_spans": "true"}
    answer = client.post("/v1/detect/file", files=sent, data=data).json()["files"]
    assert [file["name"] for file in answer] == ["a.txt", "b.md", "c.docx", "d.pdf"]
    for file, text, expected in zip(answer, texts, Detector.load(tiny_bundle).detect(texts, 0.1), strict=True):
        assert file["text"].split() == text.split()
        assert file["verdict"]["probability"] == pytest.approx(expected.probability, abs=1e-5)
        spans = [file["text"][span["start"] : span["end"]] for span in file["verdict"]["spans"]]
        assert all(span[0].isupper() and span[-1] == "." for span in spans)


def test_a_bad_file_does_not_affect_the_others(client: httpx.Client) -> None:
    sent = files(("a.pdf", documents.pdf("")), ("b.txt", TEXT.encode()), ("c.exe", b"MZ"), ("d.txt", b"word " * 50_000))
    answer = client.post("/v1/detect/file", files=sent).json()
    problems = [file["problem"] and file["problem"]["status"] for file in answer["files"]]
    assert problems == [422, None, 415, 413]
    assert [file["verdict"] is None for file in answer["files"]] == [True, False, True, True]


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"json": {"text": CANARY}}, 415, "multipart/form-data"),
        ({"content": CANARY.encode(), "headers": FORM}, 400, "multipart/form-data"),
        ({"content": b"--b--\r\n", "headers": FORM}, 422, "`files`"),
        ({"data": {"fpr": "1"}, "files": files(("a.txt", b"a"))}, 422, "`fpr`"),
        ({"data": {"return_spans": CANARY}, "files": files(("a.txt", b"a"))}, 422, "`return_spans`"),
        ({"files": files(*[("a.txt", b"a")] * 17)}, 413, "16"),
    ],
)
def test_bad_forms_are_refused(client: httpx.Client, request_: dict[str, Any], status: int, named: str) -> None:
    check_problem(client.post("/v1/detect/file", **request_), status, named)


def test_a_large_body_is_refused_before_it_is_read(url: str) -> None:
    host = urlsplit(url)
    with socket.create_connection((host.hostname, host.port), timeout=30) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in {**FORM, "Content-Length": "20000001"}.items())
        connection.sendall(f"POST /v1/detect/file HTTP/1.1\r\nHost: {host.netloc}\r\n{head}\r\n".encode())
        response = HTTPResponse(connection)
        response.begin()
        assert response.status == 413


def test_hostile_files_do_not_affect_other_requests(client: httpx.Client) -> None:
    bombs = files(
        ("a.docx", documents.docx_of(b" " * 49_000_000)),
        ("b.pdf", documents.pdf_of(b"BT /F1 1 Tf (ha) Tj ET\n" * 2_000_000)),
        ("c.pdf", documents.pdf_of(b"q " * 40_000_000)),
    )
    answer = client.post("/v1/detect/file", files=bombs).json()
    assert [file["verdict"] for file in answer["files"]] == [None] * 3
    assert client.post("/v1/detect", json={"text": TEXT}).status_code == 200
    assert client.get("/readyz").json()["status"] == "ready"


def test_disconnected_clients_leave_the_replica_free(url: str, client: httpx.Client) -> None:
    for _ in range(25):  # more than a replica handles at once
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=url, timeout=httpx.Timeout(10, read=0.01)) as gone:
            gone.post("/v1/detect", json={"text": LONG_TEXT})
    assert client.post("/v1/detect", json={"text": TEXT}, timeout=30).status_code == 200


def test_overload_is_refused_with_retry_after(client: httpx.Client) -> None:
    replica = psutil.Process(client.get("/v1/admin/status").json()["pid"])
    with ThreadPoolExecutor(100) as pool:
        replica.suspend()  # so that only rejections are answered, however fast the machine is
        calls = [pool.submit(client.post, "/v1/detect", json={"text": TEXT}) for _ in range(100)]
        wait(calls, timeout=30, return_when=FIRST_COMPLETED)
        replica.resume()
        answers = [call.result() for call in calls]
    refused = [response for response in answers if response.status_code != 200]
    assert 0 < len(refused) < 100
    assert all(response.status_code == 503 and "retry-after" in response.headers for response in refused)


def test_verdicts_are_paused_and_resumed_by_the_same_replica(
    client: httpx.Client, config: Config, store: Storage
) -> None:
    def pause(*domains: str) -> dict[str, Any]:
        settings = config.serve.model_copy(update={"abstain_domains": [*domains], "max_texts": 1})
        abstain(config.model_copy(update={"serve": settings}), store)
        status = client.get("/v1/admin/status").json()
        assert (status["pid"], status["abstain_domains"]) == (pid, [*domains])
        verdict: dict[str, Any] = client.post("/v1/detect", json={"text": TEXT}).json()["verdicts"][0]
        return verdict

    pid, before = client.get("/v1/admin/status").json()["pid"], client.post("/v1/detect", json={"text": TEXT}).json()
    try:
        paused = pause("*")
        file = client.post("/v1/detect/file", files=files(("a.txt", TEXT.encode()))).json()["files"][0]
    finally:
        resumed = pause()
    assert paused == file["verdict"]
    assert paused["label"] == "uncertain"
    assert paused["reasons"] == [*resumed["reasons"], "abstaining"]
    assert [resumed] == before["verdicts"]
    assert client.get("/v1/model").json()["limits"]["max_texts"] == config.serve.max_texts


@pytest.mark.slow
def test_a_version_that_fails_leaves_the_old_one_answering(
    client: httpx.Client, config: Config, store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = ["/nowhere"]

    def build_elsewhere(state: State, root: str, runtime_env: dict[str, Any]) -> serve.Application:
        return build(state, roots.pop() if roots else root, runtime_env)

    monkeypatch.setattr("serve_app.deployment.build", build_elsewhere)
    with pytest.raises(ResourceError, match="/nowhere"):
        deploy(config, store)
    assert client.post("/v1/detect", json={"text": TEXT}).status_code == 200
    # Serve has the old target again and replaces a replica that dies.
    os.kill(client.get("/v1/admin/status").json()["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while client.post("/v1/detect", json={"text": TEXT}).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_the_deploy_job_replaces_replicas_without_downtime(
    client: httpx.Client, config: Config, store: Storage, tmp_path: Path
) -> None:
    command = [sys.executable, str(CHECKOUT / "jobs/deploy.py"), f"storage.root={store.root}"]
    command += [f"serve.port={config.serve.port}", "serve.max_replicas=1", f"serve.batch_tokens={BATCH_TOKENS}"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    statuses: list[int] = []
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as job:
        while job.poll() is None:
            statuses.append(client.post("/v1/detect", json={"text": TEXT}).status_code)
        assert job.stdout is not None
        result = json.loads(job.stdout.read().splitlines()[-1])
    assert (job.returncode, result["model_version"]) == (0, Registry(store).champion())
    assert set(statuses) == {200}


def test_no_text_reaches_a_log(cluster: Path, client: httpx.Client, store: Storage) -> None:
    text = f"{CANARY} {TEXT}"
    sent = files(
        ("a.txt", text.encode()), ("b.docx", documents.docx(text)), (f"{CANARY}.pdf", b"%PDF-1.4 " + text.encode())
    )
    answers = [
        client.post("/v1/detect", json={"text": text, "return_spans": True}),
        client.post("/v1/detect", json={"texts": [CANARY, 5]}),
        client.get(f"/v1/detect?text={CANARY}"),
        client.post(f"/v1/detect/file?{CANARY}", files=sent),
        client.post("/predict", json={"inputs": text, "parameters": {CANARY: 1}}),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 405, 200, 422]
    time.sleep(2)
    written = b"".join(f.read_bytes() for root in (cluster, Path(store.root)) for f in root.rglob("*") if f.is_file())
    assert b"POST /v1/detect 200" in written
    assert CANARY.encode() not in written


@pytest.mark.slow
def test_sigterm_finishes_requests_in_flight(store: Storage, tmp_path: Path) -> None:
    patient = (f"serve.batch_tokens={BATCH_TOKENS}", "serve.max_wait_s=600", "serve.max_tokens=1000000")
    with one_process(store, tmp_path / "log", *patient) as (process, url):
        assert listening(process.pid) == {"127.0.0.1"}
        body = {"text": LONG_TEXT, "return_spans": True}
        with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
            sent = [pool.submit(client.post, "/v1/detect", json=body) for _ in range(IN_FLIGHT)]
            time.sleep(0.7)
            assert not all(request.done() for request in sent), "too few texts to be in flight"
            process.send_signal(signal.SIGTERM)
            assert [request.result().status_code for request in sent] == [200] * IN_FLIGHT
        assert process.wait(60) == 0, (tmp_path / "log").read_text()


INTERNALS = re.compile(rb"Traceback|\.py\b|site-packages|pydantic|starlette|fastapi|0x[0-9a-f]{8}|ray\.|Errno")
TOKENS = [b'"', b"\\", b"{", b"]", b"\n", b"\0", b"\xff", b"\\ud800", b"null", b"NaN", b"1e999"]
TOKENS += [b"9" * 400, b"[" * 2000]
TOKENS += [b'"text"', b'"inputs"', b'"explain"', b"--b", b"--b--", b"\r\n\r\n", b"filename=", b"%PDF-"]
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n%b\r\n--b--\r\n'
SEEDS = [
    ("/v1/detect", JSON, json.dumps({"text": f"{CANARY} {TEXT}", "target_fpr": 0.05, "return_spans": True}).encode()),
    ("/predict", JSON, json.dumps({"inputs": [f"{CANARY} {TEXT}", "b"], "parameters": {"top_k": 1}}).encode()),
    ("/v1/detect/file", FORM, PART % TEXT.encode()),
]


def mutated(rng: random.Random, body: bytes) -> bytes:
    data = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 2, 10, 100]))
        replacement = rng.choice([b"", bytes([rng.randrange(256)]), data[at:end] * 2, rng.choice(TOKENS)])
        data[at : rng.choice([at, end])] = replacement
    return bytes(data)


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(1000, 11_000), marks=SLOW)])
def test_mutated_bodies_are_answered_without_internals(client: httpx.Client, seeds: range) -> None:
    statuses = set()
    for seed in seeds:
        rng = random.Random(seed)
        path, headers, body = rng.choice(SEEDS)
        answer = client.post(path, content=mutated(rng, body), headers=headers)
        assert answer.status_code < 500, (seed, answer.text[:300])
        assert not INTERNALS.search(answer.content), (seed, answer.text[:300])
        assert CANARY not in answer.text, seed
        statuses.add(answer.status_code)
    assert {200, 400, 422} <= statuses


CONFORM = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("mode", "path"),  # a request without parameters and body cannot be wrong
    [(mode, path) for mode in schemathesis.GenerationMode for path in ("/v1/detect", "/v1/detect/file", "/predict")]
    + [(schemathesis.GenerationMode.POSITIVE, path) for path in ("/v1/model", "/healthz", "/readyz")],
)
def test_answers_conform_to_the_openapi_description(url: str, path: str, mode: schemathesis.GenerationMode) -> None:
    api = schemathesis.openapi.from_url(f"{url}/openapi.json")
    [operation] = [op for op in (result.ok() for result in api.get_all_operations()) if op.path == path]

    @settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def conforms(case: schemathesis.Case) -> None:
        response = case.call(timeout=60)
        assert not INTERNALS.search(response.content)
        case.validate_response(response, checks=[schemathesis.checks.not_a_server_error, *CONFORM])

    conforms()
