"""Which version answers, and what the shadow is told: in process, with tiny detectors."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from detect_ai.core.config import ServeConfig
from detect_ai.detector.detector import Detector
from detect_ai.schemas import Verdict
from serve_app.api.app import create_app
from serve_app.auth.access import AccessControl
from serve_app.auth.api_keys import KeyRing, Scope, create_key
from serve_app.auth.rate_limit import Limiter, Reservation
from serve_app.engine.engine import Service
from serve_app.engine.metrics import Telemetry
from serve_app.engine.versions import Traffic
from tests.fixtures import tiny_models

TEXTS = [tiny_models.text(kind, random.Random(i), 60) for i, kind in enumerate(["human", "ai"] * 4)]


class Counted(Telemetry):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.pairs: list[tuple[Verdict, Verdict]] = []
        self.statuses: list[int] = []
        self.batches: list[int] = []

    def answered(self, verdicts: Any) -> None:
        self.verdicts += verdicts

    def compared(self, mine: Verdict, other: Verdict) -> None:
        self.pairs.append((mine, other))

    def refused(self, status: int) -> None:
        self.statuses.append(status)

    def ran(self, tokens: int, seconds: float, waiting: int) -> None:
        self.batches.append(tokens)


@pytest.fixture(scope="module")
def detectors(tiny_bundle: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Detector]:
    folder = tmp_path_factory.mktemp("other") / "bundle"
    tiny_models.make_bundle(folder, encoder, seed=1)
    return Detector.load(tiny_bundle), Detector.load(folder)


async def unlimited(method: str, *arguments: Any) -> Reservation:
    return Reservation(0)


def ask(
    main: Detector,
    *,
    canary: Detector | None = None,
    share: float = 0.0,
    shadow: Detector | None = None,
    config: ServeConfig | None = None,
    access: AccessControl | None = None,
    requests: list[dict[str, Any]],
) -> tuple[list[httpx.Response], Counted]:
    """The answers to requests one after another, and what was counted."""
    config, counted = config or ServeConfig(), Counted()

    async def scenario() -> list[httpx.Response]:
        with ThreadPoolExecutor(1) as model:

            def service(detector: Detector | None, telemetry: Telemetry) -> Service | None:
                return Service(detector, config, model, telemetry) if detector else None

            first = service(main, counted)
            assert first is not None
            traffic = Traffic(first, service(canary, counted), share, service(shadow, Telemetry()), counted)
            app = create_app(traffic, access or AccessControl(Limiter(unlimited)), counted)
            traffic.start()
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                found = []
                for request in requests:
                    found.append(await client.request(**{"method": "POST", "url": "/v1/detect", **request}))
                    while traffic._comparing:
                        await asyncio.sleep(0.01)
            await traffic.close()
            return found

    return asyncio.run(asyncio.wait_for(scenario(), 60)), counted


def test_a_canary_answers_its_share_and_every_answer_says_which(detectors: tuple[Detector, Detector]) -> None:
    main, other = detectors
    requests = [{"json": {"text": TEXTS[i % 8]}, "headers": {"X-Request-ID": f"r{i}"}} for i in range(60)]
    found, _ = ask(main, canary=other, share=0.3, requests=requests)
    versions = [response.json()["model_version"] for response in found]
    assert versions == [response.headers["x-model-version"] for response in found]
    assert set(versions) == {main.version, other.version}
    assert 8 <= versions.count(other.version) <= 30
    again, _ = ask(main, canary=other, share=0.3, requests=requests)
    assert [response.json()["model_version"] for response in again] == versions
    for response, request in zip(found, requests, strict=True):
        by = main if response.json()["model_version"] == main.version else other
        expected = by.detect([request["json"]["text"]])[0].probability
        assert response.json()["verdicts"][0]["probability"] == pytest.approx(expected, abs=1e-5)


def test_a_caller_with_a_key_meets_one_version(detectors: tuple[Detector, Detector]) -> None:
    main, other = detectors
    keys = [create_key(f"k{i}") for i in range(30)]
    access = AccessControl(Limiter(unlimited), read_keys=lambda: KeyRing(key for _, key in keys))
    requests = [
        {"json": {"text": TEXTS[0]}, "headers": {"Authorization": f"Bearer {token}"}} for token, _ in keys for _ in "ab"
    ]
    found, _ = ask(main, canary=other, share=0.5, access=access, requests=requests)
    versions = [response.json()["model_version"] for response in found]
    assert versions[::2] == versions[1::2]
    assert set(versions) == {main.version, other.version}


def test_the_shadow_judges_what_was_answered_and_answers_nobody(detectors: tuple[Detector, Detector]) -> None:
    main, other = detectors
    found, counted = ask(main, shadow=other, requests=[{"json": {"texts": TEXTS}}])
    assert found[0].json()["model_version"] == main.version
    mine, others = zip(*counted.pairs, strict=True)
    assert [v.probability for v in mine] == pytest.approx([v.probability for v in main.detect(TEXTS)], abs=1e-5)
    assert [v.probability for v in others] == pytest.approx([v.probability for v in other.detect(TEXTS)], abs=1e-5)
    assert {v.model_version for v in counted.verdicts} == {main.version}


def test_a_shadow_that_fails_fails_alone(detectors: tuple[Detector, Detector], tiny_bundle: Path) -> None:
    broken = Detector.load(tiny_bundle)

    class Broken:
        has_lanes = False

        def log_odds(self, batch: Any) -> Any:
            raise RuntimeError(TEXTS[0])

    broken.backend = Broken()
    found, counted = ask(detectors[0], shadow=broken, requests=[{"json": {"text": TEXTS[0]}}] * 2)
    assert [response.status_code for response in found] == [200, 200]
    assert counted.pairs == []


def test_what_is_refused_and_what_is_read_is_counted(detectors: tuple[Detector, Detector]) -> None:
    _, counted = ask(
        detectors[0],
        requests=[{"json": {"text": 5}}, {"url": "/nothing"}, {"json": {"text": TEXTS[0]}}],
    )
    assert counted.statuses == [422]  # addresses that are none are no refusal of the detector
    assert len(counted.verdicts) == 1
    assert counted.batches[0] >= 60


def test_more_tokens_than_the_bound_are_refused(detectors: tuple[Detector, Detector]) -> None:
    found, _ = ask(detectors[0], config=ServeConfig(max_tokens=100), requests=[{"json": {"texts": TEXTS}}])
    assert found[0].status_code == 413
    assert "tokens, at most 100 are read" in found[0].json()["detail"]


def test_the_cache_answers_the_same_without_the_model(detectors: tuple[Detector, Detector]) -> None:
    request = {"json": {"texts": TEXTS, "return_spans": True}}
    found, counted = ask(detectors[0], config=ServeConfig(cache_texts=1000), requests=[request, request])
    first, second = (response.json()["verdicts"] for response in found)
    assert first == second
    _, without = ask(detectors[0], requests=[request, request])
    assert len(without.batches) == 2 * len(counted.batches)


def test_other_pages_may_ask_only_when_they_are_named(detectors: tuple[Detector, Detector]) -> None:
    asked = {"Origin": "https://school.example", "Access-Control-Request-Method": "POST"}
    wanted = {"Access-Control-Request-Headers": "authorization,content-type"}
    preflight = {"method": "OPTIONS", "headers": {**asked, **wanted}}
    closed, _ = ask(detectors[0], requests=[preflight])
    assert "access-control-allow-origin" not in closed[0].headers
    open_to_one = ServeConfig(cors_origins=["https://school.example"])
    access = AccessControl(Limiter(unlimited), read_keys=KeyRing)
    found, _ = ask(detectors[0], config=open_to_one, access=access, requests=[preflight])
    assert found[0].headers["access-control-allow-origin"] == "https://school.example"
    preflight["headers"] = {**preflight["headers"], "Origin": "https://other.example"}
    found, _ = ask(detectors[0], config=open_to_one, access=access, requests=[preflight])
    assert "access-control-allow-origin" not in found[0].headers


def test_an_operator_sees_the_replica_and_no_hash(detectors: tuple[Detector, Detector]) -> None:
    token, key = create_key("chief", [Scope.ADMIN])
    access = AccessControl(Limiter(unlimited), read_keys=lambda: KeyRing([key]))
    request = {"method": "GET", "url": "/v1/admin/status", "headers": {"Authorization": f"Bearer {token}"}}
    found, _ = ask(detectors[0], canary=detectors[1], share=0.1, access=access, requests=[request])
    status = found[0].json()
    assert status["canary"] == detectors[1].version
    assert status["keys"] == [{"id": key.id, "name": "chief", "scopes": ["admin"]}]
    assert key.sha256 not in found[0].text
