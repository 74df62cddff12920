"""Version routing: the canary's fraction, its isolation, and the health of the deployed version."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import httpx
import numpy as np
import pytest

from detect_ai.core.config import ServeConfig
from detect_ai.detector.detector import Detector
from detect_ai.schemas import Verdict
from serve_app.api.app import create_app
from serve_app.auth.access import AccessControl
from serve_app.auth.rate_limit import Limiter
from serve_app.deployment import Replica
from serve_app.engine.engine import Charge, Engine, Options, RequestInfo
from serve_app.engine.metrics import Record, discard
from serve_app.engine.versions import Versions
from tests.fixtures import tiny_models
from tests.unit.serve_app.api.test_app import CANARY, Broken, Recorded

TEXT = f"{CANARY} " * 20


class Held:
    """A backend whose batches stay in the model until a gate opens."""

    has_lanes = False

    def __init__(self) -> None:
        self.gate = threading.Event()

    def log_odds(self, batch: Any) -> Any:
        assert self.gate.wait(20)
        return np.zeros(len(batch.lengths))


@pytest.fixture
def detectors(tiny_bundle: Path, encoder: Path, tmp_path: Path) -> tuple[Detector, Detector]:
    tiny_models.make_bundle(tmp_path / "bundle", encoder, seed=1)
    return Detector.load(tiny_bundle), Detector.load(tmp_path / "bundle")


def run(
    detectors: tuple[Detector, Detector],
    fraction: float,
    scenario: Callable[[Versions], Awaitable[Any]],
    record: Record = discard,
    **options: Any,
) -> Any:
    async def main() -> Any:
        config = ServeConfig(**options)
        versions = Versions(*(Engine(detector, config, record) for detector in detectors), fraction)
        versions.start()
        try:
            return await asyncio.wait_for(scenario(versions), 30)
        finally:
            await versions.close()

    return asyncio.run(main())


async def detect(versions: Versions, caller: str = "", charge: Charge = lambda _: None) -> tuple[Verdict, Engine]:
    async def work(engine: Engine) -> Verdict:
        info = RequestInfo("request-1", caller, charge)
        return await engine.run(lambda: engine.encode([TEXT], Options()), lambda verdicts: verdicts[0], len(TEXT), info)

    return await versions.run(versions.choose(caller), work)


def test_a_canary_serves_its_fraction_of_the_callers(detectors: tuple[Detector, Detector]) -> None:
    async def scenario(versions: Versions) -> list[str]:
        return [(await detect(versions, f"r{i}"))[0].model_version for i in range(60)]

    answers = run(detectors, 0.3, scenario)
    assert 8 <= answers.count(detectors[1].version) <= 30
    assert set(answers) == {detector.version for detector in detectors}
    assert run(detectors, 0.3, scenario) == answers  # the same callers


def test_the_main_version_answers_for_a_broken_canary(
    detectors: tuple[Detector, Detector], caplog: pytest.LogCaptureFixture
) -> None:
    detectors[1].backend = Broken()
    recorded = Recorded()
    verdict, engine = run(detectors, 1.0, detect, recorded)
    assert recorded.of("problems") == {("canary",): 1}
    assert verdict.model_version == engine.detector.version == detectors[0].version
    assert CANARY not in caplog.text


@pytest.mark.parametrize("batch_tokens", [64, 16384])  # with short batches the request is queued
def test_a_failed_canary_costs_no_tokens(detectors: tuple[Detector, Detector], batch_tokens: int) -> None:
    detectors[1].backend = Broken()
    charged: list[int] = []
    verdict, _ = run(detectors, 1.0, lambda v: detect(v, charge=charged.append), batch_tokens=batch_tokens)
    assert len(charged) == 3
    assert sum(charged) == charged[-1] >= verdict.num_tokens


def test_a_failed_request_costs_no_tokens(detectors: tuple[Detector, Detector]) -> None:
    detectors[0].backend = Broken()
    charged: list[int] = []
    with pytest.raises(RuntimeError):
        run(detectors, 0.0, lambda v: detect(v, charge=charged.append))
    assert len(charged) == 2
    assert sum(charged) == 0


def test_a_hung_canary_leaves_the_main_version_healthy(
    detectors: tuple[Detector, Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.engine.batcher.HUNG_S", 0.2)
    detectors[1].backend = held = Held()

    async def scenario(versions: Versions) -> None:
        hung = asyncio.create_task(detect(versions))
        await asyncio.sleep(0.3)
        assert not versions.canary.batcher.alive  # type: ignore[union-attr]
        Replica.check_health(SimpleNamespace(versions=versions))  # type: ignore[arg-type]
        transport = httpx.ASGITransport(create_app(versions, AccessControl(Limiter(AsyncMock()))))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get("/readyz")).status_code == 200
        assert (await detect(versions))[0].model_version == detectors[0].version
        hung.cancel()
        held.gate.set()

    run(detectors, 1.0, scenario, request_timeout_s=0.1)


def test_versions_are_reported_with_their_roles(detectors: tuple[Detector, Detector]) -> None:
    recorded = Recorded()

    async def scenario(versions: Versions) -> None:
        versions.report()

    run(detectors, 0.0, scenario, recorded)
    roles = zip(("main", "canary"), detectors, strict=True)
    assert recorded.of("loaded") == {(role, detector.version): 1 for role, detector in roles}
