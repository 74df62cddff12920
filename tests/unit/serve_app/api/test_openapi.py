"""The specification of the API: what clients may rely on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from detect_ai import schemas
from detect_ai.core.config import ServeConfig
from detect_ai.detector.detector import Detector
from serve_app.api.admin import Status
from serve_app.api.app import create_app
from serve_app.auth.access import AccessControl
from serve_app.auth.api_keys import KeyRing
from serve_app.auth.rate_limit import Limiter
from serve_app.engine.engine import Service
from serve_app.engine.versions import Traffic
from tests.unit.serve_app.api.test_app import ask, unlimited

# What a client may rely on. A field may join; one that leaves or changes its type breaks somebody's program.
REQUESTS = {
    "DetectRequest": {"text": "string?", "texts": "array?", "target_fpr": "number?", "return_spans": "boolean"}
    | {"explain": "boolean"},
    "FileOptions": {"target_fpr": "number?", "return_spans": "boolean", "explain": "boolean", "return_text": "boolean"},
    "StreamOptions": {"target_fpr": "number?", "return_spans": "boolean", "explain": "boolean"},
    "StreamText": {"text": "string!", "id": "string|integer?"},
    "PredictRequest": {"inputs": "string|array!", "parameters": "PredictParameters?"},
    "PredictParameters": {"top_k": "integer?", "function_to_apply": "string?"},
}
ANSWERS = {
    "Verdict": {"label": "Label!", "probability": "number!", "prevalence": "number!", "target_fpr": "number!"}
    | {"threshold": "number!", "p_value": "number!", "compared_with": "string", "num_compared": "integer"}
    | {"fpr_upper_bound": "number", "reasons": "array!", "tampering": "object!", "spans": "array?"}
    | {"ai_fraction": "number?", "num_tokens": "integer!", "num_windows": "integer!", "model_version": "string!"},
    "Span": {"start": "integer!", "end": "integer!", "probability": "number!", "effect": "number?"},
    "DetectResponse": {"request_id": "string!", "model_version": "string!", "verdicts": "array!", "seconds": "number!"},
    "FilesResponse": {"request_id": "string!", "model_version": "string!", "files": "array!", "seconds": "number!"},
    "FileVerdict": {"name": "string!", "num_chars": "integer!", "text": "string?", "verdict": "Verdict?"}
    | {"problem": "Problem?"},
    "StreamLine": {"line": "integer!", "id": "string|integer?", "verdict": "Verdict?", "problem": "Problem?"},
    "LabelScore": {"label": "string!", "score": "number!"},
    "Problem": {"type": "string", "title": "string!", "status": "integer!", "detail": "string!"}
    | {"request_id": "string!"},
}


def fields(model: type[BaseModel]) -> dict[str, str]:
    """The fields of a model: a type, `?` where it may be null, `!` where it must be there."""
    schema = model.model_json_schema()

    def kind(field: dict[str, Any]) -> str:
        parts = field.get("anyOf", [field])
        kinds = [each.get("type") or each["$ref"].split("/")[-1] for each in parts]
        return "|".join(each for each in kinds if each != "null") + "?" * ("null" in kinds)

    required = schema.get("required", [])
    return {name: kind(field) + ("!" if name in required else "") for name, field in schema["properties"].items()}


@pytest.mark.parametrize("name", [*REQUESTS, *ANSWERS])
def test_what_clients_rely_on_is_there(name: str) -> None:
    assert fields(getattr(schemas, name)) == (REQUESTS | ANSWERS)[name]


@pytest.fixture(scope="module")
def spec(tiny_bundle: Path) -> dict[str, Any]:
    answer = ask(Detector.load(tiny_bundle), lambda client, _: client.get("/openapi.json"))
    found: dict[str, Any] = answer.json()
    return found


def test_every_reference_of_the_specification_leads_somewhere(spec: dict[str, Any]) -> None:
    def references(part: Any) -> list[str]:
        if isinstance(part, list):
            return [each for item in part for each in references(item)]
        if not isinstance(part, dict):
            return []
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [each for item in part.values() for each in references(item)]

    found = references(spec)
    assert found
    for reference in found:
        place: Any = spec
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_post_has_a_body_an_example_answer_and_problems(spec: dict[str, Any]) -> None:
    posts = {path: methods["post"] for path, methods in spec["paths"].items() if "post" in methods}
    assert set(posts) == {"/v1/detect", "/v1/detect/file", "/v1/detect/stream", "/predict"}
    for operation in posts.values():
        [(_, body)] = operation["requestBody"]["content"].items()
        assert body["schema"]["type"] in ("object", "string")
        [(_, answer)] = operation["responses"]["200"]["content"].items()
        assert answer["example"]
        assert answer["schema"]
        assert {"400", "413", "415", "422", "500", "503"} <= set(operation["responses"])


@pytest.mark.parametrize(("path", "model"), [("/v1/model", schemas.ModelInfo), ("/v1/admin/status", Status)])
def test_an_example_is_what_an_answer_is(spec: dict[str, Any], path: str, model: type[BaseModel]) -> None:
    answers = spec["paths"][path]["get"]["responses"]
    example = answers["200"]["content"]["application/json"]["example"]
    assert model.model_validate(example).model_dump(mode="json") == example
    assert {"401", "403"} <= set(answers)


@pytest.mark.parametrize("path", ["/v1/detect", "/predict", "/v1/detect/stream"])
def test_every_example_of_the_specification_is_answered(tiny_bundle: Path, spec: dict[str, Any], path: str) -> None:
    [(kind, body)] = spec["paths"][path]["post"]["requestBody"]["content"].items()

    async def scenario(client: Any, _: Any) -> list[int]:
        asked = [each["value"] for each in body["examples"].values()]
        sent = [
            {"content": each, "headers": {"Content-Type": kind}} if isinstance(each, str) else {"json": each}
            for each in asked
        ]
        return [(await client.post(path, **each)).status_code for each in sent]

    assert set(ask(Detector.load(tiny_bundle), scenario)) == {200}


@pytest.mark.parametrize("with_keys", [True, False])
def test_the_specification_says_whether_a_key_is_needed(tiny_bundle: Path, with_keys: bool) -> None:
    access = AccessControl(Limiter(unlimited), read_keys=KeyRing if with_keys else None)
    with ThreadPoolExecutor(1) as model:
        said = create_app(Traffic(Service(Detector.load(tiny_bundle), ServeConfig(), model)), access).openapi()
    assert ("HTTPBearer" in said["components"].get("securitySchemes", {})) == with_keys
    needing = {path for path, methods in said["paths"].items() if any("security" in each for each in methods.values())}
    assert ("/v1/detect" in needing, "/readyz" in needing) == (with_keys, False)
