"""Errors as problem documents (RFC 9457). None of them ever repeats a part of what was sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from detect_ai.schemas import Problem

MEDIA_TYPE = "application/problem+json"
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")
_EXPECTED = {
    "string_type": "a string",
    "string_unicode": "a string of valid Unicode",
    "list_type": "a list of strings",
    "bool_type": "true or false",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number above 0 and below 1",
    "less_than": "a number above 0 and below 1",
    "model_type": 'an object such as {"text": "…"}',
}
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
        title = HTTPStatus(self.status).phrase
        problem = Problem(title=title, status=self.status, detail=self.detail, request_id=request_id)
        return Response(problem.model_dump_json(), self.status, self.headers, MEDIA_TYPE)


def invalid_body(error: ValidationError) -> ProblemError:
    """What is wrong with a body, named by field and kind of value, never by content."""
    found = error.errors(include_url=False)
    if found[0]["type"] == "json_invalid":
        return ProblemError(400, f"The body is not valid JSON: {found[0]['ctx']['error']}.")
    return ProblemError(422, "; ".join(_sentence(dict(each)) for each in found[:3]) + ".")


def _sentence(error: dict[str, Any]) -> str:
    kind, location, value = error["type"], error["loc"], error["input"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden":
        named = f"`{location[-1]}`" if _FIELD_NAME.fullmatch(str(location[-1])) else "a field of another name"
        return f"unknown field {named}: expected text, texts, target_fpr or return_spans"
    where = f"`{location[0]}`" + "".join(f"[{part}]" for part in location[1:]) if location else "the body"
    found = _FOUND.get(type(value), "null")
    return f"{where}: expected {_EXPECTED.get(kind, 'another value')}, found {found}"
