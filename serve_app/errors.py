"""Errors of the service and their problem documents (RFC 9457), which never repeat any part of the request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from detect_ai.schemas import Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}
# Default reason of a problem in metrics, by status.
REASONS = {
    **{400: "malformed", 401: "wrong_key", 403: "scope", 404: "not_found", 413: "too_large", 415: "media_type"},
    **{409: "repeated_id", 421: "host", 422: "invalid", 429: "rate", 500: "internal", 503: "closing"},
}
MAX_REPORTED = 3  # errors of one request
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_DETAILS = {400: "The body is not valid JSON in UTF-8.", 404: "No such path: see /docs for the API."}
_EXPECTED = dict.fromkeys(("target_fpr", "prevalence"), "expected a number above 0 and below 1")  # also for NaN, 1e999
_PHRASES = {"missing": "is missing", "model_attributes_type": "expected a JSON object"}


class ProblemError(Exception):
    """A rejected or failed request; `detail` says what was expected and found, without text from the request.

    `reason` is one of a few names, for metrics; the default depends on the status.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, reason: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers
        self.reason = reason or REASONS[status]

    def response(self, request_id: str) -> Response:
        """The error as a response."""
        return Response(self.problem(request_id).model_dump_json(), self.status, self.headers, MEDIA_TYPE)

    def problem(self, request_id: str) -> Problem:
        """The error as a part of another response."""
        title = HTTPStatus(self.status).phrase
        return Problem(title=title, status=self.status, detail=self.detail, request_id=request_id)


class QueueFullError(Exception):
    """The queue is full, or the estimated queueing delay is too long: retry after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> ProblemError:
    """A problem from pydantic's errors: the names of fields and the expected values, never the input."""
    if errors[0]["type"] == "json_invalid":
        return ProblemError(400, f"The body is not valid JSON: {errors[0]['ctx']['error']}.")
    sentences = []
    for error in errors[:MAX_REPORTED]:
        kind, location = error["type"], [str(part) for part in error["loc"] if part != "body"]
        path = ".".join(part for part in location if not part.startswith(("str", "list[", "constrained")))
        if kind == "value_error":
            sentences.append(str(error["ctx"]["error"]))
        elif kind == "extra_forbidden":  # the name of the field comes from the request
            is_name = _FIELD_NAME.fullmatch(location[-1])
            sentences.append(f"unknown field `{location[-1]}`" if is_name else "a field has an unknown name")
        else:
            message = str(error["msg"]).replace("Input should be", "expected")
            phrase = _EXPECTED.get(path) or _PHRASES.get(kind) or message
            sentences.append(f"`{path}` {phrase}" if path else f"the body: {phrase}")
    return ProblemError(422, "; ".join(sentences) + ".")


async def validation_problem(request: Request, error: Exception) -> Response:
    """Raise the problem for a body that does not have the expected shape."""
    assert isinstance(error, RequestValidationError)
    raise invalid_request(error.errors()) from None


async def http_problem(request: Request, error: Exception) -> Response:
    """The response to a routing error; the requested path is not repeated."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ClientDisconnect | ProblemError):  # FastAPI wraps errors raised while reading a body
        raise error.__cause__
    detail = _DETAILS.get(error.status_code, f"{error.detail}.")
    if error.status_code == 405:
        detail = f"This path expects the method {(error.headers or {}).get('Allow')}."
    return ProblemError(error.status_code, detail, error.headers, "routing").response(request.state.request_id)
