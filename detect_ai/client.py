"""HTTP clients of the detection service: the blocking `Client`, and `AsyncClient` for asyncio.

    with Client("http://127.0.0.1:8000") as client:
        verdict = client.detect("The council met on Tuesday …")

Temporary failures are retried with exponential backoff. Long lists are split into several requests.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar, Unpack, cast, overload

import httpx
import tenacity
from pydantic import BaseModel, HttpUrl, TypeAdapter, ValidationError

from detect_ai import __version__
from detect_ai.core.errors import InputError, RejectedError, ResponseError, ServiceError, UnavailableError
from detect_ai.schemas import DetectResponse, FilesResponse, FileVerdict, ModelInfo, Problem, Verdict
from detect_ai.text.characters import SURROGATE, is_blank

MAX_ATTEMPTS = 5
RETRY_FOR_S = 60.0  # latest start of an attempt after the first one
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=8)
_PART_BYTES = 1000  # room for the headers of a file in a multipart body

Item = TypeVar("Item")
Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")
Send = Callable[[list[Item]], Coroutine[Any, Any, list[Result]]]


class DetectOptions(TypedDict, total=False):
    """Options of `detect`.

    `target_fpr`: a target that `model()` lists; `prevalence`: fraction of AI texts that probabilities assume;
    `return_spans`: score each sentence; `explain`: compute the effect of removing each sentence.
    """

    target_fpr: float | None
    prevalence: float | None
    return_spans: bool
    explain: bool


class FileDetectOptions(DetectOptions, total=False):
    """Options of `detect_files`: the options of `detect`, and whether to return the extracted text."""

    return_text: bool


def _parse(model: type[Model], response: httpx.Response) -> Model:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "not JSON"
        message = f"the response is not a valid {model.__name__} ({where}): check address and version"
        raise ResponseError(message, response) from None


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that differ from the defaults, with numpy scalars converted to Python values."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in options.items()}
    for name in ("target_fpr", "prevalence"):
        value = plain.get(name)
        if isinstance(value, int | float) and not 0 < value < 1:  # NaN and infinity are not JSON
            raise InputError(f"{name}: expected a number above 0 and below 1")
    return {name: value for name, value in plain.items() if value is not None and value is not False}


def _as_list(values: Iterable[Item], expected: str) -> list[Item]:
    if isinstance(values, str | bytes | Mapping | Path):
        raise InputError(f"expected {expected}, found {type(values).__name__}")
    return list(values)


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: the service's Retry-After plus a random backoff."""
    return (getattr(state.outcome and state.outcome.exception(), "retry_after", None) or 0) + _BACKOFF(state)


class AsyncClient:
    """Client for asyncio. Tasks of one event loop may share a client.

    Args:
        url: address of the service; default: environment variable DETECT_AI_URL.
        api_key: default: DETECT_AI_API_KEY. Sent only over https, except to this machine.
        timeout_s: of one attempt, to send a request and wait for its response.
        httpx_options: passed to httpx, such as `proxy` or `verify`.

    Raises InputError if the address, the key, or the proxy or certificate settings are invalid.
    """

    _http_type: Callable[..., Any] = httpx.AsyncClient
    _sleep: Callable[[float], Awaitable[None]] = staticmethod(asyncio.sleep)

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout_s: float = 60.0, **httpx_options: Any
    ) -> None:
        url = (url or os.environ.get("DETECT_AI_URL", "")).strip()
        key = (api_key or os.environ.get("DETECT_AI_API_KEY", "")).strip()
        try:
            parsed = TypeAdapter(HttpUrl).validate_python(url)
        except ValidationError:  # not quoted: it may contain a password
            raise InputError("expected `url` or DETECT_AI_URL to be like http://127.0.0.1:8000") from None
        if parsed.query or parsed.fragment:
            raise InputError("expected `url` or DETECT_AI_URL without a query or fragment")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError("the API key contains characters that no key has, such as spaces: was it copied whole?")
        is_local = re.fullmatch(r"localhost|127(\.\d+){3}|\[::1\]", parsed.host or "") is not None
        if key and parsed.scheme == "http" and not is_local:
            raise InputError("the API key is not sent over http: use https for any host but this machine")
        headers = {"User-Agent": f"detect-ai/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        options: dict[str, Any] = {"timeout": httpx.Timeout(timeout_s, connect=10)}
        try:
            if is_local:  # ignore the environment's proxies, which are for other machines, but not its certificates
                options["trust_env"] = False
                options |= {"verify": httpx.create_ssl_context()} if parsed.scheme == "https" else {}
            self._http = self._http_type(headers=headers, **options | httpx_options)
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            names = "ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
            kind = type(error).__name__
            raise InputError(f"proxy or certificate settings cannot be used ({kind}): check {names}") from None
        self._url = str(parsed).rstrip("/")
        self._origin = f"{parsed.scheme}://{parsed.host}:{parsed.port}"
        self._limits: dict[str, int] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @overload
    async def detect(self, texts: str, **options: Unpack[DetectOptions]) -> Verdict: ...  # type: ignore[overload-overlap]
    @overload
    async def detect(self, texts: Iterable[str], **options: Unpack[DetectOptions]) -> list[Verdict]: ...
    async def detect(self, texts: str | Iterable[str], **options: Unpack[DetectOptions]) -> Verdict | list[Verdict]:
        """Return the verdict of a text, or the verdicts of several in order. Unpaired surrogates are read as U+FFFD.

        Raises InputError for an empty text, a value that is not a string, or an invalid option (nothing was sent),
        and ServiceError, whose subclasses name the cause.
        """
        plain = _plain_options(options)
        items = [texts] if isinstance(texts, str) else _as_list(texts, "a text or a list of texts")
        for i, text in enumerate(items):
            if not isinstance(text, str):
                raise InputError(f"texts[{i}]: expected a string, found {type(text).__name__}; drop missing values")
            if is_blank(text):
                raise InputError(f"texts[{i}] is empty: expected at least one visible character")

        async def send(chunk: list[str]) -> list[Verdict]:
            response = await self._send("POST", "/v1/detect", json={"texts": chunk, **plain})
            return _parse(DetectResponse, response).verdicts

        clean = [SURROGATE.sub("\ufffd", text) for text in items]
        verdicts = await self._in_chunks(send, clean, len, ("max_texts", "max_chars"))
        return verdicts[0] if isinstance(texts, str) else verdicts

    async def detect_files(
        self, paths: Iterable[str | Path], **options: Unpack[FileDetectOptions]
    ) -> list[FileVerdict]:
        """Return a verdict, or the problem with the file, for each file (txt, md, docx, pdf), in order.

        Raises InputError for a file that cannot be read (nothing was sent), and ServiceError as `detect`.
        """
        plain, files = _plain_options(options), []
        for path in map(Path, _as_list(paths, "a list of paths")):
            try:
                files.append((path.name.encode(errors="replace").decode(), path.read_bytes()))
            except OSError as error:
                raise InputError(f"{path}: {error.strerror}") from None

        async def send(chunk: list[tuple[str, bytes]]) -> list[FileVerdict]:
            parts = [("files", file) for file in chunk]
            return _parse(FilesResponse, await self._send("POST", "/v1/detect/file", files=parts, data=plain)).files

        return await self._in_chunks(send, files, lambda f: len(f[1]) + _PART_BYTES, ("max_files", "max_upload_bytes"))

    async def model(self) -> ModelInfo:
        """Return the served model, its thresholds and the limits of a request. Raises ServiceError."""
        info = _parse(ModelInfo, await self._send("GET", "/v1/model"))
        self._limits = info.limits
        return info

    async def _in_chunks(
        self, send: Send[Item, Result], items: list[Item], size: Callable[[Item], int], limits: tuple[str, str]
    ) -> list[Result]:
        """Results of items in order, sent in chunks within two limits of the service: item count and total size."""
        if len(items) > 1 and self._limits is None:
            await self.model()
        max_items, max_size = ((self._limits or {}).get(name, 10**12) for name in limits)
        if len(items) <= 1 or (len(items) <= max_items and sum(map(size, items)) <= max_size):
            try:
                results = await send(items) if items else []
            except RejectedError as error:
                # The service also limits tokens, which the client does not know.
                if error.status != 413 or len(items) == 1:
                    raise
            else:
                if len(results) != len(items):
                    raise ResponseError(f"expected {len(items)} results from the service, found {len(results)}")
                return results
        half = len(items) // 2
        first = await self._in_chunks(send, items[:half], size, limits)
        return first + await self._in_chunks(send, items[half:], size, limits)

    async def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request, with retries, and return the successful response."""

        async def attempt() -> httpx.Response:
            try:
                sent = self._http.request(method, self._url + path, **request)
                response: httpx.Response = await sent if isinstance(sent, Awaitable) else sent
            except httpx.RequestError as error:
                # Messages of other errors may contain a header, and so the API key.
                reason = f": {error}" if isinstance(error, httpx.ConnectError) and str(error) else ""
                cause = f"{self._origin} cannot be reached ({type(error).__name__}{reason})"
                raise UnavailableError(f"{cause}: check address and service.") from None
            if response.is_success:
                return response
            status = response.status_code
            kind = RejectedError if 400 <= status < 500 else ServiceError
            # The proxy of Ray Serve sends a 500 when a replica dies; a 500 of the application is a problem document.
            is_problem = response.headers.get("Content-Type", "").startswith("application/problem+json")
            if status in (408, 429, 502, 503, 504) or (status == 500 and not is_problem):
                kind = UnavailableError
            try:
                problem = Problem.model_validate_json(response.content if is_problem else b"")
            except ValidationError:  # do not quote a body that is not a problem document
                advice = "without an explanation: check address and service."
                raise kind(f"{self._origin} returned {status} {advice}", response) from None
            raise kind(problem.detail, response, problem.request_id)

        return await tenacity.AsyncRetrying(
            sleep=self._sleep,
            retry=tenacity.retry_if_exception_type(UnavailableError),
            stop=tenacity.stop_after_attempt(MAX_ATTEMPTS) | tenacity.stop_before_delay(RETRY_FOR_S),
            wait=_wait,
            reraise=True,
        )(attempt)


class _BlockingClient(AsyncClient):
    """The coroutines of `AsyncClient` over a blocking HTTP client: they never suspend, so they need no event loop."""

    _http_type = httpx.Client

    @staticmethod
    async def _sleep(seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        self._http.close()


def _run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("Result", done.value)
    raise AssertionError("a coroutine of the blocking client suspended")


class Client:
    """Blocking client, with the arguments, methods and errors of `AsyncClient`. Threads may share one."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout_s: float = 60.0, **httpx_options: Any
    ) -> None:
        self._client = _BlockingClient(url, api_key, timeout_s=timeout_s, **httpx_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        _run(self._client.close())

    @overload
    def detect(self, texts: str, **options: Unpack[DetectOptions]) -> Verdict: ...  # type: ignore[overload-overlap]
    @overload
    def detect(self, texts: Iterable[str], **options: Unpack[DetectOptions]) -> list[Verdict]: ...
    def detect(self, texts: str | Iterable[str], **options: Unpack[DetectOptions]) -> Verdict | list[Verdict]:
        """See `AsyncClient.detect`."""
        return _run(self._client.detect(texts, **options))

    def detect_files(self, paths: Iterable[str | Path], **options: Unpack[FileDetectOptions]) -> list[FileVerdict]:
        """See `AsyncClient.detect_files`."""
        return _run(self._client.detect_files(paths, **options))

    def model(self) -> ModelInfo:
        """See `AsyncClient.model`."""
        return _run(self._client.model())
