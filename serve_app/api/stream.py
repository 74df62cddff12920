"""Streams of texts: lines of JSON in, lines of JSON out, in their order, each as soon as it is ready.

How much of a stream is held is bounded. Ray Serve's proxy hands on a body as it comes, but it never makes a client wait
for a slow replica: it keeps what it has read. So all that came is taken at once and counted here, and a client that
sends further ahead of the answers than the bound allows has its stream ended, with a line that says so.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from pydantic import ValidationError
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from detect_ai.core.config import ServeConfig
from detect_ai.schemas import StreamLine, StreamOptions, StreamText, Verdict
from serve_app.api.backlog import Backlog, Line
from serve_app.api.errors import RETRY_AFTER, ProblemError, invalid_body, late
from serve_app.api.middleware import internal
from serve_app.auth.access import Caller
from serve_app.engine.batcher import ClosedError, Ids, QueueFullError, Scores
from serve_app.engine.engine import Reading, Service, Wanted, parse

MEDIA_TYPE = "application/x-ndjson"
MEDIA_TYPES = (MEDIA_TYPE, "application/ndjson", "application/jsonl")
RETRY_S = 0.05  # until a line asks again for its place among what waits for the model
TIMEOUT_HEADER = "X-Request-Timeout-Seconds"  # Ray Serve's: how long its proxy lets a request take, 0 for ever
PROXY_TIMEOUTS = 2  # request time-outs that the proxy allows without that header, as serve_app.deploy tells it
MARGIN_S = 1  # before the proxy's time-out, to end in order


def options_of(query: QueryParams) -> Wanted:
    """What a stream asks for. Raises ProblemError for an unknown parameter, or a value of another kind."""
    try:
        options = StreamOptions.model_validate(dict(query))
    except ValidationError as error:
        raise invalid_body(error, list(StreamOptions.model_fields)) from None
    return Wanted(options.target_fpr, options.return_spans or options.explain, options.explain)


def seconds_allowed(headers: Headers, config: ServeConfig) -> float | None:
    """How long a stream may take before Serve's proxy would cut it off; None for ever."""
    seconds = PROXY_TIMEOUTS * config.request_timeout_s
    with suppress(ValueError):
        seconds = float(headers.get(TIMEOUT_HEADER, seconds))
    return seconds - min(MARGIN_S, seconds / 4) if 0 < seconds < math.inf else None


class StreamResponse(Response):
    """The answer to a stream, made while the stream comes.

    Args:
        service: judges.
        wanted: what to say of each text.
        request_id: of the whole stream.
        seconds: that the stream may take; None for ever.
        caller: whose rate limit the lines count against.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        service: Service,
        wanted: Wanted,
        request_id: str,
        seconds: float | None,
        caller: Caller,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.service = service
        self.wanted = wanted
        self.request_id = request_id
        self.seconds = seconds
        self.caller = caller
        self.backlog = Backlog(service.config.max_body_bytes, service.config.stream_backlog_bytes)
        self.answered = 0  # the number of the last line that was
        self.heard = time.monotonic()  # when something last came or was answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer line by line until the stream ends, or until it must."""
        self.service.open_streams += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._answer_until_the_end(receive, send)
        finally:
            self.service.open_streams -= 1

    async def _answer_until_the_end(self, receive: Receive, send: Send) -> None:
        reading = asyncio.create_task(self._read(receive))
        answering = asyncio.create_task(self._answer_all(send))
        idling = asyncio.create_task(self._idle())
        tasks = {reading, answering, idling}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if answering in done:
            answering.result()
        elif reading in done and not reading.result():
            return  # nobody is there to read on
        else:
            said = self._too_far_ahead if reading in done else self._too_quiet if idling in done else self._out_of_time
            await send(_body(self._line(self.answered + 1, None, said())))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _idle(self) -> None:
        """Ends when too long nothing came, and nothing that came was left to answer."""
        bound = self.service.config.stream_idle_s
        while not self.backlog.is_waiting or time.monotonic() - self.heard < bound:
            await asyncio.sleep(max(bound / 10, self.heard + bound - time.monotonic()))

    async def _read(self, receive: Receive) -> bool:
        """Take what comes. Returns False once the client is gone, True when more came than is kept."""
        while not self.backlog.is_full:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            self.heard = time.monotonic()
            self.backlog.feed(message.get("body", b""))
            if not message.get("more_body", False):
                self.backlog.complete()
        return True

    async def _answer_all(self, send: Send) -> None:
        """Answer lines side by side, a bounded number of them, and send the answers in order."""
        slots = asyncio.Semaphore(self.service.config.stream_lines)
        begun: asyncio.Queue[tuple[Line, asyncio.Task[bytes]] | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:

            async def begin() -> None:
                await slots.acquire()
                while (line := await self.backlog.next()) is not None:
                    if line.number > 1:
                        await self.caller.throttle()
                    begun.put_nowait((line, group.create_task(self._answer(line))))
                    await slots.acquire()
                begun.put_nowait(None)

            group.create_task(begin())
            while (item := await begun.get()) is not None:
                line, task = item
                await send(_body(await task))
                self.answered, self.heard = line.number, time.monotonic()
                self.backlog.release(line)
                slots.release()

    async def _answer(self, line: Line) -> bytes:
        """The answer to one line. Whatever is wrong with it is a problem of this line alone."""
        sent: StreamText | None = None

        def read() -> Reading:
            nonlocal sent
            sent = self._parse(line)
            return self.service.read([sent.text], self.wanted)

        def say(verdicts: list[Verdict]) -> bytes:
            return self._line(line.number, sent, verdicts[0])

        seconds = self.service.config.request_timeout_s
        try:
            async with asyncio.timeout(None) as bound:
                return await self.service.judge(read, say, self.caller.charge, score=partial(self._scores, bound))
        except TimeoutError:
            problem = late(seconds)
        except ClosedError:
            problem = ProblemError(503, "The replica is shutting down: send this line again.", RETRY_AFTER)
        except ProblemError as error:
            problem = error
        except Exception as error:  # it belongs to this line; the next one may well succeed
            problem = internal(error, self.request_id)
        return self._line(line.number, sent, problem)

    def _parse(self, line: Line) -> StreamText:
        if line.content is None:
            bound = self.service.config.max_body_bytes
            raise ProblemError(413, f"The line has more than {bound} bytes, which is all that is read of one.")
        return parse(line.content, StreamText, "line")

    async def _scores(self, bound: asyncio.Timeout, rows: Sequence[Ids]) -> Scores:
        """Log-odds of windows. A stream waits where others are refused, and leaves them room.

        The time that a line may take begins where the model has room for it.
        """
        clock, seconds = asyncio.get_running_loop().time, self.service.config.request_timeout_s
        async with self.service.stream_budget.of(sum(map(len, rows))):
            while True:
                bound.reschedule(clock() + seconds)
                try:
                    return await self.service.batcher.scores(rows)
                except QueueFullError:
                    await asyncio.sleep(RETRY_S)

    def _line(self, number: int, sent: StreamText | None, found: Verdict | ProblemError) -> bytes:
        identity = sent.id if sent is not None else None
        if isinstance(found, Verdict):
            said = StreamLine(line=number, id=identity, verdict=found).model_dump_json(exclude={"problem"})
        else:
            problem = found.problem(self.request_id)
            said = StreamLine(line=number, id=identity, problem=problem).model_dump_json(exclude={"verdict"})
        return said.encode() + b"\n"

    def _too_far_ahead(self) -> ProblemError:
        bound = self.service.config.stream_backlog_bytes
        return ProblemError(
            413,
            f"More than {bound} bytes came ahead of their answers: read answers while you send. Send the lines from "
            f"this one on in another request.",
        )

    def _too_quiet(self) -> ProblemError:
        bound = self.service.config.stream_idle_s
        return ProblemError(503, f"Nothing came for {bound:g} seconds: send further lines in another request.")

    def _out_of_time(self) -> ProblemError:
        return ProblemError(
            503,
            f"The stream was not through after {self.seconds:g} seconds: send the lines from this one on in another "
            f"request, or give it more time by the header `{TIMEOUT_HEADER}` (0 for no bound).",
        )


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}
