"""HTTP clients of the detection service: `Client` blocks, `AsyncClient` is for asyncio.

    with Client("http://127.0.0.1:8000") as client:
        verdict = client.detect("The council met on Tuesday …")

Temporary failures are retried with exponential backoff. Long lists are split into several requests.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack, overload

import httpx
import tenacity
from pydantic import BaseModel, ValidationError

from detect_ai import __version__
from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.schemas import DetectResponse, FilesResponse, FileVerdict, ModelInfo, Problem, Verdict
from detect_ai.text.normalize import SURROGATE, is_blank

MAX_ATTEMPTS = 5
RETRY_FOR_S = 60.0  # no attempt starts later than this after the first
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=8)
_PART_BYTES = 1000  # room for the headers of a file in a multipart body

Item = TypeVar("Item")
Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)


class DetectOptions(TypedDict, total=False):
    """Options of `detect`: a target that `model()` lists, scores by sentence, the effect of removing each sentence."""

    target_fpr: float | None
    return_spans: bool
    explain: bool


class FileDetectOptions(DetectOptions, total=False):
    """Options of `detect_files`: those of `detect`, and whether to return the extracted text."""

    return_text: bool


class ServiceError(DetectAIError):
    """The request failed.

    Attributes:
        detail: the service's explanation, or the client's; never contains submitted text, the key or a password.
        status: HTTP status code; None without a response.
        request_id: identifies the request in the service's log; None if unknown.
        retry_after: seconds that the service asked to wait (`Retry-After`); None if it did not.
    """

    def __init__(self, detail: str, response: httpx.Response | None = None, request_id: str | None = None) -> None:
        headers = httpx.Headers() if response is None else response.headers
        wait = headers.get("Retry-After", "")
        self.detail = detail
        self.status = None if response is None else response.status_code
        self.request_id = request_id or headers.get("X-Request-ID")
        self.retry_after = float(wait) if wait.isascii() and wait.isdigit() else None
        super().__init__(f"{detail} (request {self.request_id})" if self.request_id else detail)


class RejectedError(ServiceError, InputError):
    """The request is refused as it is (4xx): wrong key, option or input, or a text that is too long (413)."""


class UnavailableError(ServiceError):
    """No response, or an overloaded service or exceeded rate limit (408, 429, 502, 503, 504), retries included."""


class AnswerError(ServiceError):
    """The response does not match the schemas of this version."""


def _error(response: httpx.Response) -> ServiceError:
    """The error for a response without success. Repeats nothing of a body that is no problem document."""
    status, origin = response.status_code, _origin(response.request.url)
    kind = RejectedError if 400 <= status < 500 else ServiceError
    # The proxy of Ray Serve sends a 500 when a replica dies; a 500 of the application is a problem document.
    is_problem = response.headers.get("Content-Type", "").startswith("application/problem+json")
    if status in (408, 429, 502, 503, 504) or (status == 500 and not is_problem):
        kind = UnavailableError
    try:
        problem = Problem.model_validate_json(response.content if is_problem else b"")
    except ValidationError:
        if kind is UnavailableError:
            return kind(f"{origin} is busy or not ready ({status}): try again later.", response)
        hint = "; redirects are not followed" if response.is_redirect else ""
        return kind(f"{origin} answered {status} without an explanation: check the address{hint}.", response)
    return kind(problem.detail, response, problem.request_id)


def _check(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise _error(response)
    return response


def _halves(chunk: list[Item], error: RejectedError) -> list[list[Item]]:
    """A chunk that is too large (413) in two: the service also limits tokens, which the client does not know."""
    if error.status != 413 or len(chunk) == 1:
        raise error
    half = len(chunk) // 2
    return [chunk[:half], chunk[half:]]


def _connection_error(error: httpx.RequestError, url: str) -> UnavailableError:
    # Messages of other errors may contain a header, and therefore the API key.
    reason = f": {error}" if isinstance(error, httpx.ConnectError) and str(error) else ""
    name = type(error).__name__
    return UnavailableError(f"{_origin(httpx.URL(url))} cannot be reached ({name}{reason}): check address and service.")


def _origin(url: httpx.URL) -> str:
    """Scheme, host and port, without credentials."""
    return f"{url.scheme}://{url.netloc.decode()}"


def _parse(model: type[Model], response: httpx.Response) -> Model:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "not JSON"
        raise AnswerError(
            f"the response is no {model.__name__} ({where}): check address and version", response
        ) from None


@dataclass(frozen=True)
class _Batch(Generic[Item, Result]):
    """A list as POST requests, and the results of their responses."""

    path: str
    items: list[Item]
    limits: tuple[str, str]  # keys of `ModelInfo.limits`: items in a request, their total size
    size: Callable[[Item], int]
    request: Callable[[Sequence[Item]], dict[str, Any]]
    response: Callable[[httpx.Response], list[Result]]

    def chunks(self, limits: Mapping[str, int]) -> list[list[Item]]:
        """Group items in order within the limits. An item that exceeds the size limit forms its own chunk."""
        max_items, max_size = (limits.get(name, 10**12) for name in self.limits)
        chunks: list[list[Item]] = []
        room = 0
        for item in self.items:
            if not chunks or len(chunks[-1]) == max_items or self.size(item) > room:
                chunks.append([])
                room = max_size
            chunks[-1].append(item)
            room -= self.size(item)
        return chunks

    def results(self, response: httpx.Response, chunk: Sequence[Item]) -> list[Result]:
        """One result per item. Raises AnswerError."""
        results = self.response(response)
        if len(results) != len(chunk):
            raise AnswerError(f"expected {len(chunk)} results from the service, found {len(results)}", response)
        return results


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that differ from the defaults, numpy scalars as Python values."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in options.items()}
    target = plain.get("target_fpr")
    if isinstance(target, int | float) and not 0 < target < 1:  # NaN and infinity are no JSON
        raise InputError("target_fpr: expected a number above 0 and below 1")
    return {name: value for name, value in plain.items() if value is not None and value is not False}


def _as_list(values: Iterable[Item], expected: str) -> list[Item]:
    if isinstance(values, str | bytes | Mapping | Path):
        raise InputError(f"expected {expected}, found {type(values).__name__}")
    return list(values)


def _text_batch(texts: str | Iterable[str], options: DetectOptions) -> _Batch[str, Verdict]:
    plain = _plain_options(options)
    items = [texts] if isinstance(texts, str) else _as_list(texts, "a text or a list of texts")
    for i, text in enumerate(items):
        if not isinstance(text, str):
            raise InputError(f"texts[{i}]: expected a string, found {type(text).__name__}; drop missing values first")
        if is_blank(text):
            raise InputError(f"texts[{i}] is empty: expected at least one visible character")
    return _Batch(
        path="/v1/detect",
        items=[SURROGATE.sub("\ufffd", text) for text in items],
        limits=("max_texts", "max_chars"),
        size=len,
        request=lambda chunk: {"json": {"texts": list(chunk), **plain}},
        response=lambda response: _parse(DetectResponse, response).verdicts,
    )


def _file_batch(paths: Iterable[str | Path], options: FileDetectOptions) -> _Batch[tuple[str, bytes], FileVerdict]:
    plain, files = _plain_options(options), []
    for path in map(Path, _as_list(paths, "a list of paths")):
        try:
            files.append((path.name.encode(errors="replace").decode(), path.read_bytes()))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
    return _Batch(
        path="/v1/detect/file",
        items=files,
        limits=("max_files", "max_upload_bytes"),
        size=lambda file: len(file[1]) + _PART_BYTES,
        request=lambda chunk: {"files": [("files", file) for file in chunk], "data": plain},
        response=lambda response: _parse(FilesResponse, response).files,
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _BaseClient(Generic[Http]):
    """Address, key, connection pool and retry policy."""

    _http_type: type[Http]

    def __init__(
        self, url: str | None = None, api_key: str | None = None, *, timeout_s: float = 60.0, **httpx_options: Any
    ) -> None:
        self._url = (url or os.environ.get("DETECT_AI_URL", "")).strip().rstrip("/")
        key = (api_key or os.environ.get("DETECT_AI_API_KEY", "")).strip()
        try:
            parsed = httpx.URL(self._url)
        except (httpx.InvalidURL, ValueError):
            parsed = httpx.URL("")
        is_address = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 0) < 65_536
        if not is_address or parsed.query or parsed.fragment:  # not quoted: it may contain a password
            raise InputError("expected `url` or DETECT_AI_URL to be an address such as http://127.0.0.1:8000")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError("the API key contains characters that no key has, such as spaces: was it copied whole?")
        is_local = _is_loopback(parsed.host)
        if key and parsed.scheme == "http" and not is_local:
            raise InputError("the API key is not sent over http: use https for any host but this machine")
        headers = {"User-Agent": f"detect-ai/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # Proxies of the environment are for other machines.
        options = {"trust_env": not is_local, "timeout": httpx.Timeout(timeout_s, connect=10), **httpx_options}
        try:
            self._http: Http = self._http_type(headers=headers, **options)
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise InputError(
                f"proxy or certificate settings cannot be used ({type(error).__name__}): check ALL_PROXY, HTTP_PROXY, "
                "HTTPS_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
            ) from None
        self._limits: dict[str, int] | None = None
        self._policy: dict[str, Any] = {
            "retry": tenacity.retry_if_exception_type(UnavailableError),
            "stop": tenacity.stop_after_attempt(MAX_ATTEMPTS) | tenacity.stop_before_delay(RETRY_FOR_S),
            "wait": lambda state: (state.outcome.exception().retry_after or 0) + _BACKOFF(state),
            "reraise": True,
        }

    def _read_model(self, response: httpx.Response) -> ModelInfo:
        info = _parse(ModelInfo, response)
        self._limits = info.limits
        return info


class Client(_BaseClient[httpx.Client]):
    """Blocking client. Threads may share one.

    Args:
        url: address of the service; default: environment variable DETECT_AI_URL.
        api_key: default: DETECT_AI_API_KEY. Sent over https only, except to this machine.
        timeout_s: to send a request and to wait for its response, in one attempt.
        httpx_options: passed to httpx, such as `proxy` or `verify`.

    Raises:
        InputError: the address, the key, or the proxy or certificate settings are invalid.
    """

    _http_type = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @overload
    def detect(self, texts: str, **options: Unpack[DetectOptions]) -> Verdict: ...  # type: ignore[overload-overlap]
    @overload
    def detect(self, texts: Iterable[str], **options: Unpack[DetectOptions]) -> list[Verdict]: ...
    def detect(self, texts: str | Iterable[str], **options: Unpack[DetectOptions]) -> Verdict | list[Verdict]:
        """Return the verdict of a text, or the verdicts of any number of texts in order.

        Unpaired surrogates are read as U+FFFD, as by the service.

        Raises:
            InputError: a text is empty or not a string, or an option is impossible; nothing was sent.
            ServiceError: the request failed; subclasses name the cause.
        """
        verdicts = self._run(_text_batch(texts, options))
        return verdicts[0] if isinstance(texts, str) else verdicts

    def detect_files(self, paths: Iterable[str | Path], **options: Unpack[FileDetectOptions]) -> list[FileVerdict]:
        """Return a verdict, or the problem with the file, for each file (txt, md, docx, pdf), in order.

        Raises:
            InputError: a file cannot be read; nothing was sent.
            ServiceError: the request failed; subclasses name the cause.
        """
        return self._run(_file_batch(paths, options))

    def model(self) -> ModelInfo:
        """Return the served model, its thresholds and the limits of a request. Raises ServiceError."""
        return self._read_model(self._send("GET", "/v1/model"))

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        def attempt() -> httpx.Response:
            try:
                return _check(self._http.request(method, self._url + path, **request))
            except httpx.RequestError as error:
                raise _connection_error(error, self._url) from None

        return tenacity.Retrying(**self._policy)(attempt)

    def _run(self, batch: _Batch[Item, Result]) -> list[Result]:
        if len(batch.items) > 1 and self._limits is None:
            self.model()
        results, chunks = [], batch.chunks(self._limits or {})
        while chunks:
            chunk = chunks.pop(0)
            try:
                results += batch.results(self._send("POST", batch.path, **batch.request(chunk)), chunk)
            except RejectedError as error:
                chunks[:0] = _halves(chunk, error)
        return results


class AsyncClient(_BaseClient[httpx.AsyncClient]):
    """Client for asyncio, with the arguments and methods of `Client`. Tasks of one event loop may share one."""

    _http_type = httpx.AsyncClient

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
        """See `Client.detect`."""
        verdicts = await self._run(_text_batch(texts, options))
        return verdicts[0] if isinstance(texts, str) else verdicts

    async def detect_files(
        self, paths: Iterable[str | Path], **options: Unpack[FileDetectOptions]
    ) -> list[FileVerdict]:
        """See `Client.detect_files`."""
        return await self._run(_file_batch(paths, options))

    async def model(self) -> ModelInfo:
        """See `Client.model`."""
        return self._read_model(await self._send("GET", "/v1/model"))

    async def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def attempt() -> httpx.Response:
            try:
                return _check(await self._http.request(method, self._url + path, **request))
            except httpx.RequestError as error:
                raise _connection_error(error, self._url) from None

        return await tenacity.AsyncRetrying(**self._policy)(attempt)

    async def _run(self, batch: _Batch[Item, Result]) -> list[Result]:
        if len(batch.items) > 1 and self._limits is None:
            await self.model()
        results, chunks = [], batch.chunks(self._limits or {})
        while chunks:
            chunk = chunks.pop(0)
            try:
                results += batch.results(await self._send("POST", batch.path, **batch.request(chunk)), chunk)
            except RejectedError as error:
                chunks[:0] = _halves(chunk, error)
        return results
