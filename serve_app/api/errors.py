"""Problem documents (RFC 9457) for all errors. They never repeat a part of the request."""

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
MAX_REPORTED = 3  # errors of one request
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_DETAILS = {
    400: "The body is not valid JSON in UTF-8.",
    404: "No such path: see /docs for the API.",
}
_EXPECTED = {"target_fpr": "expected a number above 0 and below 1"}  # also for NaN and 1e999
_PHRASES = {
    "missing": "is missing",
    "model_attributes_type": "expected a JSON object",
}


class ProblemError(Exception):
    """A request that cannot be answered.

    Args:
        status: HTTP status.
        detail: what was expected, what was found, how to fix it; no text of the request.
        headers: additional headers of the response.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers

    def response(self, request_id: str) -> Response:
        """The error as a response."""
        return Response(self.problem(request_id).model_dump_json(), self.status, self.headers, MEDIA_TYPE)

    def problem(self, request_id: str) -> Problem:
        """The error as a part of another answer."""
        title = HTTPStatus(self.status).phrase
        return Problem(title=title, status=self.status, detail=self.detail, request_id=request_id)


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> ProblemError:
    """A problem from pydantic's errors: the names of fields and the expected values, never the input."""
    if errors[0]["type"] == "json_invalid":
        return ProblemError(400, f"The body is not valid JSON: {errors[0]['ctx']['error']}.")
    return ProblemError(422, "; ".join(map(_sentence, errors[:MAX_REPORTED])) + ".")


def _sentence(error: Mapping[str, Any]) -> str:
    kind, location = error["type"], [part for part in error["loc"] if part != "body"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":  # its name comes from the request
        name = str(location[-1])
        return f"unknown field `{name}`" if _FIELD_NAME.fullmatch(name) else "a field has an unknown name"
    path = ".".join(str(part) for part in location if not str(part).startswith(("str", "list[", "constrained")))
    phrase = _EXPECTED.get(path) or _PHRASES.get(kind) or str(error["msg"]).replace("Input should be", "expected")
    return f"`{path}` {phrase}" if path else f"the body: {phrase}"


async def validation_problem(request: Request, error: Exception) -> Response:
    """Raise the problem of a body that has not the expected shape."""
    assert isinstance(error, RequestValidationError)
    raise invalid_request(error.errors()) from None


async def http_problem(request: Request, error: Exception) -> Response:
    """The response to a routing error; the requested path is not repeated."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ClientDisconnect | ProblemError):  # FastAPI wraps what happens while it reads a body
        raise error.__cause__
    detail = _DETAILS.get(error.status_code, f"{error.detail}.")
    if error.status_code == 405:
        detail = f"This path expects the method {(error.headers or {}).get('Allow')}."
    return ProblemError(error.status_code, detail, error.headers).response(request.state.request_id)
