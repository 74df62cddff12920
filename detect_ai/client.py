"""Clients of the service over HTTP, one that blocks and one for asyncio: texts in, verdicts out.

    with Client("http://127.0.0.1:8000") as client:
        verdict = client.detect("The council met on Tuesday …")

Requests that may succeed later are sent again (`exchange.Retry`); long lists become several requests within the limits
that the service tells at `/v1/model`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, overload

import httpx

from detect_ai.core.errors import InputError
from detect_ai.exchange import (
    Answer,
    AnswerError,
    ForbiddenError,
    Plan,
    RateLimitedError,
    RejectedError,
    Retry,
    ServiceError,
    Sleep,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from detect_ai.parts import Parts, split
from detect_ai.plans import File, Plans, Text, encoded, given
from detect_ai.schemas import FileVerdict, ModelInfo, Problem, Verdict

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Client",
    "ForbiddenError",
    "RateLimitedError",
    "RejectedError",
    "Retry",
    "ServiceError",
    "TooLargeError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
]

TIMEOUT_S = 60.0  # the service itself gives up sooner, and says so
RETRY = Retry()
STREAM_TEXTS = 64  # few enough that verdicts come steadily

Given = TypeVar("Given")
Returned = TypeVar("Returned")


class Client:
    """A client that blocks. Threads may share one.

    Args:
        url: address of the service; that of the environment variable DETECT_AI_URL when None.
        api_key: that of DETECT_AI_API_KEY when None; none is sent where that is empty, too.
        timeout_s: to connect, to send and to wait for each part of an answer.
        retry: when to try again.
        http: a client of your own, for proxies or certificates; you close it.

    Raises:
        InputError: the address or the key cannot be one.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry: Retry = RETRY,
        http: httpx.Client | None = None,
    ) -> None:
        self._plans = Plans(url, api_key, timeout_s, retry)
        self._owns_http = http is None
        self._http = http or httpx.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self._http.close()

    @overload
    def detect(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too: it is one text here
        self, texts: str, target_fpr: float | None = None, return_spans: bool = False, explain: bool = False
    ) -> Verdict: ...
    @overload
    def detect(
        self, texts: Sequence[str], target_fpr: float | None = None, return_spans: bool = False, explain: bool = False
    ) -> list[Verdict]: ...
    def detect(
        self,
        texts: str | Sequence[str],
        target_fpr: float | None = None,
        return_spans: bool = False,
        explain: bool = False,
    ) -> Verdict | list[Verdict]:
        """The verdict of one text, or those of several in their order.

        Args:
            texts: one text or several; any number.
            target_fpr: one of the targets that `model` lists; the model's default when None.
            return_spans: score each sentence, too.
            explain: also say what becomes of the score without each sentence.

        Raises:
            InputError: a text is empty or no Unicode; nothing was sent.
            ServiceError: the service did not answer with verdicts; its subclasses say why.
        """
        options = given(target_fpr=target_fpr, return_spans=return_spans, explain=explain)
        verdicts = self._run(self._plans.detect(texts, options))
        return verdicts[0] if isinstance(texts, str) else verdicts

    def detect_files(
        self,
        paths: Iterable[str | Path],
        target_fpr: float | None = None,
        return_spans: bool = False,
        explain: bool = False,
        return_text: bool = False,
    ) -> list[FileVerdict]:
        """The verdicts of files (txt, md, docx, pdf) in their order; of one that cannot be judged the problem with it.

        Args:
            paths: of files on this machine.
            target_fpr: one of the targets that `model` lists; the model's default when None.
            return_spans: score each sentence, too; offsets are into the text of the file.
            explain: also say what becomes of the score without each sentence.
            return_text: also return the text as it was read.

        Raises:
            InputError: a file cannot be read; nothing was sent.
            ServiceError: the service did not answer with verdicts; its subclasses say why.
        """
        fields = given(target_fpr=target_fpr, return_spans=return_spans, explain=explain, return_text=return_text)
        return self._run(self._plans.files(_read_files(paths), fields))

    def detect_stream(
        self,
        texts: Iterable[str],
        target_fpr: float | None = None,
        return_spans: bool = False,
        explain: bool = False,
        texts_per_request: int = STREAM_TEXTS,
    ) -> Iterator[Verdict | Problem]:
        """The verdicts of any number of texts in their order; only those of one request are in memory at once.

        Args:
            texts: read as verdicts are taken.
            target_fpr: one of the targets that `model` lists; the model's default when None.
            return_spans: score each sentence, too.
            explain: also say what becomes of the score without each sentence.
            texts_per_request: so many texts are read before their verdicts come.

        Yields:
            A Verdict, or a Problem in place of one that cannot be given: the texts after it go on.

        Raises:
            ServiceError: the service did not answer; its subclasses say why.
        """
        params = given(target_fpr=target_fpr, return_spans=return_spans, explain=explain)
        bounds = self._run(self._plans.stream_bounds(texts_per_request))
        for part in split(map(encoded, texts), bounds):
            yield from self._run(self._plans.stream(params, part))

    def model(self) -> ModelInfo:
        """The model that answers, its thresholds and limits. Raises ServiceError."""
        return self._run(self._plans.model())

    def ready(self) -> bool:
        """Whether the service takes work now; asked once. Raises ServiceError when something else answers."""
        return self._run(self._plans.ready())

    def _run(self, plan: Plan[Returned]) -> Returned:
        answer: Answer = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as end:
                returned: Returned = end.value
                return returned
            if isinstance(step, Sleep):
                time.sleep(step.seconds)
                answer = None
                continue
            try:
                answer = self._http.send(self._plans.request(self._http, step))
            except httpx.RequestError as error:
                answer = error


class AsyncClient:
    """A client for asyncio. Tasks of one event loop may share one.

    Args:
        url: address of the service; that of the environment variable DETECT_AI_URL when None.
        api_key: that of DETECT_AI_API_KEY when None; none is sent where that is empty, too.
        timeout_s: to connect, to send and to wait for each part of an answer.
        retry: when to try again.
        http: a client of your own, for proxies or certificates; you close it.

    Raises:
        InputError: the address or the key cannot be one.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry: Retry = RETRY,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._plans = Plans(url, api_key, timeout_s, retry)
        self._owns_http = http is None
        self._http = http or httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    @overload
    async def detect(  # type: ignore[overload-overlap]  # as in Client
        self, texts: str, target_fpr: float | None = None, return_spans: bool = False, explain: bool = False
    ) -> Verdict: ...
    @overload
    async def detect(
        self, texts: Sequence[str], target_fpr: float | None = None, return_spans: bool = False, explain: bool = False
    ) -> list[Verdict]: ...
    async def detect(
        self,
        texts: str | Sequence[str],
        target_fpr: float | None = None,
        return_spans: bool = False,
        explain: bool = False,
    ) -> Verdict | list[Verdict]:
        """As `Client.detect`."""
        options = given(target_fpr=target_fpr, return_spans=return_spans, explain=explain)
        verdicts = await self._run(self._plans.detect(texts, options))
        return verdicts[0] if isinstance(texts, str) else verdicts

    async def detect_files(
        self,
        paths: Iterable[str | Path],
        target_fpr: float | None = None,
        return_spans: bool = False,
        explain: bool = False,
        return_text: bool = False,
    ) -> list[FileVerdict]:
        """As `Client.detect_files`."""
        fields = given(target_fpr=target_fpr, return_spans=return_spans, explain=explain, return_text=return_text)
        files = await asyncio.to_thread(_read_files, paths)
        return await self._run(self._plans.files(files, fields))

    async def detect_stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        target_fpr: float | None = None,
        return_spans: bool = False,
        explain: bool = False,
        texts_per_request: int = STREAM_TEXTS,
    ) -> AsyncIterator[Verdict | Problem]:
        """As `Client.detect_stream`."""
        params = given(target_fpr=target_fpr, return_spans=return_spans, explain=explain)
        parts: Parts[Text] = Parts(await self._run(self._plans.stream_bounds(texts_per_request)))
        async for text in _each(texts):
            for part in parts.push(encoded(text)):
                for answer in await self._run(self._plans.stream(params, part)):
                    yield answer
        if rest := parts.rest():
            for answer in await self._run(self._plans.stream(params, rest)):
                yield answer

    async def model(self) -> ModelInfo:
        """As `Client.model`."""
        return await self._run(self._plans.model())

    async def ready(self) -> bool:
        """As `Client.ready`."""
        return await self._run(self._plans.ready())

    async def _run(self, plan: Plan[Returned]) -> Returned:
        answer: Answer = None
        while True:
            try:
                step = plan.send(answer)
            except StopIteration as end:
                returned: Returned = end.value
                return returned
            if isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
                answer = None
                continue
            try:
                answer = await self._http.send(self._plans.request(self._http, step))
            except httpx.RequestError as error:
                answer = error


def _read_files(paths: Iterable[str | Path]) -> list[File]:
    return [_read_file(Path(path)) for path in paths]


def _read_file(path: Path) -> File:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return File(path.name.encode(errors="replace").decode(), data)


async def _each(items: Iterable[Given] | AsyncIterable[Given]) -> AsyncIterator[Given]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
