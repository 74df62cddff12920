"""Twenty processes publish twenty versions at once: no champion is lost, and none replaces a better one."""

from __future__ import annotations

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from detect_ai.core import audit_log
from detect_ai.core.config import Config, GateConfig
from detect_ai.core.errors import ConflictError, GateError
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.registry import Registry
from detect_ai.release import publish as module
from detect_ai.release.promotion_gate import TEST, gate
from tests.unit.release.test_publish import add_candidate, change

PROCESSES = 20
GOOD, WORSE = 0.95, 0.9  # AUROC: the difference is larger than the gate allows


@pytest.fixture(params=["local", "gcs"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("gcs_root"))


@pytest.fixture
def folders(tmp_path: Path, tiny_bundle: Path) -> list[Path]:
    """Candidates that differ in one field."""
    folders = [shutil.copytree(tiny_bundle, tmp_path / f"bundle-{i}") for i in range(PROCESSES)]
    for i, folder in enumerate(folders):
        bundle.write_spec(folder, replace(bundle.read_spec(folder), min_tokens=100 + i))
    return folders


def publish_until_decided(root: str, run: str) -> tuple[str | None, int]:
    """The version that became champion (None if the gate rejected it), and how often another process was faster."""
    config, conflicts = Config(run=run), 0
    config.tracking.mode = "disabled"
    with patch.object(module, "model_card", lambda *_: "# Card\n"):  # needs all metrics of an evaluation
        while True:
            try:
                return module.publish(config, Storage(root))["champion"], conflicts
            except ConflictError:
                conflicts += 1
            except GateError:
                return None, conflicts


@pytest.mark.slow
def test_every_champion_passed_the_gate_against_its_predecessor(storage: Storage, folders: list[Path]) -> None:
    runs = [f"run-{i}" for i in range(PROCESSES)]
    for i, (run, folder) in enumerate(zip(runs, folders, strict=True)):
        add_candidate(storage, folder, run)
        change(storage, run=run, auroc=(GOOD, WORSE)[i % 2])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    registry, reads = Registry(storage), 0
    with ProcessPoolExecutor(PROCESSES, context) as pool:
        futures = [pool.submit(publish_until_decided, storage.root, run) for run in runs]
        while not all(future.done() for future in futures):
            states, champion = registry.history(), registry.champion()  # raise for a record that does not parse
            assert champion is not None or not states
            reads += 1
        outcomes = [future.result() for future in futures]
    assert reads > 1
    assert sum(conflicts for _, conflicts in outcomes) > 0
    assert None not in [version for version, _ in outcomes[::2]], "a good one was refused"
    published, history = sorted(version for version, _ in outcomes if version), registry.history()
    assert sorted(state.version for state in history) == published
    metrics = [module.metrics_of(registry, state.version) for state in history]
    for number, state in enumerate(history):
        assert state.previous == number, "the gate compared with a champion of the past"
        assert gate(metrics[number], metrics[number - 1] if number else None, GateConfig()) == ([], [])
    assert metrics[-1][TEST]["auroc"] == GOOD
    assert registry.verify()["problems"] == []
    events = list(audit_log.events(storage))
    assert sorted(event["version"] for event in events if event["action"] == "publish") == published
    assert sum(event["action"] == "publish-refused" for event in events) == PROCESSES - len(published)
