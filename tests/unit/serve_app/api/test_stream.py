"""Streams: what is held of them is bounded, and they end when they must. In process, with a model that can be held."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.types import Message

from detect_ai.core.config import ServeConfig
from detect_ai.detector.detector import Detector
from detect_ai.models.batch import Batch
from serve_app.api.backlog import Backlog, Budget
from serve_app.api.stream import StreamResponse, seconds_allowed
from serve_app.auth.access import Caller
from serve_app.engine.engine import Service, Wanted

CANARY = "canary-51c2 the council met"
CONFIG = ServeConfig(max_body_bytes=1000, stream_lines=4, stream_backlog_bytes=100_000)


class Held:
    """A backend that waits until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    has_lanes = False

    def log_odds(self, batch: Batch) -> Any:
        assert self.gate.wait(20)
        return np.zeros(len(batch.lengths))


class Client:
    """The other end of a stream."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: list[dict[str, Any]] = []
        self.ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.answers += [json.loads(line) for line in message["body"].splitlines()]
            self.ended = not message.get("more_body", False)

    def say(self, *lines: str | bytes, more: bool = True) -> None:
        data = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        self.sent.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        self.sent.put_nowait({"type": "http.disconnect"})


@pytest.fixture
def detector(tiny_bundle: Any) -> Detector:
    return Detector.load(tiny_bundle)


Scenario = Callable[[Client, StreamResponse, "asyncio.Task[None]"], Awaitable[None]]


def stream(
    detector: Detector, scenario: Scenario, config: ServeConfig = CONFIG, seconds: float | None = None
) -> list[dict[str, Any]]:
    """The answers of a stream that a scenario drives."""

    async def main() -> list[dict[str, Any]]:
        client = Client()
        with ThreadPoolExecutor(1) as model:
            service = Service(detector, config, model)
            service.batcher.start()
            response = StreamResponse(service, Wanted(), "request-1", seconds, Caller("anybody"))
            call = asyncio.create_task(response({"type": "http"}, client.sent.get, client.send))
            try:
                await asyncio.wait_for(scenario(client, response, call), 30)
                await asyncio.wait_for(call, 30)
                assert service.stream_budget.used == 0
            finally:
                if isinstance(detector.backend, Held):
                    detector.backend.gate.set()
                await service.batcher.close()
        return client.answers

    return asyncio.run(main())


def told(*lines: str | bytes) -> Scenario:
    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        client.say(*lines)
        client.say(more=False)

    return scenario


def line(**fields: Any) -> str:
    return json.dumps(fields)


def test_answers_come_in_order_with_the_ids_that_were_sent(detector: Detector) -> None:
    lengths = [300, 1, 40, 5, 200, 2]
    answers = stream(detector, told(*(line(id=f"n{n}", text="ab " * n) for n in lengths)))
    assert [(each["line"], each["id"]) for each in answers] == [(i, f"n{n}") for i, n in enumerate(lengths, 1)]
    assert all("problem" not in each and each["verdict"]["spans"] is None for each in answers)


def test_a_verdict_of_a_stream_is_that_of_the_detector(detector: Detector) -> None:
    texts = ["The council met. " * 9, "moreover delve", "a" * 500]
    answers = stream(detector, told(*(line(text=text) for text in texts)))
    for answer, expected in zip(answers, detector.detect(texts), strict=True):
        assert answer["verdict"]["probability"] == pytest.approx(expected.probability, abs=1e-5)


# name: (line, status, what the detail says)
BAD = {
    "no JSON": (CANARY, 400, "The line is not valid JSON"),
    "torn": (f'{{"text": "{CANARY}', 400, "The line is not valid JSON"),
    "no UTF-8": (b'{"text": "a\xff"}', 400, "The line is not UTF-8: invalid byte at position 11."),
    "no object": (f'["{CANARY}"]', 422, "the line: expected an object"),
    "no text": (line(id=1), 422, "`text` is missing"),
    "a number": (line(text=5), 422, "`text`: expected a string, found a number"),
    "empty": (line(text=" "), 422, "`text` is empty"),
    "unknown field": (line(text="a", label=CANARY), 422, "unknown field `label`: expected text or id"),
    "odd id": (line(text=CANARY, id=[CANARY]), 422, "`id`: expected"),
    "long id": (line(text=CANARY, id="x" * 257), 422, "`id`: expected at most 256 characters"),
    "long line": (line(text="a" * 1000), 413, "The line has more than 1000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_gets_a_problem_and_the_stream_goes_on(detector: Detector, name: str) -> None:
    bad, status, detail = BAD[name]
    before, found, after = stream(detector, told(line(id=1, text="a"), bad, line(id=2, text="b")))
    assert ("verdict" in before, before["id"], "verdict" in after, after["id"]) == (True, 1, True, 2)
    assert set(found) == {"line", "id", "problem"}
    assert (found["line"], found["problem"]["status"], found["problem"]["request_id"]) == (2, status, "request-1")
    assert detail in found["problem"]["detail"]
    assert CANARY not in json.dumps(found)


def test_too_long_a_text_is_a_problem_that_keeps_its_id(detector: Detector) -> None:
    config = ServeConfig(max_chars=10)
    long, short = stream(detector, told(line(id="x", text="a" * 11), line(text="a" * 10)), config)
    assert (long["id"], long["problem"]["status"], short["id"]) == ("x", 413, None)


def test_empty_lines_count_and_get_no_answer(detector: Detector) -> None:
    answers = stream(detector, told("", line(text="a"), " \r", line(text="b") + "\r"))
    assert [each["line"] for each in answers] == [2, 4]


def test_a_failure_inside_is_a_problem_of_its_line(detector: Detector) -> None:
    class Broken:
        has_lanes = False

        def log_odds(self, batch: Batch) -> Any:
            raise RuntimeError(f"cannot read {CANARY}")

    detector.backend = Broken()
    [answer] = stream(detector, told(line(id=3, text=CANARY)))
    assert (answer["id"], answer["problem"]["status"]) == (3, 500)
    assert CANARY not in json.dumps(answer)


def test_a_line_over_its_time_is_a_problem_of_its_own(detector: Detector) -> None:
    detector.backend = Held()
    [answer] = stream(detector, told(line(text="a")), ServeConfig(request_timeout_s=0.1))
    assert answer["problem"]["detail"].startswith("No answer within 0.1 seconds")


def test_a_bounded_number_of_lines_is_worked_on_at_once(detector: Detector) -> None:
    detector.backend = Held()

    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        client.say(*[line(text="the council")] * 20)
        client.say(more=False)
        await asyncio.sleep(0.3)
        assert len(response.backlog) == 16
        detector.backend.gate.set()

    assert len(stream(detector, scenario)) == 20


def test_an_answer_is_sent_before_the_next_line_comes(detector: Detector) -> None:
    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        for number in range(1, 4):
            client.say(line(text="the council"))
            while len(client.answers) < number:
                await asyncio.sleep(0.01)
        client.say(more=False)

    assert len(stream(detector, scenario)) == 3


def test_a_client_that_leaves_takes_its_work_with_it(detector: Detector) -> None:
    detector.backend = Held()

    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        client.say(*[line(text="the council")] * 20)
        await asyncio.sleep(0.2)
        assert response.service.stream_budget.used > 0
        client.leave()
        await asyncio.wait_for(call, 5)
        assert (response.service.stream_budget.used, client.answers, client.ended) == (0, [], False)

    stream(detector, scenario)


def test_a_client_that_sends_too_far_ahead_is_told_where_to_go_on(detector: Detector) -> None:
    detector.backend = Held()

    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        client.say(*[line(text="a" * 900)] * 120)
        await asyncio.wait_for(call, 5)
        assert client.ended

    [last] = stream(detector, scenario)
    assert (last["line"], last["id"], last["problem"]["status"]) == (1, None, 413)
    assert "More than 100000 bytes came ahead of their answers: read answers" in last["problem"]["detail"]


def test_a_client_that_waits_for_answers_may_send_any_number_of_bytes(detector: Detector) -> None:
    config = ServeConfig(max_body_bytes=1000, stream_backlog_bytes=3_000)

    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        for number in range(1, 11):
            client.say(line(text="a" * 900))
            while len(client.answers) < number:
                await asyncio.sleep(0.01)
        client.say(more=False)

    assert all("verdict" in answer for answer in stream(detector, scenario, config))


def test_a_stream_over_its_time_is_told_where_to_go_on(detector: Detector) -> None:
    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        client.say(line(text="a"), line(text="b"))
        await asyncio.wait_for(call, 5)

    *answered, last = stream(detector, scenario, seconds=1)
    assert [each["line"] for each in answered] == [1, 2]
    assert (last["line"], last["problem"]["status"]) == (3, 503)
    assert "X-Request-Timeout-Seconds" in last["problem"]["detail"]


def test_a_stream_that_sends_nothing_is_ended(detector: Detector) -> None:
    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        client.say(line(text="a"))
        await asyncio.sleep(0.1)
        assert response.service.open_streams == 1
        await asyncio.wait_for(call, 5)
        assert response.service.open_streams == 0

    *answered, last = stream(detector, scenario, ServeConfig(stream_idle_s=0.3))
    assert [each["line"] for each in answered] == [1]
    assert (last["line"], last["problem"]["status"]) == (2, 503)
    assert last["problem"]["detail"] == "Nothing came for 0.3 seconds: send further lines in another request."


def test_a_stream_whose_lines_are_at_work_is_not_idle(detector: Detector) -> None:
    detector.backend = Held()

    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        client.say(line(text="a"))
        await asyncio.sleep(0.5)
        detector.backend.gate.set()
        client.say(more=False)

    assert [sorted(each) for each in stream(detector, scenario, ServeConfig(stream_idle_s=0.1))] == [
        ["id", "line", "verdict"]
    ]


def test_waiting_for_room_does_not_count_against_the_time_of_a_line(detector: Detector) -> None:
    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        async with response.service.stream_budget.of(10**6):
            client.say(line(text="a"))
            client.say(more=False)
            await asyncio.sleep(0.5)

    [answer] = stream(detector, scenario, ServeConfig(request_timeout_s=0.3))
    assert "verdict" in answer


def test_a_full_queue_makes_a_stream_wait(detector: Detector) -> None:
    async def scenario(client: Client, response: StreamResponse, call: asyncio.Task[None]) -> None:
        response.service.batcher.max_waiting_tokens = 50
        client.say(*[line(text="the council went near " * 10)] * 20)
        client.say(more=False)

    assert all("verdict" in answer for answer in stream(detector, scenario))


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, 59), ("0", None), ("-1", None), ("2", 1.5), ("100", 99), ("inf", None), ("x", 59)]
)
def test_a_stream_ends_before_the_proxy_would_cut_it_off(header: str | None, seconds: float | None) -> None:
    headers = Headers({"x-request-timeout-seconds": header} if header is not None else {})
    assert seconds_allowed(headers, ServeConfig(request_timeout_s=30)) == seconds


@given(st.lists(st.binary(max_size=30), max_size=20), st.lists(st.integers(1, 40), min_size=1))
def test_lines_are_the_same_however_they_are_cut(pieces: list[bytes], sizes: list[int]) -> None:
    async def lines(chunks: list[bytes]) -> list[tuple[int, bytes | None]]:
        backlog = Backlog(20, 10**6)
        for chunk in chunks:
            backlog.feed(chunk)
        backlog.complete()
        found = []
        while (line := await backlog.next()) is not None:
            found.append((line.number, line.content))
            backlog.release(line)
        backlog.max_bytes = 0
        assert not backlog.is_full
        return found

    data, chunks, at = b"\n".join(pieces), [], 0
    while at < len(data):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[at : at + size])
        at += size
    expected = [
        (number, None if len(content) > 20 else content)
        for number, content in enumerate(data.split(b"\n"), 1)
        if content.strip() or len(content) > 20
    ]
    assert asyncio.run(lines(chunks)) == expected


def test_a_budget_lets_one_in_whatever_it_costs_and_others_when_there_is_room() -> None:
    async def main() -> list[str]:
        budget, seen = Budget(10), []

        async def hold(name: str, tokens: int, until: asyncio.Event) -> None:
            async with budget.of(tokens):
                seen.append(name)
                await until.wait()

        first, rest = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(hold(*each)) for each in (("a", 50, first), ("b", 6, rest), ("c", 4, rest))]
        await asyncio.sleep(0.01)
        assert seen == ["a"]
        first.set()
        await asyncio.sleep(0.01)
        assert sorted(seen) == ["a", "b", "c"]
        rest.set()
        await asyncio.gather(*tasks)
        assert budget.used == 0
        return seen

    asyncio.run(main())
