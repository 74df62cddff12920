"""Requests nobody thought of: made from the specification, and bodies torn at random. No 5xx, no word of internals."""

from __future__ import annotations

import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks

from tests.fixtures import documents, tiny_models

CANARY = "canary6b1e"
TEXT = f"{CANARY} {tiny_models.text('human', random.Random(1), 30)}"
INTERNALS = re.compile(
    rb"Traceback|\.py\b|site-packages|pydantic|starlette|fastapi|0x[0-9a-f]{8}|ray\.|Errno", re.ASCII
)
TOKENS = [
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\0", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 400, b"[" * 2000, b"\xf0\x9f\x99\x82"),
    *(b'"text"', b'"texts"', b'"inputs"', b'"target_fpr"', b'"explain"', b'"id"', b'"parameters"', b'"top_k"'),
    *(b"--b", b"--b--", b"\r\n\r\n", b"filename=", b"Content-Disposition: form-data; ", b"PK\x03\x04", b"%PDF-"),
]


def form(*files: tuple[str, bytes], **fields: str) -> bytes:
    """A multipart body with the boundary `b`."""
    parts = [f'name="{name}"'.encode() + b"\r\n\r\n" + value.encode() for name, value in fields.items()]
    parts += [f'name="files"; filename="{name}"'.encode() + b"\r\n\r\n" + content for name, content in files]
    return b"".join(b"--b\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--b--\r\n"


JSON, NDJSON, FORM = "application/json", "application/x-ndjson", "multipart/form-data; boundary=b"
# (path, type, body)
SEEDS: list[tuple[str, str, bytes]] = [
    ("/v1/detect", JSON, json.dumps({"text": TEXT, "target_fpr": 0.05, "return_spans": True}).encode()),
    ("/v1/detect", JSON, json.dumps({"texts": [TEXT, "b"], "explain": True}).encode()),
    ("/predict", JSON, json.dumps({"inputs": [TEXT, "b"], "parameters": {"top_k": 1}}).encode()),
    ("/v1/detect/stream", NDJSON, b"\n".join(json.dumps({"id": i, "text": TEXT}).encode() for i in range(5))),
    ("/v1/detect/file", FORM, form(("a.txt", TEXT.encode()), ("b.md", b"b"), target_fpr="0.1", return_spans="true")),
    ("/v1/detect/file", FORM, form(("a.docx", documents.docx(TEXT)))),
    ("/v1/detect/file", FORM, form(("a.pdf", documents.pdf(TEXT)))),
]
TRIES = 5
PARSED = 0.02  # share of requests with a Word or PDF file, for each takes a process


def torn(rng: random.Random, body: bytes) -> bytes:
    """A body with a few changes: bytes changed, cut out, doubled, or a token put in."""
    data = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 2, 10, 100]))
        kind = rng.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = data[at:end]
        elif kind == 3:
            data[at:at] = rng.choice(TOKENS)
        else:
            data[at:end] = rng.choice(TOKENS)
    return bytes(data)


def seed_of(rng: random.Random) -> tuple[str, str, bytes]:
    return rng.choice(SEEDS[-2:] if rng.random() < PARSED else SEEDS[:-2])


def ask(client: httpx.Client, seed: int) -> int:
    """Send a torn request and look at what comes back. Returns its status."""
    rng = random.Random(seed)
    path, kind, body = seed_of(rng)
    content = torn(rng, body)
    for _ in range(TRIES):
        answer = client.post(path, content=content, headers={"Content-Type": kind})
        if answer.status_code != 503:  # a busy service says so, and when to come back
            break
        time.sleep(int(answer.headers["retry-after"]))
    assert answer.status_code < 500, (seed, answer.status_code, answer.text[:300])
    assert not INTERNALS.search(answer.content), (seed, answer.text[:300])
    assert CANARY not in answer.text, seed
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json", seed
    for line in answer.text.splitlines() if path.endswith("stream") and answer.status_code == 200 else ():
        assert json.loads(line).get("problem", {"status": 0})["status"] < 500, (seed, line)
    return answer.status_code


def fuzz(client: httpx.Client, seeds: range) -> set[int]:
    with ThreadPoolExecutor(4) as pool:
        return set(pool.map(lambda seed: ask(client, seed), seeds))


def test_torn_bodies_are_answered_without_internals(client: httpx.Client) -> None:
    assert {200, 400, 422} <= fuzz(client, range(300))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_torn_bodies_are_answered_without_internals(client: httpx.Client) -> None:
    assert {200, 400, 422} <= fuzz(client, range(1000, 11_000))


CONFORM = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def api(url: str) -> schemathesis.BaseSchema:
    """The specification that the service gives of itself."""
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@schemathesis.serializer(NDJSON)
def lines(context: schemathesis.SerializationContext, value: object) -> bytes:
    return (
        value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else json.dumps(value).encode()
    )


def answers_conform(api: schemathesis.BaseSchema, path: str, mode: schemathesis.GenerationMode, examples: int) -> None:
    """Ask a route what its specification allows (in the negative mode: forbids), and look at the answers."""
    [operation] = [each for each in (found.ok() for found in api.get_all_operations()) if each.path == path]

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def answer_conforms(case: schemathesis.Case) -> None:
        response = case.call(timeout=60)
        assert not INTERNALS.search(response.content)
        case.validate_response(response, checks=CONFORM)

    answer_conforms()


ROUTES = [
    *((path, schemathesis.GenerationMode.POSITIVE) for path in ("/v1/model", "/healthz", "/readyz")),
    *((path, mode) for path in sorted({path for path, _, _ in SEEDS}) for mode in schemathesis.GenerationMode),
]


@pytest.mark.parametrize(("path", "mode"), ROUTES)
def test_answers_are_those_of_the_specification(
    api: schemathesis.BaseSchema, path: str, mode: schemathesis.GenerationMode
) -> None:
    answers_conform(api, path, mode, 25)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("path", "mode"), ROUTES)
def test_a_thousand_answers_are_those_of_the_specification(
    api: schemathesis.BaseSchema, path: str, mode: schemathesis.GenerationMode
) -> None:
    answers_conform(api, path, mode, 1000)
