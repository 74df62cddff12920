"""The prediction log and feedback over the HTTP API, in process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from detect_ai.core.config import MonitoringConfig, ServeConfig
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.monitoring.feedback import Feedback
from detect_ai.monitoring.log_files import read
from detect_ai.monitoring.prediction_log import PredictionLog
from detect_ai.schemas import Label
from serve_app.api.app import create_app
from serve_app.auth.access import AccessControl
from serve_app.auth.api_keys import KeyRing, Scope, create_key
from serve_app.engine.engine import Engine
from serve_app.engine.metrics import discard
from serve_app.engine.versions import Versions
from tests.unit.serve_app.auth.test_rate_limit import Cluster

TEXT = "The council met on Tuesday near the bridge, said the quiet farmer at the market in the rain."
Scenario = Callable[[httpx.AsyncClient], Awaitable[Any]]


class Service:
    """The application with a log and a database in a folder."""

    def __init__(self, storage: Storage, bundle: Path) -> None:
        self.storage, self.config = storage, MonitoringConfig(log=True, audit_fraction=1)
        self.feedback = Feedback(storage, self.config)
        self.detector = Detector.load(bundle)
        scopes = {"reader": Scope.DETECT, "dean": Scope.FEEDBACK, "auditor": Scope.AUDIT}
        pairs = {name: create_key(name, [scope]) for name, scope in scopes.items()}
        self.metrics: list[tuple[str, float, dict[str, str]]] = []
        self.tokens = {name: token for name, (token, _) in pairs.items()}
        self.ring = KeyRing(key for _, key in pairs.values())

    def ask(self, scenario: Scenario, logged: bool = True) -> Any:
        async def main() -> Any:
            log = PredictionLog(self.storage, self.config, discard) if logged else None
            versions = Versions(Engine(self.detector, ServeConfig(), self.record, log=log))
            control = AccessControl(Cluster().replica(), read_keys=lambda: self.ring)
            app = create_app(versions, control, self.feedback if logged else None)
            transport = httpx.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
            ):
                return await scenario(client)

        return asyncio.run(asyncio.wait_for(main(), 60))

    async def detect(self, client: httpx.AsyncClient, *texts: str, **headers: str) -> str:
        headers = {**self.header("reader"), **headers}
        response = await client.post("/v1/detect", json={"texts": list(texts)}, headers=headers)
        return str(response.json()["request_id"])

    async def report(self, client: httpx.AsyncClient, name: str = "dean", **body: Any) -> httpx.Response:
        return await client.post("/v1/feedback", json=body, headers=self.header(name))

    def record(self, metric: str, value: float = 1, **labels: str) -> None:
        self.metrics.append((metric, value, labels))

    def header(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[name]}"}


@pytest.fixture
def service(storage: Storage, tiny_bundle: Path) -> Service:
    return Service(storage, tiny_bundle)


def test_every_text_is_logged_with_its_verdict(service: Service) -> None:
    async def scenario(client: httpx.AsyncClient) -> Any:
        response = await client.post("/v1/detect", json={"texts": [TEXT, TEXT * 2]}, headers=service.header("reader"))
        return response.json()

    answer = service.ask(scenario)
    rows = read(service.storage).to_pylist()
    assert [(row["request_id"], row["index"]) for row in rows] == [(answer["request_id"], 0), (answer["request_id"], 1)]
    assert [row["label"] for row in rows] == [verdict["label"] for verdict in answer["verdicts"]]
    assert [row["num_tokens"] for row in rows] == [verdict["num_tokens"] for verdict in answer["verdicts"]]


def test_files_and_predict_are_logged(service: Service) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post("/predict", json={"inputs": TEXT}, headers=service.header("reader"))
        form = {"files": ("a.txt", TEXT.encode(), "text/plain")}
        await client.post("/v1/detect/file", files=form, headers=service.header("reader"))

    service.ask(scenario)
    assert read(service.storage).num_rows == 2


@pytest.mark.parametrize(("name", "audited"), [("dean", False), ("auditor", True)])
def test_labels_are_recorded_by_scope(service: Service, name: str, audited: bool) -> None:
    async def scenario(client: httpx.AsyncClient) -> Any:
        id_ = await service.detect(client, TEXT, TEXT)
        response = await service.report(client, name, request_id=id_, index=1, label="human")
        return id_, response

    id_, response = service.ask(scenario)
    assert (response.status_code, response.json()) == (200, {"request_id": id_, "audited": audited, "conflict": False})
    audits, appeals = service.feedback.audited_texts().to_dict("records"), service.feedback.appeals()
    assert (len(audits), len(appeals)) == (int(audited), int(not audited))
    (vote,) = audits + appeals
    assert (vote["request_id"], vote["index"], vote["truth" if audited else "label"]) == (id_, 1, "human")


def test_a_repeated_request_id_is_refused(service: Service) -> None:
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        for _ in range(2):
            await service.detect(client, TEXT, **{"X-Request-ID": "mine"})
        return await service.report(client, "auditor", request_id="mine", label="human")

    assert service.ask(scenario).status_code == 409
    assert service.feedback.audited_texts().empty


def test_a_database_that_does_not_answer_stops_labels_alone(service: Service, tmp_path: Path) -> None:
    config = MonitoringConfig(feedback_url=f"sqlite:///{tmp_path}/gone/secret.db")
    service.feedback = Feedback(service.storage, config)

    async def scenario(client: httpx.AsyncClient) -> list[httpx.Response]:
        id_ = await service.detect(client, TEXT)
        down = await service.report(client, request_id=id_, label="human")
        (tmp_path / "gone").mkdir()
        return [down, await service.report(client, request_id=id_, label="human")]

    down, up = service.ask(scenario)
    assert (down.status_code, up.status_code) == (503, 200)
    assert down.headers["retry-after"]
    assert "secret" not in down.text


def test_the_budget_of_the_served_version_is_reported_from_the_start(service: Service) -> None:
    version = service.detector.version
    known = {"label": "ai", "target_fpr": 0.01, "audited": True}
    for number, of in enumerate([version] * 4 + ["another"] * 9):
        row = {"request_id": f"r{number}", "index": 0, "model_version": of, **known}
        service.feedback.vote(row, "k", Label.HUMAN, may_audit=True)

    def reported() -> list[tuple[float, dict[str, str]]]:
        return [(value, labels) for name, value, labels in service.metrics if name == "accusation_budget_spent"]

    async def scenario(client: httpx.AsyncClient) -> None:
        while not reported():
            await asyncio.sleep(0.01)

    service.ask(scenario)
    assert reported() == [(pytest.approx(4 * math.log(4) / math.log(100)), {"model_version": version})]


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("reader", {"label": "human"}, 403),
        ("dean", {"label": "human", "index": 7}, 404),
        ("dean", {"label": "human", "request_id": "unknown"}, 404),
        ("dean", {"label": "machine"}, 422),
        ("dean", {"label": "ai", "text": TEXT}, 422),
        ("dean", {"label": "ai", "index": -1}, 422),
    ],
)
def test_bad_reports_are_refused(service: Service, name: str, body: dict[str, Any], status: int) -> None:
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        id_ = await service.detect(client, TEXT)
        return await service.report(client, name, **{"request_id": id_, **body})

    response = service.ask(scenario)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert TEXT not in response.text
    assert service.feedback.audited_texts().empty
    assert service.feedback.appeals() == []


def test_feedback_needs_a_log(service: Service) -> None:
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        return await service.report(client, request_id="r", label="ai")

    assert service.ask(scenario, logged=False).status_code == 404


def test_the_page_says_when_texts_are_kept(service: Service) -> None:
    async def page(client: httpx.AsyncClient) -> str:
        return (await client.get("/")).text

    assert "does not store the text" in service.ask(page)
    service.config = MonitoringConfig(log=True, text_days=7)
    kept = service.ask(page)
    assert "7 days" in kept
    assert "does not store" not in kept
