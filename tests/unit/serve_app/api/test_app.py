"""What HTTP cannot be made to show at will: failures inside, time-outs, a full queue. In process, with a fake model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from detect_ai.core.config import ServeConfig
from detect_ai.detector.detector import Detector
from detect_ai.models.batch import Batch
from detect_ai.schemas import DetectRequest, FileOptions
from detect_ai.text.normalize import normalise
from serve_app.api.app import create_app
from serve_app.api.errors import ProblemError
from serve_app.auth.access import AccessControl
from serve_app.auth.rate_limit import Limiter, Reservation
from serve_app.engine.batcher import ClosedError
from serve_app.engine.engine import Service, parse
from serve_app.engine.versions import Traffic
from serve_app.files.reader import Upload
from serve_app.files.uploads import fit, judge_files

Scenario = Callable[[httpx.AsyncClient, Service], Awaitable[Any]]
CANARY = "canary-4f1d the council met"
JSON = {"Content-Type": "application/json"}


class Broken:
    """A backend that fails, with a part of the text in its message."""

    has_lanes = False

    def log_odds(self, batch: Batch) -> Any:
        raise RuntimeError(f"cannot read {CANARY}")


class Slow:
    """A backend that takes its time."""

    has_lanes = False

    def log_odds(self, batch: Batch) -> Any:
        time.sleep(0.3)
        return np.zeros(len(batch.lengths))


@pytest.fixture
def detector(tiny_bundle: Path) -> Detector:
    return Detector.load(tiny_bundle)


async def unlimited(method: str, *arguments: Any) -> Reservation:
    return Reservation(0)


def ask(
    detector: Detector,
    scenario: Callable[[httpx.AsyncClient, Service], Awaitable[Any]],
    config: ServeConfig | None = None,
) -> Any:
    async def main() -> Any:
        with ThreadPoolExecutor(1) as model:
            service = Service(detector, config or ServeConfig(), model)
            transport = httpx.ASGITransport(create_app(Traffic(service), AccessControl(Limiter(unlimited))))
            service.batcher.start()
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                try:
                    return await scenario(client, service)
                finally:
                    await service.batcher.close()

    return asyncio.run(main())


def post(**body: Any) -> Scenario:
    return lambda client, _: client.post("/v1/detect", json=body)


def check_problem(response: httpx.Response, status: int, detail: str) -> None:
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["status"]) == (status, status)
    assert problem["detail"] == detail
    assert CANARY not in response.text


def test_a_failure_inside_is_a_500_that_names_no_internals(detector: Detector) -> None:
    detector.backend = Broken()
    detail = "The detector failed on this request; its log names the cause under this request_id."
    check_problem(ask(detector, post(text=CANARY)), 500, detail)


@pytest.fixture
def serve_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")  # it does not hand its records on to the root
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_a_failure_inside_is_logged_without_the_text(detector: Detector, serve_log: pytest.LogCaptureFixture) -> None:
    detector.backend = Broken()
    response = ask(detector, post(text=CANARY))
    logged = serve_log.handler.format(serve_log.records[-1])
    assert response.json()["request_id"] in logged
    assert "RuntimeError" in logged
    assert "log_odds" in logged
    assert CANARY not in serve_log.text


def test_a_request_over_its_time_is_a_503(detector: Detector) -> None:
    detector.backend = Slow()
    response = ask(detector, post(text=CANARY), ServeConfig(request_timeout_s=0.05))
    check_problem(response, 503, "No answer within 0.05 seconds: send less text at once, or try again later.")
    assert response.headers["retry-after"] == "1"


def test_a_full_queue_is_a_503(detector: Detector) -> None:
    detector.backend = Slow()

    async def scenario(client: httpx.AsyncClient, service: Service) -> httpx.Response:
        service.batcher.max_waiting_tokens = 100
        texts = ["the council went near the bridge " * 100] * 3
        return max(
            await asyncio.gather(*(client.post("/v1/detect", json={"text": text}) for text in texts)),
            key=lambda response: response.status_code,
        )

    check_problem(ask(detector, scenario), 503, "Too many texts wait for the model: try again later.")


def test_a_closed_replica_is_not_ready(detector: Detector) -> None:
    async def scenario(client: httpx.AsyncClient, service: Service) -> tuple[int, int]:
        before = await client.get("/readyz")
        await service.batcher.close()
        return before.status_code, (await client.get("/readyz")).status_code

    assert ask(detector, scenario) == (200, 503)


def test_the_model_endpoint_tells_thresholds_limits_and_guarantee(detector: Detector) -> None:
    info = ask(detector, lambda client, _: client.get("/v1/model")).json()
    assert info["model_version"] == detector.version
    assert [threshold["target_fpr"] for threshold in info["thresholds"]] == [0.05, 0.1]
    assert [threshold["min_tokens"] for threshold in info["thresholds"]] == [10, 10]
    for each in info["thresholds"]:
        assert 0 < each["fpr_lower_bound"] < each["expected_fpr"] < each["fpr_upper_bound"] < 1
    limits = {"max_texts": 256, "max_chars": 200_000, "max_body_bytes": 1_000_000}
    assert limits.items() <= info["limits"].items()
    assert {"max_explain_tokens", "max_files", "max_file_bytes", "max_upload_bytes", "max_pages"} <= set(info["limits"])
    assert "exchangeable with the calibration set" in info["guarantee"]


def test_the_verdict_states_the_threshold_that_the_model_endpoint_lists(detector: Detector) -> None:
    async def scenario(client: httpx.AsyncClient, _: Service) -> tuple[float, float]:
        answer = await client.post("/v1/detect", json={"text": "the council met", "target_fpr": 0.1})
        info = await client.get("/v1/model")
        return answer.json()["verdicts"][0]["threshold"], info.json()["thresholds"][1]["probability"]

    verdict, listed = ask(detector, scenario)
    assert verdict == listed


@pytest.mark.parametrize("spans", [False, True])
def test_the_service_says_what_the_detector_says(detector: Detector, spans: bool) -> None:
    texts = ["The coun\u200bcil met. It was Tuesday! " * 9, "moreover delve", "Ω ω. " * 40, "a" * 3000]
    answer = ask(detector, post(texts=texts, target_fpr=0.1, return_spans=spans)).json()
    for found, expected in zip(answer["verdicts"], detector.detect(texts, 0.1, spans), strict=True):
        assert found["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert (found["label"], found["num_windows"]) == (expected.label, expected.num_windows)
        assert len(found["spans"] or []) == len(expected.spans or [])


def test_openapi_shows_an_example_that_is_answered(detector: Detector) -> None:
    async def scenario(client: httpx.AsyncClient, _: Service) -> int:
        spec = (await client.get("/openapi.json")).json()
        body = spec["paths"]["/v1/detect"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return (await client.post("/v1/detect", json=body["examples"][0])).status_code

    assert ask(detector, scenario) == 200


@pytest.mark.parametrize(("text", "status"), [("a" * 101, 413), ("a" * 100, 200), ("a\u200b" * 100, 200)])
def test_the_limit_of_characters_counts_the_normalised_text(detector: Detector, text: str, status: int) -> None:
    assert ask(detector, post(text=text), ServeConfig(max_chars=100)).status_code == status


def test_a_torn_form_leaves_nothing_of_itself_in_the_log(detector: Detector, caplog: pytest.LogCaptureFixture) -> None:
    body = '--b\r\nContent-Disposition: form-data; name="a"\r\nZoë\r\n\r\n--b--\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = ask(detector, lambda client, _: client.post("/v1/detect/file", content=body, headers=headers))
    assert answer.status_code == 400
    assert [record for record in caplog.records if record.name.startswith("python_multipart")] == []


def test_files_that_cannot_be_read_give_nothing_back_to_a_rate(detector: Detector) -> None:
    spent: list[int] = []
    files = [Upload("a.exe", b"MZ"), Upload("b.txt", b"the council"), Upload("c.txt", b"the bridge")]

    async def scenario(_: httpx.AsyncClient, service: Service) -> None:
        for some in (files[:1], files[:2], files):
            await judge_files(service, some, FileOptions(), "request-1", spent.append)

    ask(detector, scenario)
    assert spent == [1]


def test_a_body_is_not_read_for_a_request_that_would_wait_too_long(detector: Detector) -> None:
    async def scenario(client: httpx.AsyncClient, service: Service) -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            raise AssertionError("it was read")
            yield b""

        service._queue.measure(lambda: time.sleep(0.05), 5000)
        with service._queue.place(10**7, 0.0):
            headers = {"Content-Type": "application/json", "Content-Length": "1000"}
            return await client.post("/v1/detect", content=body(), headers=headers)

    response = ask(detector, scenario)
    check_problem(response, 503, "Too many texts wait for the model: try again later.")
    assert int(response.headers["Retry-After"]) > 5


def test_texts_that_the_model_has_no_room_for_are_given_back(detector: Detector) -> None:
    spent: list[int] = []

    async def scenario(_: httpx.AsyncClient, service: Service) -> None:
        await service.batcher.close()
        with pytest.raises(ClosedError):
            await service.detect(b'{"texts": ["a", "b", "c"]}', "request-1", spent.append)

    ask(detector, scenario)
    assert spent == [2, -2]


def test_a_body_that_never_comes_is_a_503(detector: Detector) -> None:
    async def scenario(client: httpx.AsyncClient, _: Service) -> list[httpx.Response]:
        async def body(start: bytes) -> AsyncIterator[bytes]:
            yield start
            await asyncio.sleep(10)

        form = {"Content-Type": "multipart/form-data; boundary=b"}
        return [
            await client.post("/v1/detect", content=body(b'{"text": "'), headers=JSON),
            await client.post("/predict", content=body(b'{"inputs": "'), headers=JSON),
            await client.post("/v1/detect/file", content=body(b"--b"), headers=form),
        ]

    for response in ask(detector, scenario, ServeConfig(request_timeout_s=0.1)):
        check_problem(response, 503, "No answer within 0.1 seconds: send less text at once, or try again later.")


def test_a_client_that_leaves_is_no_failure(detector: Detector, serve_log: pytest.LogCaptureFixture) -> None:
    async def scenario(_: httpx.AsyncClient, service: Service) -> None:
        async def gone() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            raise AssertionError("it was answered")

        head = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        app = create_app(Traffic(service), AccessControl(Limiter(unlimited)))
        await app(
            {"type": "http", "method": "POST", "path": "/v1/detect", "headers": head, "query_string": b""}, gone, send
        )

    ask(detector, scenario)
    assert serve_log.records == []


@pytest.mark.parametrize("charset", ["undefined", "utf-7", "unicode_escape"])
def test_a_form_in_another_encoding_is_refused(detector: Detector, charset: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="+2AA-.txt"\r\n\r\nThe council\r\n--b--\r\n'

    def post_as(content_type: str) -> Scenario:
        headers = {"Content-Type": content_type}
        return lambda client, _: client.post("/v1/detect/file", content=body, headers=headers)

    detail = "Expected a form in UTF-8: leave `charset` out of the header `Content-Type`."
    check_problem(ask(detector, post_as(f"multipart/form-data; boundary=b; charset={charset}")), 415, detail)
    assert ask(detector, post_as("multipart/form-data; boundary=b; charset=UTF-8")).status_code == 200


def test_the_first_wrong_text_of_many_is_enough() -> None:
    with pytest.raises(ProblemError) as refused:
        parse(b'{"texts": [' + b"1," * 100_000 + b"1]}", DetectRequest)
    assert refused.value.detail == "`texts`[0]: expected a string, found a number."


def test_no_more_is_normalised_than_a_few_times_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("serve_app.files.uploads.normalise", lambda text: seen.append(len(text)) or normalise(text))
    texts = ["a" * 150, "a" * 90, "a" * 150, "a" * 20, "a" * 5]
    normalised, fitting = fit(texts, 100)  # 400 are normalised at most
    assert seen == [150, 90, 150, 5]
    assert [len(each.text) for each in normalised] == [90, 5]
    assert [each if isinstance(each, str) else each.status for each in fitting] == [413, "a" * 90, 413, 413, "a" * 5]


def test_far_too_long_a_text_is_refused_without_normalising_it(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.engine.engine.normalise", lambda text: pytest.fail("it was normalised"))
    response = ask(detector, post(text="a" * 401), ServeConfig(max_chars=100))
    check_problem(response, 413, "401 characters, at most 100 are read: send several requests.")


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("rebound.example:8000", 421), ("", 421)],
)
def test_without_keys_only_the_names_of_this_machine_are_answered(detector: Detector, host: str, status: int) -> None:
    def get(client: httpx.AsyncClient, _: Service) -> Awaitable[httpx.Response]:
        return client.get("/v1/model", headers={"Host": host})

    assert ask(detector, get).status_code == status
    assert ask(detector, get, ServeConfig(host="0.0.0.0")).status_code == 200


def test_streams_beyond_the_bound_are_refused(detector: Detector) -> None:
    async def scenario(client: httpx.AsyncClient, service: Service) -> httpx.Response:
        service.open_streams = 16
        return await client.post("/v1/detect/stream", content=b"", headers={"Content-Type": "application/x-ndjson"})

    check_problem(ask(detector, scenario), 503, "16 streams are open already: try again later.")
