"""Files, streams, explanations and Hugging Face's form, over a real Ray Serve and real HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from detect_ai.core.config import Config
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from tests.e2e.conftest import foreground
from tests.e2e.test_serve import check_problem
from tests.fixtures import documents, tiny_models

CANARY = "canary9d2c"
TEXT = tiny_models.text("human", random.Random(1))
NDJSON = {"Content-Type": "application/x-ndjson"}
BACKLOG = 2_000_000


@pytest.fixture(scope="module")
def config(config: Config) -> Config:
    config.serve.stream_backlog_bytes = BACKLOG
    config.serve.file_timeout_s = 3
    return config


def sent(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", file) for file in files]


def test_files_of_all_kinds_are_judged_in_their_order(client: httpx.Client, tiny_bundle: Path) -> None:
    texts = [tiny_models.text(kind, random.Random(i), 60) for i, kind in enumerate(["human", "ai"] * 2)]
    files = sent(
        ("a.txt", texts[0].encode()),
        ("b.md", texts[1].encode()),
        ("c.docx", documents.docx(texts[2])),
        ("d.pdf", documents.pdf(texts[3])),
    )
    answer = client.post("/v1/detect/file", files=files, data={"target_fpr": "0.1", "return_text": "true"}).json()
    assert [each["name"] for each in answer["files"]] == ["a.txt", "b.md", "c.docx", "d.pdf"]
    assert [each["problem"] for each in answer["files"]] == [None] * 4
    for found, text, expected in zip(
        answer["files"], texts, Detector.load(tiny_bundle).detect(texts, 0.1), strict=True
    ):
        assert found["text"].split() == text.split()
        assert found["num_chars"] == len(found["text"])
        assert found["verdict"]["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert (found["verdict"]["label"], found["verdict"]["target_fpr"]) == (expected.label, 0.1)


def test_one_bad_file_keeps_no_other_from_its_verdict(client: httpx.Client) -> None:
    files = sent(("a.pdf", documents.pdf("")), ("b.txt", TEXT.encode()), ("c.exe", b"MZ"), ("d.txt", b"word " * 50_000))
    answer = client.post("/v1/detect/file", files=files)
    assert answer.status_code == 200
    scanned, judged, unknown, long = answer.json()["files"]
    assert judged["verdict"]["label"]
    assert judged["text"] is None
    assert [each["problem"]["status"] for each in (scanned, unknown, long)] == [422, 415, 413]
    assert {each["verdict"] for each in (scanned, unknown, long)} == {None}
    assert scanned["problem"]["request_id"] == answer.json()["request_id"]
    assert f"has 249999 characters after {len(TEXT)} of the files before it" in long["problem"]["detail"]


def test_spans_of_a_file_point_into_its_text(client: httpx.Client) -> None:
    data = {"return_spans": "true", "return_text": "true"}
    [file] = client.post(
        "/v1/detect/file", files=sent(("a.docx", documents.docx("One is. Two are."))), data=data
    ).json()["files"]
    spans = file["verdict"]["spans"]
    assert [file["text"][span["start"] : span["end"]] for span in spans] == ["One is.", "Two are."]


A = sent(("a.txt", b"a"))
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
# name: (request, status, what the detail says)
BAD_FORMS = {
    "no form": ({"json": {"text": CANARY}}, 415, "Content-Type: multipart/form-data"),
    "no boundary": ({"content": b"a", "headers": {"Content-Type": "multipart/form-data"}}, 400, "not valid multipart"),
    "torn": ({"content": b"--b\r\nContent-Dispo", "headers": FORM}, 422, "`files`: expected one or more files"),
    "not a form": ({"content": CANARY.encode(), "headers": FORM}, 400, "not valid multipart"),
    "no files": ({"content": b"--b--\r\n", "headers": FORM}, 422, "`files`: expected one or more files"),
    "another name": ({"files": [("upload", ("a.txt", b"a"))]}, 422, "`files`: expected one or more files"),
    "a field": ({"data": {"files": CANARY}, "files": A}, 422, "`files`: expected one or more"),
    "unknown field": (
        {"data": {"fpr": "1"}, "files": sent(("a.txt", b"a"))},
        422,
        "unknown field `fpr`: expected files",
    ),
    "odd flag": ({"data": {"return_spans": CANARY}, "files": A}, 422, "expected true or false"),
    "odd target": (
        {"data": {"target_fpr": "x"}, "files": sent(("a.txt", b"a"))},
        422,
        "`target_fpr`: expected a number",
    ),
    "unknown target": (
        {"data": {"target_fpr": "0.3"}, "files": sent(("a.txt", b"a"))},
        422,
        "thresholds for 0.05, 0.1",
    ),
    "too many": ({"files": sent(*[("a.txt", b"a")] * 17)}, 413, "More than 16 files, at most 16 are read"),
    "long field": ({"data": {"target_fpr": "0" * 999}, "files": A}, 400, "not valid multipart"),
    "too large": ({"files": sent(("a.txt", b" " * 20_000_000))}, 413, "at most 20000000 are read"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_bad_form_is_refused_as_a_whole(client: httpx.Client, name: str) -> None:
    request, status, detail = BAD_FORMS[name]
    check_problem(client.post("/v1/detect/file", **request), status, detail)


def test_a_body_too_large_is_refused_before_it_is_read(url: str) -> None:
    with connected(url, "/v1/detect/file", {**FORM, "Content-Length": "20000001"}) as (_, answer):
        assert answer().status == 413


def test_hostile_files_stop_nobody_else(client: httpx.Client) -> None:
    before = client.get("/readyz").json()
    bombs = sent(
        ("a.docx", documents.docx_of(b" " * 49_000_000)),
        ("b.pdf", documents.pdf_of(b"BT /F1 1 Tf (ha) Tj ET\n" * 2_000_000)),
        ("c.pdf", documents.pdf_of(b"q " * 40_000_000)),
    )
    started = time.monotonic()
    answer = client.post("/v1/detect/file", files=bombs)
    assert time.monotonic() - started < 15
    assert [each["verdict"] for each in answer.json()["files"]] == [None] * 3
    assert client.post("/v1/detect", json={"text": TEXT}).status_code == 200
    assert client.get("/readyz").json() == before


@contextlib.contextmanager
def connected(url: str, path: str, headers: dict[str, str]) -> Iterator[tuple[socket.socket, Any]]:
    """A POST whose body goes over the socket by hand; the second value begins to read the answer."""
    host = urlsplit(url)
    with socket.create_connection((host.hostname, host.port), timeout=30) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: {host.netloc}\r\n{head}\r\n".encode())

        def answer() -> HTTPResponse:
            response = HTTPResponse(connection)
            response.begin()
            return response

        yield connection, answer


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


CHUNKED = {**NDJSON, "Transfer-Encoding": "chunked"}


def test_a_stream_is_answered_while_it_comes(url: str) -> None:
    with connected(url, "/v1/detect/stream", CHUNKED) as (connection, answer):
        connection.sendall(chunk(line(id=0, text=TEXT)))
        response = answer()
        for number in range(1, 4):  # each is sent only when the one before is answered
            assert json.loads(response.readline())["id"] == number - 1
            connection.sendall(chunk(line(id=number, text=TEXT)))
        connection.sendall(chunk(b""))
        assert json.loads(response.readline())["id"] == 3
        assert response.read() == b""
        assert response.getheader("content-type") == "application/x-ndjson"


def test_a_long_stream_is_answered_in_order_and_bad_lines_by_themselves(client: httpx.Client) -> None:
    rng = random.Random(4)
    lines = [line(id=i, text=tiny_models.text("ai", rng, rng.randint(5, 200))) for i in range(600)]
    lines[100], lines[500] = b"torn {\n", line(text="")
    answer = client.post("/v1/detect/stream?target_fpr=0.1&return_spans=true", content=b"".join(lines), headers=NDJSON)
    found = [json.loads(each) for each in answer.text.splitlines()]
    assert [each["line"] for each in found] == list(range(1, 601))
    assert {i for i, each in enumerate(found) if "problem" in each} == {100, 500}
    assert all(each["id"] == i for i, each in enumerate(found) if "verdict" in each)
    assert all(each["verdict"]["target_fpr"] == 0.1 and each["verdict"]["spans"] for each in found if "verdict" in each)


@pytest.mark.parametrize(
    ("path", "headers", "status", "detail"),
    [
        ("/v1/detect/stream", {"Content-Type": "application/json"}, 415, "Content-Type: application/x-ndjson"),
        ("/v1/detect/stream?target_fpr=0.3", NDJSON, 422, "thresholds for 0.05, 0.1"),
        ("/v1/detect/stream?target_fpr=x", NDJSON, 422, "`target_fpr`: expected a number"),
        ("/v1/detect/stream?return_spans=perhaps", NDJSON, 422, "`return_spans`: expected true or false"),
        (f"/v1/detect/stream?text={CANARY}", NDJSON, 422, "unknown field `text`: expected target_fpr"),
    ],
)
def test_a_stream_that_asks_for_what_there_is_not_is_refused(
    client: httpx.Client, path: str, headers: dict[str, str], status: int, detail: str
) -> None:
    check_problem(client.post(path, content=line(text=CANARY), headers=headers), status, detail)


def test_a_stream_that_comes_too_far_ahead_is_ended_with_a_line_that_says_so(client: httpx.Client) -> None:
    text = tiny_models.text("ai", random.Random(5), words=15_000)
    answer = client.post("/v1/detect/stream", content=line(text=text) * 40, headers=NDJSON)
    *_, last = [json.loads(each) for each in answer.text.splitlines()]
    assert answer.status_code == 200
    assert last["problem"]["status"] == 413
    assert last["line"] < 40
    assert f"More than {BACKLOG} bytes came ahead" in last["problem"]["detail"]


def test_a_client_that_leaves_a_stream_leaves_the_replica_free(url: str, client: httpx.Client) -> None:
    long = line(text=tiny_models.text("ai", random.Random(6), words=20_000), id="x")
    for _ in range(25):  # more than a replica takes at once
        with connected(url, "/v1/detect/stream", CHUNKED) as (connection, answer):
            connection.sendall(chunk(long * 3))
            answer()
    assert client.post("/v1/detect", json={"text": TEXT}, timeout=30).status_code == 200


def test_what_explains_a_text_is_what_its_score_loses_without_each_sentence(
    client: httpx.Client, tiny_bundle: Path
) -> None:
    text = tiny_models.text("ai", random.Random(3), 60)
    [verdict] = client.post("/v1/detect", json={"text": text, "explain": True}).json()["verdicts"]
    detector = Detector.load(tiny_bundle)
    expected = detector.spans(detector.read([text])[0], "occlusion")
    assert [span["effect"] for span in verdict["spans"]] == pytest.approx([span.effect for span in expected], abs=1e-4)
    assert any(abs(span["effect"]) > 1e-3 for span in verdict["spans"])


def test_an_explanation_that_would_read_too_much_is_refused(client: httpx.Client) -> None:
    text = tiny_models.text("ai", random.Random(3), 10_000)
    answer = client.post("/v1/detect", json={"text": text, "explain": True})
    check_problem(answer, 413, "at most 400000 are read: send shorter texts, or leave `explain` out")


CLASSIFY = """
import json, sys
from huggingface_hub import InferenceClient
client = InferenceClient(sys.argv[1])
text = sys.stdin.read()
both = client.text_classification(text)
one = client.text_classification(text, top_k=1, function_to_apply="softmax")
print(json.dumps([[(each.label, each.score) for each in found] for found in (both, one)]))
"""


def test_the_client_of_hugging_face_classifies_a_text(url: str, tiny_bundle: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}  # the client asks nobody else for anything
    command = [sys.executable, "-c", CLASSIFY, f"{url}/predict"]
    done = subprocess.run(command, input=TEXT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    both, one = json.loads(done.stdout)
    [verdict] = Detector.load(tiny_bundle).detect([TEXT])
    assert dict(both) == pytest.approx({"ai": verdict.probability, "human": 1 - verdict.probability}, abs=1e-5)
    assert both[0][1] >= both[1][1]
    assert one == both[:1]


def test_several_inputs_are_classified_in_their_order(client: httpx.Client) -> None:
    texts = [tiny_models.text(kind, random.Random(i), 60) for i, kind in enumerate(["human", "ai"] * 2)]
    found = client.post("/predict", json={"inputs": texts, "parameters": {"top_k": 5}}).json()
    verdicts = client.post("/v1/detect", json={"texts": texts}).json()["verdicts"]
    scores = [{each["label"]: each["score"] for each in labels}["ai"] for labels in found]
    assert scores == pytest.approx([verdict["probability"] for verdict in verdicts], abs=1e-5)
    [[alone, _]] = client.post("/predict", json={"inputs": [texts[0]]}).json()
    assert alone == pytest.approx(found[0][0])


BAD_INPUTS = {
    "nothing": ({}, 422, "`inputs` is missing"),
    "a number": ({"inputs": 5}, 422, "`inputs`: expected a string, found a number"),
    "a number among": ({"inputs": [CANARY, 5]}, 422, "`inputs`[1]: expected a string, found a number"),
    "none": ({"inputs": []}, 422, "`inputs` is empty"),
    "an empty one": ({"inputs": ["a", ""]}, 422, "a text is empty"),
    "too many": ({"inputs": ["a"] * 257}, 413, "`inputs` has 257, at most 256 are read"),
    "none of": ({"inputs": "a", "parameters": {"top_k": 0}}, 422, "`parameters`[top_k]: expected a whole number, at"),
    "logits": (
        {"inputs": "a", "parameters": {"function_to_apply": "none"}},
        422,
        "`parameters`[function_to_apply]: expected 'sigmoid' or 'softmax'",
    ),
    "unknown": (
        {"inputs": "a", "parameters": {"temperature": 1}},
        422,
        "unknown field `temperature`: expected top_k or",
    ),
    "other form": ({"text": CANARY}, 422, "unknown field `text`: expected inputs or parameters"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_are_refused(client: httpx.Client, name: str) -> None:
    body, status, detail = BAD_INPUTS[name]
    check_problem(client.post("/predict", json=body), status, detail)


@pytest.mark.parametrize(
    ("method", "path", "request_"),
    [
        ("POST", "/v1/detect", {"json": {"text": TEXT}}),
        ("POST", "/v1/detect", {"content": b"{"}),
        ("POST", "/v1/detect/file", {"files": sent(("a.txt", b"a"))}),
        ("POST", "/v1/detect/stream", {"content": line(text="a"), "headers": NDJSON}),
        ("POST", "/predict", {"json": {"inputs": "a"}}),
        ("GET", "/v1/model", {}),
        ("GET", "/nothing", {}),
    ],
)
def test_every_answer_names_request_model_and_time(
    client: httpx.Client, method: str, path: str, request_: dict[str, Any]
) -> None:
    headers = client.request(method, path, **request_).headers
    assert headers["x-model-version"] == client.get("/readyz").json()["model_version"]
    assert float(headers["server-timing"].removeprefix("replica;dur=")) >= 0
    assert len(headers.get_list("x-request-id")) == 1


def test_no_word_of_a_file_or_a_stream_reaches_a_log_or_a_disk(
    cluster: Path, client: httpx.Client, store: Storage
) -> None:
    text = f"{CANARY} {TEXT}"
    files = sent(
        ("a.txt", text.encode()),
        ("b.docx", documents.docx(text)),
        ("c.pdf", documents.pdf(text)),
        (f"{CANARY}.pdf", b"%PDF-1.4 " + text.encode()),
        (f"{CANARY}.docx", documents.docx_of(text.encode())),
    )
    answers = [
        client.post("/v1/detect/file", files=files),
        client.post(f"/v1/detect/file?{CANARY}", files=files, data={"return_spans": CANARY}),
        client.post("/v1/detect/stream", content=line(text=text) + text.encode() + b"\n", headers=NDJSON),
        client.post("/predict", json={"inputs": text, "parameters": {CANARY: 1}}),
        client.post("/predict", json={"inputs": text}),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 200, 422, 200]
    assert all(CANARY not in each.text for each in answers[1:3])
    time.sleep(2)
    written = b"".join(f.read_bytes() for root in (cluster, Path(store.root)) for f in root.rglob("*") if f.is_file())
    assert b"POST /v1/detect/stream 200" in written
    assert CANARY.encode() not in written


@pytest.mark.slow
def test_a_stream_longer_than_the_proxy_allows_ends_in_order(store: Storage, tmp_path: Path) -> None:
    with foreground(store, tmp_path / "log", "serve.request_timeout_s=3") as (_, url):
        for headers, ends in ((CHUNKED, True), ({**CHUNKED, "X-Request-Timeout-Seconds": "0"}, False)):
            with connected(url, "/v1/detect/stream", headers) as (connection, answer):
                connection.sendall(chunk(line(text=TEXT)))
                response = answer()
                assert "verdict" in json.loads(response.readline())
                time.sleep(8)
                if ends:
                    assert json.loads(response.readline())["problem"]["status"] == 503
                    assert response.read() == b""
                else:
                    connection.sendall(chunk(line(text=TEXT)) + chunk(b""))
                    assert "verdict" in json.loads(response.readline())
