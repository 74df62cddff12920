"""One request to the service with its retries, and the errors it can end in: no input or output happens here.

What a client does is a plan: a generator that yields what to send and how long to sleep, and is given what came
back. A blocking and an asynchronous client drive the same plans.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.schemas import Problem

Model = TypeVar("Model", bound=BaseModel)
Returned = TypeVar("Returned")

PROBLEM_TYPE = "application/problem+json"


class ServiceError(DetectAIError):
    """The service did not give the answer that was asked for.

    Attributes:
        detail: what the service says of it, or what is known here; never a part of a text.
        status: of the response; None where there was none.
        request_id: names the request in the service's log; None where it is not known.
        retry_after: seconds after which the service wants to be asked again, where it said so.
    """

    def __init__(
        self,
        detail: str,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{detail} (request {request_id})" if request_id else detail)
        self.detail = detail
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after


class RejectedError(ServiceError, InputError):
    """The request will not be answered as it is (4xx)."""


class UnauthorizedError(RejectedError):
    """No API key was given, or one that the service does not know (401)."""


class ForbiddenError(RejectedError):
    """The API key may not do this (403)."""


class TooLargeError(RejectedError):
    """A text or a file is longer than the service reads (413)."""


class RateLimitedError(ServiceError):
    """The API key has asked for more than its share, also after the retries (429)."""


class UnavailableError(ServiceError):
    """The service is too busy or not ready, also after the retries (408, 502, 503, 504)."""


class UnreachableError(ServiceError):
    """No response came, also after the retries."""


class AnswerError(ServiceError):
    """The answer has another form than this client reads."""


_ERRORS: dict[int, type[ServiceError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    413: TooLargeError,
    429: RateLimitedError,
    408: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}


TEMPORARY = (408, 429, 502, 503, 504)


@dataclass(frozen=True)
class Send:
    """A request to send. To ask twice does no harm: no request of this client changes anything.

    Attributes:
        path: below the service's address.
        timeout_s: to connect, to send and to wait for each part of the answer.
        options: what httpx takes for the body and the query (`content`, `data`, `files`, `headers`, `params`).
    """

    method: str
    path: str
    timeout_s: float
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sleep:
    """A pause, in seconds."""

    seconds: float


Answer = httpx.Response | httpx.RequestError | None  # None after a pause
Plan = Generator[Send | Sleep, Answer, Returned]


@dataclass(frozen=True)
class Retry:
    """When a request is tried again: no or a lost connection, 408, 429, 502, 503, 504, and a replica that died (500).

    Attributes:
        attempts: how often a request is sent at most.
        backoff_s: pause before the second attempt; it doubles with each further one, and a random part of up to one
            half is taken off. It comes on top of what the service asks for by `Retry-After`.
        max_backoff_s: longest pause of our own.
        total_s: no attempt begins later than this after the first, and none waits for longer than is left of it.
    """

    attempts: int = 5
    backoff_s: float = 0.25
    max_backoff_s: float = 10
    total_s: float = 120

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InputError(f"attempts={self.attempts}: expected 1 or more")
        if min(self.backoff_s, self.max_backoff_s) < 0 or self.total_s <= 0:
            raise InputError("backoff_s and max_backoff_s are expected to be 0 or more, total_s above 0")

    def pause(self, failures: int, asked_for: float | None = None) -> float:
        """Seconds to wait after so many failures, never fewer than the service asked for."""
        longest = min(self.max_backoff_s, self.backoff_s * 2.0 ** min(failures - 1, 30))
        return (asked_for or 0) + longest * random.uniform(0.5, 1)  # noqa: S311 - spreads clients, hides nothing


def exchange(send: Send, retry: Retry) -> Plan[httpx.Response]:
    """Send a request until it is answered with success.

    Raises:
        ServiceError: of the last attempt.
    """
    deadline = time.monotonic() + retry.total_s
    failures = 0
    while True:
        left = deadline - time.monotonic()
        answer = yield replace(send, timeout_s=min(send.timeout_s, max(left, 0.001)))
        assert answer is not None
        if isinstance(answer, httpx.Response) and answer.is_success:
            return answer
        failures += 1
        error = failure(answer)
        pause = retry.pause(failures, error.retry_after)
        is_last = failures >= retry.attempts or time.monotonic() + pause >= deadline
        if is_last or not is_temporary(answer):
            raise error
        yield Sleep(pause)


def is_temporary(answer: httpx.Response | httpx.RequestError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(answer, httpx.RequestError) or answer.status_code in TEMPORARY:
        return True
    # Ray Serve's proxy says this when a replica dies at work; a 500 of the application itself is a problem document.
    return answer.status_code == 500 and not _is_problem(answer)


def failure(answer: httpx.Response | httpx.RequestError) -> ServiceError:
    """The error that tells of an answer without success. Of a body that is no problem document nothing is repeated."""
    if isinstance(answer, httpx.RequestError):
        return _unreachable(answer)
    status = answer.status_code
    kind = _ERRORS.get(status, RejectedError if 400 <= status < 500 else ServiceError)
    problem = problem_of(answer)
    if problem is not None:
        return kind(problem.detail, status, problem.request_id, retry_after(answer.headers))
    hint = "; redirects are not followed" if answer.is_redirect else ""
    detail = f"{_origin(answer.request.url)} answered {status} without saying why: is it the right address{hint}?"
    if kind in (RateLimitedError, UnavailableError):
        detail = f"{_origin(answer.request.url)} is busy or not ready ({status}): try again later."
    return kind(detail, status, answer.headers.get("X-Request-ID"), retry_after(answer.headers))


def problem_of(response: httpx.Response) -> Problem | None:
    """The problem document of a response; None where it has none."""
    try:
        return Problem.model_validate_json(response.content) if _is_problem(response) else None
    except ValidationError:
        return None


def read_answer(model: type[Model], content: str | bytes) -> Model:
    """An answer of the service, checked. Raises AnswerError."""
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        detail = f"the answer is no {model.__name__} of this version ({where or 'not JSON'}): is it the right address?"
        raise AnswerError(detail) from None


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to wait by the header `Retry-After` (RFC 9110, 10.2.3): a number or a date; None for anything else.

    A date is compared with the service's own clock, where it tells it.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until = _date(value)
    if until is None:
        return None
    now = _date(headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _date(value: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _is_problem(response: httpx.Response) -> bool:
    kind: str = response.headers.get("Content-Type", "")
    return kind.partition(";")[0].strip().lower() == PROBLEM_TYPE


def _unreachable(error: httpx.RequestError) -> UnreachableError:
    # Only what the system says of a connection is repeated: other messages may hold a header, and so the API key.
    said = f": {error}" if isinstance(error, httpx.ConnectError) and str(error) else ""
    origin = _origin(error.request.url)
    if isinstance(error, httpx.TimeoutException):
        return UnreachableError(f"{origin} did not answer in time ({type(error).__name__}): try again later.")
    kind = type(error).__name__
    return UnreachableError(f"{origin} cannot be reached ({kind}{said}): does the service run, is the address right?")


def _origin(url: httpx.URL) -> str:
    """Scheme, host and port, without a password that may stand in an address."""
    return f"{url.scheme}://{url.netloc.decode()}"
