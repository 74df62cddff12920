"""The HTTP API in process: errors, limits, routes and the OpenAPI description."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import numpy as np
import pytest
import torch

from detect_ai.calibration.domains import calibrate_population
from detect_ai.core.config import ServeConfig
from detect_ai.detector.detector import Detector
from detect_ai.models.batch import Batch
from detect_ai.schemas import FileOptions
from serve_app.api.app import create_app, labels
from serve_app.api.uploads import detect_files
from serve_app.auth.access import FEEDBACK, AccessControl
from serve_app.auth.api_keys import KeyRing, Scope, create_key
from serve_app.engine.batcher import ClosedError
from serve_app.engine.engine import READERS, Engine, Options, RequestInfo
from serve_app.engine.metrics import METRICS, Record, discard
from serve_app.engine.versions import Versions
from serve_app.errors import QueueFullError
from serve_app.files import reader
from serve_app.files.reader import Upload
from tests.fixtures import documents
from tests.unit.serve_app.auth.test_rate_limit import Cluster

Scenario = Callable[[httpx.AsyncClient, Engine], Awaitable[Any]]
CANARY = "canary-4f1d the council met"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


class Broken:
    """A backend that fails, with a part of the text in its message."""

    has_lanes = False

    def log_odds(self, batch: Batch) -> Any:
        raise RuntimeError(f"cannot read {CANARY}")


class Zeros:
    """A backend with scores in the middle of the calibration scores, where no probability is close to 0 or 1."""

    has_lanes = False

    def log_odds(self, batch: Batch) -> Any:
        return np.zeros(len(batch.lengths))


class Slow(Zeros):
    def log_odds(self, batch: Batch) -> Any:
        time.sleep(0.3)
        return super().log_odds(batch)


@pytest.fixture
def detector(tiny_bundle: Path) -> Detector:
    return Detector.load(tiny_bundle)


class Recorded(list[tuple[str, float, tuple[str, ...]]]):
    """Metrics as recorded, with the values of their labels; rejects labels that a metric does not have."""

    def __call__(self, metric: str, value: float = 1, **labels: str) -> None:
        assert set(labels) == set(METRICS[metric].labels)
        self.append((metric, value, tuple(labels[name] for name in METRICS[metric].labels)))

    def of(self, metric: str) -> dict[tuple[str, ...], float]:
        """The sum of what was recorded of one metric, by its labels."""
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for name, value, given in self:
            if name == metric:
                sums[given] += value
        return sums


def access(read_keys: Callable[[], KeyRing] | None = None) -> AccessControl:
    return AccessControl(Cluster().replica(), read_keys=read_keys)


def ask(
    detector: Detector,
    scenario: Scenario,
    control: AccessControl | None = None,
    record: Record = discard,
    **options: Any,
) -> Any:
    async def main() -> Any:
        engine = Engine(detector, ServeConfig(**options), record)
        app = create_app(Versions(engine), control or access())
        engine.batcher.start()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            try:
                return await scenario(client, engine)
            finally:
                await engine.batcher.close()

    return asyncio.run(asyncio.wait_for(main(), 60))


def post(path: str = "/v1/detect", **body: Any) -> Scenario:
    return lambda client, _: client.post(path, json=body)


def get(path: str, **options: Any) -> Scenario:
    return lambda client, _: client.get(path, **options)


def check_problem(response: httpx.Response, status: int, *named: str) -> None:
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status), problem
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert all(name in problem["detail"] for name in named), problem["detail"]
    assert CANARY not in response.text


# name: (body, status, what the detail names)
BAD = {
    "no text": ({}, 422, ["text", "texts"]),
    "white space": ({"texts": ["a", " \n\t"]}, 422, ["empty"]),
    "no texts": ({"texts": []}, 422, ["`texts`"]),
    "both": ({"text": CANARY, "texts": [CANARY]}, 422, ["exactly one"]),
    "a number": ({"text": 5}, 422, ["`text`", "string"]),
    "mixed list": ({"texts": [CANARY, 5]}, 422, ["`texts.1`", "string"]),
    "no object": ([CANARY], 422, ["the body"]),
    "unknown field": ({"text": "a", "threshold": 1}, 422, ["`threshold`"]),
    "a text as field": ({CANARY: "a"}, 422, ["unknown name"]),
    "wrong flag": ({"text": CANARY, "return_spans": "yes"}, 422, ["`return_spans`", "boolean"]),
    "unknown target": ({"text": CANARY, "target_fpr": 0.3}, 422, ["0.05, 0.1"]),
    "almost a target": ({"text": CANARY, "target_fpr": 0.050000001}, 422, ["0.050000001"]),
    "NaN": (b'{"text":"a","target_fpr":NaN}', 422, ["`target_fpr` expected a number above 0 and below 1"]),
    "infinity": (b'{"text":"a","target_fpr":1e999}', 422, ["`target_fpr` expected a number above 0 and below 1"]),
    "certain prior": ({"text": CANARY, "prevalence": 1}, 422, ["`prevalence` expected a number above 0 and below 1"]),
    "NaN prior": (b'{"text":"a","prevalence":NaN}', 422, ["`prevalence` expected a number above 0 and below 1"]),
    "no body": (b"", 422, ["the body"]),
    "bad JSON": (f'{{"text": "{CANARY}'.encode(), 400, ["not valid JSON"]),
    "deep JSON": (b"[" * 100_000, 400, ["JSON"]),
    "invalid UTF-8": (b'{"text": "ab\xff"}', 400, ["UTF-8"]),
    "too many texts": ({"texts": [CANARY] * 257}, 413, ["257", "256"]),
    "too many characters": ({"text": CANARY * 10_000}, 413, ["200000"]),
    "too many bytes": (b" " * 1_000_001, 413, ["1000000"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies_are_problems_without_the_text(detector: Detector, name: str) -> None:
    body, status, named = BAD[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = ask(detector, lambda client, _: client.post("/v1/detect", content=content, headers=JSON))
    check_problem(response, status, *named)


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"Content-Type": "text/plain"}, b"{}"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"text=a"),
        ({**JSON, "Content-Encoding": "gzip"}, gzip.compress(b'{"text": "a"}', mtime=0)),
    ],
)
def test_other_types_and_encodings_are_415(detector: Detector, headers: dict[str, str], content: bytes) -> None:
    response = ask(detector, lambda client, _: client.post("/v1/detect", content=content, headers=headers))
    check_problem(response, 415, "Content-")


@pytest.mark.parametrize("body", [b'\xef\xbb\xbf{"text": "a"}', rb'{"text": "\ud83d\ude00 \u0000 \ufffe \ud800"}'])
def test_a_byte_order_mark_and_odd_escapes_are_read(detector: Detector, body: bytes) -> None:
    response = ask(detector, lambda client, _: client.post("/v1/detect", content=body, headers=JSON))
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", f"/v2/{CANARY}", 404), ("GET", f"/v1/detect?text={CANARY}", 405), ("GET", "/static/..%2fapp.py", 404)],
)
def test_routing_errors_are_problems(detector: Detector, method: str, path: str, status: int) -> None:
    check_problem(ask(detector, lambda client, _: client.request(method, path)), status)


@pytest.mark.parametrize("path", ["/", "/docs", "/card", "/healthz", "/readyz", "/v1/model", "/openapi.json"])
def test_head_is_answered_like_get(detector: Detector, path: str) -> None:
    response = ask(detector, lambda client, _: client.head(path))
    assert response.status_code == ask(detector, get(path)).status_code


def test_internal_errors_name_no_internals(detector: Detector, serve_log: pytest.LogCaptureFixture) -> None:
    detector.backend = Broken()
    response = ask(detector, post(text=CANARY))
    check_problem(response, 500)
    (logged,) = [serve_log.handler.format(record) for record in serve_log.records if record.levelname == "ERROR"]
    assert response.json()["request_id"] in logged
    assert "log_odds" in logged
    assert CANARY not in serve_log.text


def test_a_request_over_its_time_is_a_503(detector: Detector) -> None:
    detector.backend = Slow()
    response = ask(detector, post(text=CANARY), request_timeout_s=0.05)
    check_problem(response, 503, "0.05 seconds")
    assert response.headers["retry-after"] == "1"


def test_a_body_that_never_comes_is_a_503(detector: Detector) -> None:
    async def body(start: bytes) -> AsyncIterator[bytes]:
        yield start
        await asyncio.sleep(10)

    for path, headers in (("/v1/detect", JSON), ("/predict", JSON), ("/v1/detect/file", FORM)):
        send = {"content": body(b"--b" if headers is FORM else b'{"text": "'), "headers": headers}
        response = ask(detector, lambda client, _, p=path, s=send: client.post(p, **s), request_timeout_s=0.1)
        check_problem(response, 503, "0.1 seconds")


def test_uploads_stay_in_memory(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda file: pytest.fail("an upload went to disk"))
    files = [("files", ("a.txt", b"a" * 2_000_000))]
    assert ask(detector, lambda client, _: client.post("/v1/detect/file", files=files)).status_code == 200


def test_one_caller_has_half_of_the_room_before_the_queue(detector: Detector) -> None:
    engine = Engine(detector, ServeConfig(max_wait_s=5))
    engine._char_s = 1.0
    engine._unread_chars["greedy"] = 6 * READERS // 2
    engine.require_room(1, "other")
    with pytest.raises(QueueFullError):
        engine.require_room(1, "greedy")


def test_a_full_queue_is_a_503(detector: Detector) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> tuple[httpx.Response, float]:
        engine._unread_chars["another"], engine._char_s = 10**6, 1e-3
        headers = {**JSON, "Content-Length": "4000"}
        engine.batcher.measure([np.zeros(1000, np.int32)], 1.0, 1)
        return await client.post("/v1/detect", content=body(), headers=headers), engine.batcher.demand()

    response, demand = ask(detector, scenario)
    check_problem(response, 503)
    assert int(response.headers["Retry-After"]) > 5
    assert demand > 0  # the autoscaler sees it


def test_a_closed_replica_is_not_ready(detector: Detector) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> list[int]:
        before = await client.get("/readyz")
        await engine.batcher.close()
        after = [await client.get("/readyz"), await client.post("/v1/detect", json={"text": "a"})]
        return [before.status_code, *(response.status_code for response in after)]

    assert ask(detector, scenario) == [200, 503, 503]


@pytest.mark.parametrize("options", [{}, {"return_spans": True}, {"explain": True}])
def test_the_service_agrees_with_the_detector(detector: Detector, options: dict[str, bool]) -> None:
    texts = ["The coun\u200bcil met. It was Tuesday! " * 9, "moreover delve", "Ω ω. " * 40, "a" * 3000]
    answer = ask(detector, post(texts=texts, target_fpr=0.1, **options)).json()
    for verdict, expected in zip(answer["verdicts"], detector.detect(texts, 0.1, bool(options)), strict=True):
        assert verdict["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert (verdict["label"], verdict["num_windows"]) == (expected.label, expected.num_windows)
        assert len(verdict["spans"] or []) == len(expected.spans or [])
    if options.get("explain"):
        expected_effects = [span.effect for span in detector.spans(detector.read(texts[:1])[0], True)]
        effects = [span["effect"] for span in answer["verdicts"][0]["spans"]]
        assert effects == pytest.approx(expected_effects, abs=1e-4)


def test_verdicts_are_at_the_prevalence_of_the_request(detector: Detector) -> None:
    text, detector.backend = "The council met on Tuesday. " * 9, Zeros()
    [expected] = detector.detect([text], None, True, 0.05)
    [base] = ask(detector, post(text=text)).json()["verdicts"]
    [verdict] = ask(detector, post(text=text, prevalence=0.05, return_spans=True)).json()["verdicts"]
    sent = {"files": [("files", ("a.txt", text.encode()))], "data": {"prevalence": "0.05"}}
    [file] = ask(detector, lambda client, _: client.post("/v1/detect/file", **sent)).json()["files"]
    for found in (verdict, file["verdict"]):
        assert (found["prevalence"], found["threshold"], found["ppv"]) == (0.05, expected.threshold, expected.ppv)
        assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert (found["label"], found["p_value"]) == (base["label"], base["p_value"])
    assert base["prevalence"] == 0.5
    spans = [span.probability for span in expected.spans or []]
    assert [span["probability"] for span in verdict["spans"]] == pytest.approx(spans, abs=1e-5)
    bad = {**sent, "data": {"prevalence": "often"}}
    check_problem(
        ask(detector, lambda client, _: client.post("/v1/detect/file", **bad)), 422, "`prevalence`", "above 0"
    )


def test_a_lone_request_switches_threads_twice(detector: Detector) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine) -> tuple[int, int]:
        jobs: list[Any] = []
        for executor in (engine.model, engine.teams, engine.readers):
            executor.submit = lambda *job, submit=executor.submit: jobs.append(job) or submit(*job)
        asyncio.get_running_loop().set_default_executor(engine.readers)  # nothing may use another executor
        await client.post("/v1/detect", json={"text": "the council met near the bridge " * 20})
        alone = len(jobs)
        bodies = [{"text": "the council met near the bridge " * 20}] * 3
        await asyncio.gather(*(client.post("/v1/detect", json=body) for body in bodies))
        return alone, len(jobs) - alone

    alone, together = ask(detector, scenario, batch_tokens=4096)
    assert alone == 1  # to the model thread and back
    assert together > 3


def test_batches_of_two_threads_share_one_team(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    teams, window_scores = set(), detector.window_scores

    def scored(rows: Any) -> Any:
        if torch.get_num_threads() == 2:
            teams.add(threading.get_ident())
        return window_scores(rows)

    async def scenario(client: httpx.AsyncClient, _: Engine) -> None:
        body = {"text": "the council met near the bridge " * 20}
        for together in (8, 1, 1, 8, 1, 1):
            await asyncio.gather(*(client.post("/v1/detect", json=body) for _ in range(together)))

    monkeypatch.setattr(detector, "window_scores", scored)
    ask(detector, scenario, threads_per_replica=2)
    assert len(teams) == 1


def test_warm_up_prepares_all_lengths_with_all_threads(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    warm_up = detector.backend.warm_up
    monkeypatch.setattr(
        detector.backend,
        "warm_up",
        lambda tokens: calls.append((tokens, torch.get_num_threads())) or warm_up(tokens),
        raising=False,
    )
    Engine(detector, ServeConfig(threads_per_replica=2)).warm_up()
    assert calls == [(detector.spec.window, 2)]


@pytest.mark.parametrize(
    ("options", "max_tokens", "status"),
    [
        ({}, 120, 200),
        ({}, 119, 413),
        ({"return_spans": True}, 460, 200),  # each sentence is read with its neighbours: three times the text
        ({"return_spans": True}, 459, 413),
        ({"explain": True}, 1900, 200),  # and once more for each sentence
        ({"explain": True}, 1899, 413),
    ],
)
def test_the_token_limit_counts_spans_and_explanations(
    detector: Detector, options: dict[str, bool], max_tokens: int, status: int
) -> None:
    text = "The council met near the bridge on Tuesday. " * 12
    assert len(detector.read([text])[0].input_ids) == 120
    assert ask(detector, post(text=text, **options), max_tokens=max_tokens).status_code == status


@pytest.mark.parametrize(("text", "status"), [("a" * 101, 413), ("a" * 100, 200), ("a\u200b" * 100, 200)])
def test_the_character_limit_counts_normalised_text(detector: Detector, text: str, status: int) -> None:
    assert ask(detector, post(text=text), max_chars=100).status_code == status


@pytest.mark.parametrize("text", ["a" * 401, "\ufdfa" * 23])  # U+FDFA becomes 18 characters
def test_text_that_expands_too_far_is_not_normalised(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for module in ("engine.engine", "api.uploads"):
        monkeypatch.setattr(f"serve_app.{module}.normalise", lambda text: pytest.fail("it was normalised"))
    check_problem(ask(detector, post(text=text), max_chars=100), 413)
    files = [("files", ("a.txt", text.encode()))]
    [file] = ask(detector, lambda client, _: client.post("/v1/detect/file", files=files), max_chars=100).json()["files"]
    assert file["problem"]["status"] == 413


def test_refused_tokens_are_returned_to_the_rate(detector: Detector) -> None:
    spent: list[int] = []
    files = [Upload("a.exe", b"MZ"), Upload("b.txt", b"the council"), Upload("c.txt", b"the bridge")]

    async def scenario(_: httpx.AsyncClient, engine: Engine) -> None:
        for some in (files[:1], files[:2], files):
            await detect_files(engine, some, FileOptions(), RequestInfo("request-1", "", spent.append))
        engine.batcher.scores = AsyncMock(side_effect=ClosedError)
        info = RequestInfo("request-2", "", spent.append)
        with pytest.raises(ClosedError):
            await engine.run(lambda: engine.encode(["a " * 3000] * 3, Options()), list, 9000, info)

    ask(detector, scenario)
    assert spent[:3] == [0, 2, 4]
    assert spent[3] == -spent[4] >= 9000


def test_a_client_that_disconnects_is_no_error(detector: Detector, serve_log: pytest.LogCaptureFixture) -> None:
    recorded = Recorded()

    async def scenario(_: httpx.AsyncClient, engine: Engine) -> None:
        async def gone() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            raise AssertionError("it was answered")

        head = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/detect", "headers": head, "query_string": b""}
        await create_app(Versions(engine), access())(scope, gone, send)

    ask(detector, scenario, record=recorded)
    assert {record.levelno for record in serve_log.records} == {logging.INFO}
    assert recorded.of("requests") == {("/v1/detect", "499"): 1}


def test_requests_verdicts_and_problems_are_counted(detector: Detector) -> None:
    recorded = Recorded()

    async def scenario(client: httpx.AsyncClient, _: Engine) -> None:
        for text in (5, "\u200bthe council met near the bridge " * 20, "short"):
            await client.post("/v1/detect", json={"text": text})
        await client.get(f"/{CANARY}")

    ask(detector, scenario, record=recorded)
    version = detector.version
    assert recorded.of("requests") == {("/v1/detect", "422"): 1, ("/v1/detect", "200"): 2, ("other", "404"): 1}
    assert recorded.of("problems") == {("invalid",): 1}  # no wrong paths
    assert sum(recorded.of("texts").values()) == 2
    assert {labels[1:] for labels in recorded.of("texts")} == {("none", version)}
    assert recorded.of("abstentions")["too_short", version] == 1
    assert recorded.of("tampered_texts") == {("invisible",): 1}
    assert recorded.of("windows")[version,] >= 2
    assert recorded.of("key_requests") == {("anybody",): 3}
    assert recorded.of("key_tokens")["anybody",] > 60
    assert recorded.of("batch_tokens")["text",] > recorded.of("key_tokens")["anybody",]  # special tokens


@pytest.mark.parametrize("batch_tokens", [64, 16384])  # with short batches the request is queued
def test_phases_add_up_to_the_total(detector: Detector, batch_tokens: int) -> None:
    detector.backend, recorded = Slow(), Recorded()
    ask(detector, post(text="the council met"), record=recorded, batch_tokens=batch_tokens)
    seconds = {phase: value for (phase, *_), value in recorded.of("request_seconds").items()}
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert set(seconds) == {"read", "wait", "model", "respond"}
    assert seconds["model"] >= 0.3
    assert {labels[1:] for labels in recorded.of("request_seconds")} == {("short", detector.version)}


PROBLEMS = {
    "no_key": {"json": {"text": "a"}},
    "wrong_key": {"json": {"text": "a"}, "headers": {"Authorization": f"Bearer {CANARY}"}},
    "origin": {"json": {"text": "a"}, "headers": {"Origin": "https://evil.example"}},
    "media_type": {"content": b"a"},
    "malformed": {"content": b"{", "headers": JSON},
    "invalid": {"json": {"text": 5}},
    "too_large": {"json": {"texts": ["a"] * 257}},
    "internal": {"json": {"text": "broken"}},
    "timeout": {"json": {"text": "slow"}},
}


@pytest.mark.parametrize("reason", PROBLEMS)
def test_problems_are_counted_by_reason(detector: Detector, reason: str) -> None:
    recorded, limits = Recorded(), {"request_timeout_s": 0.1} if reason == "timeout" else {}
    if reason in ("internal", "timeout"):
        detector.backend = Broken() if reason == "internal" else Slow()
    control = access(KeyRing) if reason.endswith("key") else None
    ask(detector, lambda client, _: client.post("/v1/detect", **PROBLEMS[reason]), control, recorded, **limits)
    assert recorded.of("problems") == {(reason,): 1}


def test_usage_is_counted_by_key(detector: Detector) -> None:
    token, key = create_key("school")
    recorded, headers = Recorded(), {"Authorization": f"Bearer {token}"}
    request = {"json": {"text": "the council met near the bridge"}, "headers": headers}
    control = access(lambda: KeyRing([key]))
    ask(detector, lambda client, _: client.post("/v1/detect", **request), control, recorded)
    assert recorded.of("key_requests") == {(key.id,): 1}
    assert list(recorded.of("key_tokens")) == [(key.id,)]


def test_files_are_counted_with_their_final_verdicts(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, text = Recorded(), "the council met near the bridge " * 20
    monkeypatch.setattr(reader, "run_parser", lambda *_: {"text": text, "hidden": 10**4})
    files = [("a.docx", documents.docx(text)), ("b.txt", text.encode()), ("c.exe", b"MZ"), ("d.txt", b"")]
    sent = {"files": [("files", file) for file in files]}
    ask(detector, lambda client, _: client.post("/v1/detect/file", **sent), record=recorded)
    read = {("docx", "read"): 1, ("text", "read"): 1}
    assert recorded.of("files") == read | {("other", "media_type"): 1, ("text", "invalid"): 1}
    assert recorded.of("abstentions")["hidden_text", detector.version] == 1
    assert recorded.of("tampered_texts")["hidden",] == 1


def test_a_line_of_the_access_log_has_no_text(detector: Detector, serve_log: pytest.LogCaptureFixture) -> None:
    async def scenario(client: httpx.AsyncClient, _: Engine) -> None:
        await client.post(f"/v1/detect?{CANARY}", json={"text": CANARY})
        await client.get(f"/{CANARY}")

    ask(detector, scenario)
    usual = {*logging.makeLogRecord({}).__dict__, "asctime", "message"}
    lines = {record.getMessage().rpartition(" ")[0]: record.__dict__ for record in serve_log.records}
    assert list(lines) == ["POST /v1/detect 200", "GET other 404"]
    added = {name: value for name, value in lines["POST /v1/detect 200"].items() if name not in usual}
    assert added == {"key": "anybody", "model_version": detector.version, "tokens": added["tokens"]}
    assert added["tokens"] > 0


def test_predict_ranks_ai_first_only_for_the_verdict_ai(detector: Detector) -> None:
    verdict = detector.detect(["the council met near the bridge " * 9])[0]
    for label, probability, ranked in (
        ("ai", 0.9, [("ai", 0.9), ("human", 0.1)]),
        ("uncertain", 0.9, [("human", 0.5), ("ai", 0.5)]),
        ("human", 0.6, [("human", 0.5), ("ai", 0.5)]),
        ("uncertain", 0.2, [("human", 0.8), ("ai", 0.2)]),
    ):
        both = labels(verdict.model_copy(update={"label": label, "probability": probability}))
        assert [item.label for item in both] == [name for name, _ in ranked]
        assert [item.score for item in both] == pytest.approx([score for _, score in ranked])


@pytest.mark.parametrize(
    ("body", "num_labels"),
    [
        ({"inputs": "a", "options": {"wait_for_model": True}}, 2),
        ({"inputs": ["a", "b"], "parameters": {"truncation": True, "function_to_apply": "softmax"}}, 2),
        ({"inputs": "a", "parameters": {"top_k": 1}}, 1),
        ({"inputs": "a", "parameters": {"return_all_scores": False}}, 1),
    ],
)
def test_predict_accepts_what_hugging_face_sends(detector: Detector, body: dict[str, Any], num_labels: int) -> None:
    answer = ask(detector, post("/predict", **body)).json()
    assert [len(labels) for labels in answer] == [num_labels] * len(answer)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"inputs": []}, "`inputs`"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "`parameters.top_k`"),
        ({"inputs": "a", "parameters": {"function_to_apply": "none"}}, "`parameters.function_to_apply`"),
        ({"inputs": "a", "parameters": {"temperature": 1}}, "`temperature`"),
        ({"text": CANARY}, "`inputs`"),
    ],
)
def test_predict_refuses_other_bodies(detector: Detector, body: dict[str, Any], named: str) -> None:
    check_problem(ask(detector, post("/predict", **body)), 422, named)


def test_a_form_in_another_charset_is_refused(detector: Detector, caplog: pytest.LogCaptureFixture) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="+2AA-.txt"\r\n\r\nThe council\r\n--b--\r\n'

    def send(content: bytes, charset: str = "") -> httpx.Response:
        sent = {"content": content, "headers": {"Content-Type": FORM["Content-Type"] + charset}}
        return ask(detector, lambda client, _: client.post("/v1/detect/file", **sent))

    check_problem(send(body, "; charset=utf-7"), 415, "charset")
    assert send(body, "; charset=UTF-8").status_code == 200
    check_problem(send('--b\r\nContent-Disposition: form-data; name="a"\r\nZoë\r\n\r\n--b--\r\n'.encode()), 400)
    assert [record for record in caplog.records if record.name.startswith("python_multipart")] == []


def test_the_model_route_reports_thresholds_and_limits(detector: Detector) -> None:
    info = ask(detector, get("/v1/model")).json()
    assert info["model_version"] == detector.version
    assert [threshold["target_fpr"] for threshold in info["thresholds"]] == [0.05, 0.1]
    for threshold in info["thresholds"]:
        assert 0 < threshold["fpr_upper_bound"] < threshold["confidence"] < 1
    assert {"max_texts": 256, "max_chars": 200_000, "max_body_bytes": 1_000_000}.items() <= info["limits"].items()
    verdict = ask(detector, post(text="the council met", target_fpr=0.1)).json()["verdicts"][0]
    assert verdict["threshold"] == info["thresholds"][1]["probability"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("rebound.example:8000", 421), ("", 421)],
)
def test_without_keys_only_loopback_hosts_are_answered(detector: Detector, host: str, status: int) -> None:
    request = get("/v1/model", headers={"Host": host})
    assert ask(detector, request).status_code == status
    assert ask(detector, request, host="0.0.0.0").status_code == 200


def test_cors_admits_only_configured_origins(detector: Detector) -> None:
    def allowed(origin: str, **options: Any) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        control = access(KeyRing)
        response = ask(detector, lambda client, _: client.options("/v1/detect", headers=headers), control, **options)
        return response.headers.get("access-control-allow-origin")

    school = "https://school.example"
    assert allowed(school) is None
    assert allowed(school, cors_origins=[school]) == school
    assert allowed("https://other.example", cors_origins=[school]) is None


def test_the_status_route_needs_an_admin_key(detector: Detector) -> None:
    token, key = create_key("chief", [Scope.ADMIN])
    control = access(lambda: KeyRing([key]))
    headers = {"Authorization": f"Bearer {token}"}
    response = ask(detector, get("/v1/admin/status", headers=headers), control)
    assert response.json()["keys"] == [{"id": key.id, "name": "chief", "scopes": ["admin"]}]
    assert key.sha256 not in response.text
    assert ask(detector, get("/v1/admin/status"), control).status_code == 401


def test_the_description_covers_routes_and_its_examples_work(detector: Detector) -> None:
    spec = ask(detector, get("/openapi.json")).json()
    posts = {path: methods["post"] for path, methods in spec["paths"].items() if "post" in methods}
    assert set(posts) == {"/v1/detect", "/v1/detect/file", "/predict"}
    for path, operation in posts.items():
        assert {"200", "4XX", "5XX"} <= set(operation["responses"])
        assert set(operation["responses"]["4XX"]["content"]) == {"application/problem+json"}
        [(media_type, body)] = operation["requestBody"]["content"].items()
        if media_type == "application/json":
            schema = spec["components"]["schemas"][body["schema"]["$ref"].split("/")[-1]]
            for example in schema["examples"]:
                assert ask(detector, post(path, **example)).status_code == 200


@pytest.mark.parametrize("with_keys", [True, False])
def test_the_description_states_whether_a_key_is_needed(detector: Detector, with_keys: bool) -> None:
    spec = create_app(Versions(Engine(detector, ServeConfig())), access(KeyRing if with_keys else None)).openapi()
    secured = {path for path, methods in spec["paths"].items() if any("security" in m for m in methods.values())}
    assert ("/v1/detect" in secured, "/readyz" in secured) == (with_keys, False)


def test_the_api_reference_names_every_route(detector: Detector) -> None:
    spec = create_app(Versions(Engine(detector, ServeConfig())), access()).openapi()
    page = (Path(__file__).parents[4] / "docs" / "API.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`((?:GET|POST) /\S+)`", page))
    routes = {f"{method.upper()} {path}" for path, methods in spec["paths"].items() for method in methods}
    assert documented == routes | {f"POST {FEEDBACK}"}  # only if labels are stored


@pytest.mark.parametrize(("domains", "paused"), [({"*"}, True), ({"letters"}, True), ({"news"}, False), (set(), False)])
@pytest.mark.parametrize("path", ["/v1/detect", "/v1/detect/file"])
def test_a_paused_domain_gets_no_verdicts(detector: Detector, path: str, domains: set[str], paused: bool) -> None:
    """The current setting counts, not that of an earlier request."""
    human = detector.spec.calibration.domains[0].human
    calibration = calibrate_population(detector.spec.calibration, human, "letters", [0.05])
    own = Detector(replace(detector.spec, calibration=calibration), detector.tokenizer, Zeros())
    text = "The council met near the bridge on Tuesday. " * 9

    async def scenario(client: httpx.AsyncClient, engine: Engine) -> list[dict[str, Any]]:
        verdicts = []
        for engine.abstain_domains in (frozenset(), frozenset(domains)):
            if path == "/v1/detect":
                verdicts += (await client.post(path, json={"text": text})).json()["verdicts"]
            else:
                response = await client.post(path, files=[("files", ("a.txt", text.encode()))])
                verdicts += [file["verdict"] for file in response.json()["files"]]
        status = (await client.get("/v1/admin/status")).json()
        assert status["abstain_domains"] == sorted(domains)
        return verdicts

    before, after = ask(own, scenario)
    if not paused:
        assert after == before
    else:
        changes = {"label": "uncertain", "reasons": [*before["reasons"], "abstaining"]}
        assert after == {**before, **changes, "fpr_upper_bound": None, "confidence": None}
    assert before["nearest_domain"] == "letters"
