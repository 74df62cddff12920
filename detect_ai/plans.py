"""What a client asks of the service, as plans: no input or output happens here.

Long lists become several requests within the limits that the service tells at `/v1/model`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx

from detect_ai import __version__
from detect_ai.core.errors import InputError
from detect_ai.exchange import AnswerError, Plan, Retry, Send, Sleep, TooLargeError, exchange, failure, read_answer
from detect_ai.parts import split
from detect_ai.schemas import DetectResponse, FilesResponse, FileVerdict, ModelInfo, Problem, StreamLine, Verdict

URL_VARIABLE = "DETECT_AI_URL"
KEY_VARIABLE = "DETECT_AI_API_KEY"
_READY_TIMEOUT_S = 10.0
_NO_LIMIT = float("inf")
_ENVELOPE = 1000  # bytes of a body beside the texts or files
_OF_TEXTS = ("max_texts", "max_chars", "max_body_bytes")
_OF_FILES = ("max_files", "max_upload_bytes")
_PER_LINE = len('{"text":}\n')
_PER_FILE = 300  # bytes of the head of a file in a multipart body
_JSON = {"Content-Type": "application/json"}
_NDJSON = {"Content-Type": "application/x-ndjson"}

Options = dict[str, Any]
Item = TypeVar("Item")
Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Text:
    """A text as JSON, and what it counts against the limits of a request."""

    body: bytes
    chars: int

    @property
    def size(self) -> tuple[float, ...]:
        """One text, its characters, its bytes."""
        return (1, self.chars, len(self.body) + _PER_LINE)


@dataclass(frozen=True)
class File:
    """A file as it is sent."""

    name: str
    data: bytes

    @property
    def size(self) -> tuple[float, ...]:
        """One file, its bytes."""
        return (1, len(self.data) + _PER_FILE)


class Plans:
    """What both clients know and do.

    Args:
        url: address of the service; that of the environment variable DETECT_AI_URL when None.
        api_key: that of DETECT_AI_API_KEY when None.
        timeout_s: of each step of a request.
        retry: when to try again.

    Raises:
        InputError: the address or the key cannot be one.
    """

    def __init__(self, url: str | None, api_key: str | None, timeout_s: float, retry: Retry) -> None:
        self._url = _checked_url(url or os.environ.get(URL_VARIABLE, ""))
        key = _checked_key(api_key or os.environ.get(KEY_VARIABLE, ""))
        self._headers = {"User-Agent": f"detect-ai/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._timeout_s = timeout_s
        self._retry = retry
        self._limits: dict[str, int] | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient, send: Send) -> httpx.Request:
        """What goes out."""
        options = {**send.options, "headers": {**self._headers, **send.options.get("headers", {})}}
        return http.build_request(send.method, self._url + send.path, timeout=send.timeout_s, **options)

    def _ask(self, method: str, path: str, **options: Any) -> Plan[httpx.Response]:
        return exchange(Send(method, path, self._timeout_s, options), self._retry)

    def model(self) -> Plan[ModelInfo]:
        """The model that answers, and its limits."""
        info = read_answer(ModelInfo, (yield from self._ask("GET", "/v1/model")).content)
        self._limits = info.limits
        return info

    def ready(self) -> Plan[bool]:
        """Whether the service takes work now."""
        answer = yield Send("GET", "/readyz", min(self._timeout_s, _READY_TIMEOUT_S))
        if isinstance(answer, httpx.Response) and answer.status_code not in (200, 502, 503):
            raise failure(answer)
        return isinstance(answer, httpx.Response) and answer.status_code == 200

    def _bounds(self, *names: str) -> Plan[tuple[float, ...]]:
        """Limits of the service, the last one that of a body in bytes. They are asked for once."""
        limits = self._limits if self._limits is not None else (yield from self.model()).limits
        *others, body = (limits.get(name, _NO_LIMIT) for name in names)
        return (*others, body - _ENVELOPE)

    def detect(self, texts: str | Sequence[str], options: Options) -> Plan[list[Verdict]]:
        """Verdicts of texts, in their order."""
        items = [_checked_text(text, i) for i, text in enumerate([texts] if isinstance(texts, str) else texts)]
        # One text is one request, whatever its length: no need to ask for the limits first.
        bounds = (yield from self._bounds(*_OF_TEXTS)) if len(items) > 1 else (1, _NO_LIMIT, _NO_LIMIT)
        verdicts: list[Verdict] = []
        for part in split(items, bounds):
            verdicts += yield from _halving(partial(self._detect_part, options), part)
        return verdicts

    def _detect_part(self, options: Options, part: Sequence[Text]) -> Plan[list[Verdict]]:
        named = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in options.items())
        body = b'{"texts":[' + b",".join(text.body for text in part) + f"]{named}}}".encode()
        response = yield from self._ask("POST", "/v1/detect", content=body, headers=_JSON)
        return _as_many(read_answer(DetectResponse, response.content).verdicts, part)

    def files(self, files: Sequence[File], fields: Options) -> Plan[list[FileVerdict]]:
        """Verdicts of files, in their order."""
        bounds = (yield from self._bounds(*_OF_FILES)) if len(files) > 1 else (1, _NO_LIMIT)
        found: list[FileVerdict] = []
        for part in split(files, bounds):
            found += yield from _halving(partial(self._files_part, fields), part)
        return found

    def _files_part(self, fields: Options, part: Sequence[File]) -> Plan[list[FileVerdict]]:
        files = [("files", (file.name, file.data)) for file in part]
        response = yield from self._ask("POST", "/v1/detect/file", data=fields, files=files)
        return _as_many(read_answer(FilesResponse, response.content).files, part)

    def stream_bounds(self, texts_per_request: int) -> Plan[tuple[float, ...]]:
        """What one request of a stream may hold, as `Text.size` counts."""
        if texts_per_request < 1:
            raise InputError(f"texts_per_request={texts_per_request}: expected 1 or more")
        most, *others = yield from self._bounds(*_OF_TEXTS)
        return (min(most, texts_per_request), *others)

    def stream(self, params: Options, part: Sequence[Text]) -> Plan[list[Verdict | Problem]]:
        """Answers to the texts of a part; those for which the service was too busy are asked again."""
        ask = partial(self._stream_part, params)
        answers = yield from _halving(ask, part)
        failures = 1  # in a row: a stream that ends before its time has answered some lines, and goes on from there
        while (busy := [i for i, each in enumerate(answers) if _is_busy(each)]) and failures < self._retry.attempts:
            yield Sleep(self._retry.pause(failures))
            again = yield from _halving(ask, [part[i] for i in busy])
            for i, each in zip(busy, again, strict=True):
                answers[i] = each
            failures = failures + 1 if all(map(_is_busy, again)) else 1
        return answers

    def _stream_part(self, params: Options, part: Sequence[Text]) -> Plan[list[Verdict | Problem]]:
        body = b"".join(b'{"text":' + text.body + b"}\n" for text in part)
        try:
            response = yield from self._ask("POST", "/v1/detect/stream", content=body, headers=_NDJSON, params=params)
        except TooLargeError as error:
            if len(part) > 1:
                raise
            return [Problem(title="Too large", status=413, detail=error.detail, request_id=error.request_id or "")]
        answers = [_answer_of(line) for line in response.content.splitlines() if line.strip()]
        if 0 < len(answers) < len(part) and isinstance(answers[-1], Problem):
            # The service ended the stream in order: the last line says why, and the rest is to be sent again.
            why = answers.pop()
            unanswered = why.model_copy(update={"status": 503, "title": "Service Unavailable"})
            answers += [unanswered] * (len(part) - len(answers))
        return _as_many(answers, part)


def _halving(ask: Callable[[Sequence[Item]], Plan[list[Returned]]], part: Sequence[Item]) -> Plan[list[Returned]]:
    """Ask for a part, in two halves where the service finds it too large: it counts characters after normalising."""
    try:
        return (yield from ask(part))
    except TooLargeError:
        if len(part) < 2:
            raise
    middle = len(part) // 2
    before = yield from _halving(ask, part[:middle])
    return before + (yield from _halving(ask, part[middle:]))


def _as_many(answers: list[Returned], asked: Sequence[object]) -> list[Returned]:
    if len(answers) != len(asked):
        raise AnswerError(f"the service gave {len(answers)} answers to {len(asked)} texts")
    return answers


def _is_busy(answer: Verdict | Problem) -> bool:
    return isinstance(answer, Problem) and answer.status in (429, 503)


def _answer_of(line: bytes) -> Verdict | Problem:
    read = read_answer(StreamLine, line)
    answer = read.verdict or read.problem
    if answer is None:
        raise AnswerError("a line of the answer has neither a verdict nor a problem")
    return answer


def encoded(text: str) -> Text:
    """A text as JSON. What is no Unicode goes out as escapes, for the service to refuse."""
    try:
        body = json.dumps(text, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        body = json.dumps(text).encode()
    return Text(body, len(text))


def _checked_text(text: str, position: int) -> Text:
    if not text.strip():
        raise InputError(f"text {position} is empty: expected at least one character that is not white space")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"text {position} is no valid Unicode: half a surrogate pair at character {error.start}"
        raise InputError(detail) from None
    return encoded(text)


def given(**options: Any) -> Options:
    """Only what differs from the service's defaults: an older service may not know the rest."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _checked_url(url: str) -> str:
    # The address is not repeated: it may hold a password.
    expected = "expected one such as http://127.0.0.1:8000"
    if not url:
        raise InputError(f"no address of a service: give it as `url` or in {URL_VARIABLE}; {expected}")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise InputError(f"the address of the service is no URL: {expected}") from None
    is_address = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 0) < 65_536
    if not is_address or parsed.query or parsed.fragment:
        raise InputError(f"the address of the service is none of http or https alone: {expected}")
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError("the API key holds characters that no key has, such as spaces: was it copied whole?")
    return key
