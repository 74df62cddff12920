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

from detect_ai.batches import Batch
from detect_ai.config import ServeConfig
from detect_ai.detector import Detector
from detect_ai.schemas import FileOptions
from serve_app.access import Gate
from serve_app.api import create_app
from serve_app.batching import QueueFullError
from serve_app.files import Upload
from serve_app.quota import Limiter
from serve_app.service import ReadingQueue, Service
from serve_app.traffic import Traffic
from serve_app.uploads import judge_files

Scenario = Callable[[httpx.AsyncClient, Service], Awaitable[Any]]
CANARY = "canary-4f1d the council met"


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


async def unlimited(key: str, rate: int, want: float) -> float:
    return want


def ask(
    detector: Detector,
    scenario: Callable[[httpx.AsyncClient, Service], Awaitable[Any]],
    config: ServeConfig | None = None,
) -> Any:
    async def main() -> Any:
        with ThreadPoolExecutor(1) as model:
            service = Service(detector, config or ServeConfig(), model)
            transport = httpx.ASGITransport(create_app(Traffic(service), Gate(Limiter(unlimited), 0)))
            service.batcher.start()
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
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
    assert spent == [0, 0, 1]


def test_what_would_wait_too_long_is_refused_before_it_is_read() -> None:
    queue = ReadingQueue(max_wait_s=1.0)
    queue.measure(lambda: time.sleep(0.05), 5000)  # 10 µs a byte, two readers
    with queue.place(50_000, 0.0), queue.place(100_000, 0.0):
        with pytest.raises(QueueFullError) as refused, queue.place(100_000, 0.0):
            pass
        assert refused.value.retry_after_s == 2
        with pytest.raises(QueueFullError), queue.place(10_000, 0.9):
            pass
        with queue.place(0, 9.0):  # a stream waits
            pass
    with queue.place(10**6, 0.0):  # nothing is before it
        pass
    with pytest.raises(QueueFullError), queue.place(1000, 1.1):
        pass


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
