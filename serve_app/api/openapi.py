"""What the specification of the API says beside what FastAPI finds: bodies, examples and problems."""

from __future__ import annotations

from typing import Any

from fastapi.security import HTTPBearer
from pydantic import BaseModel

from detect_ai.detector.model_info import GUARANTEE
from detect_ai.schemas import (
    DetectRequest,
    FileOptions,
    PredictRequest,
    Problem,
    StreamLine,
    StreamOptions,
    StreamText,
)
from serve_app.api.errors import MEDIA_TYPE

DESCRIPTION = (
    "Does a text read as if AI wrote it? A verdict with the false positive rate it holds. Every answer carries "
    "`X-Request-ID`, `X-Model-Version` and `Server-Timing`; errors are `application/problem+json` (RFC 9457) and never "
    "repeat a part of a text."
)
TEXT = "The council met on Tuesday to vote on the bridge."
_VERDICT = {
    "label": "uncertain",
    "probability": 0.31,
    "prevalence": 0.5,
    "target_fpr": 0.05,
    "threshold": 0.88,
    "p_value": 0.4,
    "compared_with": "",
    "num_compared": 44,
    "fpr_upper_bound": 0.1,
    "reasons": ["too_short"],
    "tampering": {},
    "spans": None,
    "ai_fraction": None,
    "num_tokens": 11,
    "num_windows": 1,
    "model_version": "88e118f3ceac2e11",
}
_ANSWERED = {"request_id": "499703e0-99e4-4ed4-8cd2-aeba95a03bff", "model_version": "88e118f3ceac2e11"}
_SCANNED = {
    "type": "about:blank",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "No text stands on the pages of this PDF (3), it may be scanned: recognise its text first.",
    "request_id": _ANSWERED["request_id"],
}


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a model, with the models in it in place of references to them."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(part: Any) -> Any:
        if isinstance(part, list):
            return [resolved(each) for each in part]
        if not isinstance(part, dict):
            return part
        name = str(part.get("$ref", "")).rpartition("/")[2]
        beside = {key: resolved(value) for key, value in part.items() if key != "$ref"}
        return {**resolved(definitions[name]), **beside} if name else beside

    found: dict[str, Any] = resolved(schema)
    return found


_AFTER = {
    "Retry-After": {"description": "Seconds after which to ask again", "schema": {"type": "integer", "minimum": 1}}
}


def _problems(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"schema": inlined(Problem)}}
    return {
        int(status.lstrip("_")): {"description": description, "content": content}
        | ({"headers": _AFTER} if "Retry-After" in description else {})
        for status, description in descriptions.items()
    }


def _body(media_type: str, schema: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    named = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema, "examples": named}}}}


def _answer(media_type: str, example: Any, schema: dict[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    content = {"example": example} if schema is None else {"example": example, "schema": schema}
    return {200: {"description": "Answered", "content": {media_type: content}}}


def _parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    properties = inlined(model)["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]


PROBLEMS = _problems(
    _400="The body is not of its type",
    _401="An API key is expected",
    _403="The API key lacks the scope",
    _413="Too long, or too many texts or files",
    _415="Another Content-Type is expected",
    _422="Another shape is expected, or a target that the model has a threshold for",
    _429="The API key is over its rate; try again after `Retry-After` seconds",
    _500="The detector failed",
    _503="Too busy; try again after `Retry-After` seconds",
)
REFUSED: dict[int | str, dict[str, Any]] = {status: PROBLEMS[status] for status in (401, 403)}
BEARER = HTTPBearer(auto_error=False, description="An API key that the operator made")
_FORM = {
    "type": "object",
    "required": ["files"],
    "additionalProperties": False,
    "properties": {
        "files": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "One part for each file, each with a `filename` that ends in .txt, .md, .docx or .pdf",
        },
        **inlined(FileOptions)["properties"],
    },
}
_LINES = f'{{"id": 1, "text": "{TEXT}"}}\n{{"id": 2, "text": "{TEXT}"}}\n'

DETECT: dict[str, Any] = {
    "responses": {**_answer("application/json", {**_ANSWERED, "verdicts": [_VERDICT], "seconds": 0.0121}), **PROBLEMS},
    "openapi_extra": _body(
        "application/json",
        inlined(DetectRequest),
        {
            "one text": {"text": TEXT},
            "many texts": {"texts": [TEXT, TEXT]},
            "explained": {"text": TEXT, "explain": True},
        },
    ),
}
FILES: dict[str, Any] = {
    "responses": {
        **_answer(
            "application/json",
            {
                **_ANSWERED,
                "files": [
                    {"name": "a.txt", "num_chars": 49, "text": None, "verdict": _VERDICT, "problem": None},
                    {"name": "b.pdf", "num_chars": 0, "text": None, "verdict": None, "problem": _SCANNED},
                ],
                "seconds": 0.41,
            },
        ),
        **PROBLEMS,
    },
    "openapi_extra": {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
}
STREAM: dict[str, Any] = {
    "responses": {
        **_answer("application/x-ndjson", {"line": 1, "id": 1, "verdict": _VERDICT}, inlined(StreamLine)),
        **PROBLEMS,
    },
    "openapi_extra": {
        **_body(
            "application/x-ndjson",
            {"type": "string", "description": f"Lines, each a JSON object: {', '.join(StreamText.model_fields)}"},
            {"two lines": _LINES},
        ),
        "parameters": _parameters(StreamOptions),
    },
}
PREDICT: dict[str, Any] = {
    "responses": {
        **_answer("application/json", [[{"label": "human", "score": 0.69}, {"label": "ai", "score": 0.31}]]),
        **PROBLEMS,
    },
    "openapi_extra": _body(
        "application/json",
        inlined(PredictRequest),
        {
            "one text": {"inputs": TEXT},
            "several": {"inputs": [TEXT, TEXT], "parameters": {"top_k": 1}},
        },
    ),
}
MODEL: dict[int | str, dict[str, Any]] = REFUSED | _answer(
    "application/json",
    {
        "model_version": _ANSWERED["model_version"],
        "base_model": "minilm",
        "corpus": {"name": "sample", "fingerprint": "9c1d4e"},
        "language": "en",
        "prevalence": 0.5,
        "default_target_fpr": 0.05,
        "thresholds": [
            {
                "target_fpr": 0.05,
                "probability": 0.88,
                "expected_fpr": 0.044,
                "fpr_lower_bound": 0.008,
                "fpr_upper_bound": 0.1,
                "min_tokens": 60,
                "categories": [],
            }
        ],
        "num_human": 44,
        "min_tokens": 60,
        "window": 256,
        "normaliser_version": 3,
        "limits": {"max_texts": 256, "max_chars": 200_000},
        "guarantee": GUARANTEE,
    },
)
STATUS: dict[int | str, dict[str, Any]] = REFUSED | _answer(
    "application/json",
    {
        "pid": 4711,
        "uptime_s": 3600.0,
        "model_version": _ANSWERED["model_version"],
        "canary": "1f0c7be24a9d3358",
        "canary_share": 0.05,
        "shadow": "5d2e90b7c4f1a663",
        "waiting_tokens": 0,
        "keys": [{"id": "3f9a0c12", "name": "newsroom", "scopes": ["detect"]}],
    },
)
