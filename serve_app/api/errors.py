"""Errors as problem documents (RFC 9457). None of them ever repeats a part of what was sent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from detect_ai.schemas import Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_EXPECTED = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "string_too_long": "at most 256 characters",
    "list_type": "a list of strings",
    "int_type": "a whole number",
    "greater_than_equal": "a whole number, at least 1",
    "bool_parsing": "true or false",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number above 0 and below 1",
    "less_than": "a number above 0 and below 1",
    "model_type": 'an object such as {"text": "…"}',
    "model_attributes_type": "an object",
}
_KINDS = {"str", "int", "constrained-str", "list[str]"}  # how pydantic names the branches of a union
_FOUND = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


class ProblemError(Exception):
    """A request that cannot be answered, and what to say of it.

    Args:
        status: of the HTTP response.
        detail: what was expected, what was found, how to mend it.
        headers: further ones of the response.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers

    def response(self, request_id: str) -> Response:
        """The response that says it."""
        return Response(self.problem(request_id).model_dump_json(), self.status, self.headers, MEDIA_TYPE)

    def problem(self, request_id: str) -> Problem:
        """What it says, as a part of an answer that goes on."""
        title = HTTPStatus(self.status).phrase
        return Problem(title=title, status=self.status, detail=self.detail, request_id=request_id)


def late(seconds: float) -> ProblemError:
    """There was no answer in time."""
    return ProblemError(
        503, f"No answer within {seconds:g} seconds: send less text at once, or try again later.", RETRY_AFTER
    )


def invalid_body(error: ValidationError, fields: Sequence[str], what: str = "body") -> ProblemError:
    """What is wrong with a body, named by field and kind of value, never by content.

    Args:
        error: of the model that the body should have been.
        fields: those that the model knows.
        what: the body, or a part of it.
    """
    found = error.errors(include_url=False)
    if found[0]["type"] == "json_invalid":
        return ProblemError(400, f"The {what} is not valid JSON: {found[0]['ctx']['error']}.")
    return ProblemError(422, "; ".join(_sentence(dict(each), fields, what) for each in found[:3]) + ".")


def _sentence(error: dict[str, Any], fields: Sequence[str], what: str) -> str:
    kind, location, value = error["type"], error["loc"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        named = f"`{location[-1]}`" if _FIELD_NAME.fullmatch(str(location[-1])) else "a field of another name"
        known = fields if len(location) == 1 else ("top_k", "function_to_apply")
        return f"unknown field {named}: expected {', '.join(known[:-1])} or {known[-1]}"
    found = _FOUND.get(type(value), "null")
    if kind == "missing":
        return f"{_place(location, what)} is missing"
    expected = error["ctx"]["expected"] if kind == "literal_error" else _EXPECTED.get(kind, "another value")
    return f"{_place(location, what)}: expected {expected}, found {found}"


def _place(location: Sequence[int | str], what: str) -> str:
    if not location:
        return f"the {what}"
    parts = [part for part in location[1:] if part not in _KINDS]
    return f"`{location[0]}`" + "".join(f"[{part}]" for part in parts)
