"""The stage `export` on a real cluster: which exports are added to the registry."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from detect_ai import metrics
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.models.backends.torch import Int8Backend
from detect_ai.release import export as export_module
from detect_ai.release.calibrate import calibrate_checkpoint
from detect_ai.release.export import export
from detect_ai.release.publish import publish
from tests.integration.conftest import Run
from tests.integration.runs import attempts, changed, token_ids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(Int8Backend.unavailable_reason("cpu")), reason="needs a CPU with VNNI"),
]

OPEN = {"max_auroc_change": 1.0, "max_tpr_drop": 1.0}
OPEN_GATE = {
    **{"min_auroc": 0.0, "max_auroc_drop": 1.0, "max_fpr": 1.0, "max_fpr_increase": 1.0},
    **{"max_cleared_increase": 1.0, "max_abstained": 1.0},
}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Any:
    """Fewer texts and rounds than a measurement needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "NUM_TEXTS", 16)
        patch.setattr(export_module, "ROUNDS", 2)
        patch.setattr(export_module, "MIN_SPEEDUP", 1e-6)
        yield


@pytest.fixture(scope="module")
def run(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run with a separate store, because other tests count the versions of the shared one."""
    root = shutil.copytree(run.storage.root, tmp_path_factory.mktemp("exported") / "store")
    storage = Storage(str(root))
    config = changed(
        run.config,
        storage={"root": str(root)},
        serve={"threads_per_replica": 1},
        calibration={"verdict_lengths": [16, 32]},
        export={"candidates": ["torch-int8"], **OPEN},
        gate=OPEN_GATE,
    )
    return Run(config, storage, Corpus.open(storage, run.prepared["corpus"]), run.prepared, run.trained)


@pytest.fixture(scope="module")
def champion(run: Run) -> str:
    for name, stage in {"calibrate": calibrate_checkpoint, "evaluate": evaluate, "publish": publish}.items():
        run_stage(name, stage, run.config, run.storage)
    return Registry(run.storage).require_champion()


@pytest.fixture(scope="module")
def exported(run: Run, champion: str) -> dict[str, Any]:
    return run_stage("export", export, run.config, run.storage)


def load(run: Run, version: str) -> Detector:
    with Registry(run.storage).folder(version) as folder:
        return Detector.load(folder)


def test_the_export_becomes_a_version_only(run: Run, champion: str, exported: dict[str, Any]) -> None:
    registry = Registry(run.storage)
    child = load(run, exported["version"])
    assert registry.champion() == champion == exported["parent"] == child.spec.parent
    assert set(registry.versions()) == {champion, exported["version"]}
    assert exported["backend"] == child.spec.backend == "torch-int8"
    assert exported["precision"] == child.spec.precision == "fp32"


def test_the_calibration_is_refitted(run: Run, champion: str, exported: dict[str, Any]) -> None:
    child, parent = (load(run, version).spec.calibration for version in (exported["version"], champion))
    assert child.min_tokens == parent.min_tokens != {}
    assert child.span_scaling is not None
    for own, before in zip(child.domains, parent.domains, strict=True):
        np.testing.assert_allclose(own.human.scores, before.human.scores, atol=1e-3)
        assert own.human.scores != before.human.scores
    assert sorted(child.thresholds) == sorted(parent.thresholds)


def test_every_candidate_has_its_speed_and_its_metrics(run: Run, champion: str, exported: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in exported["candidates"]}
    assert set(rows) == {"parent", "torch-int8"}
    assert (rows["parent"]["speedup"], rows["parent"]["difference"]) == (1, 0)
    labels = run.corpus.labels("validation")
    for name, row in rows.items():
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"], name
        assert row["n_human"] == int((labels == 0).sum())
    expected = metrics.auroc(labels, load(run, champion).score(token_ids(run.corpus, "validation")))
    assert rows["parent"]["auroc"] == pytest.approx(expected, abs=1e-9)
    assert 0 < rows["torch-int8"]["difference"] < 1
    (attempt,) = attempts(run.storage, run.config.run, "export")
    assert run.storage.list(f"runs/{run.config.run}/{attempt}") == ["bundle"]


@pytest.mark.parametrize(
    ("min_speedup", "sections"),
    [
        (1e6, {}),
        (1e-6, {"export": {**OPEN, "max_auroc_change": -1.0}}),
        (1e-6, {"export": OPEN, "gate": {**OPEN_GATE, "min_auroc": 1.1}}),
    ],
    ids=["slower", "other scores", "promotion gate"],
)
def test_a_failed_gate_adds_nothing(
    run: Run,
    champion: str,
    exported: dict[str, Any],
    min_speedup: float,
    sections: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_module, "MIN_SPEEDUP", min_speedup)
    before = Registry(run.storage).versions()
    result = export(changed(run.config, **sections), run.storage)
    assert (result["version"], result["backend"], result["chosen"]) == (None, None, None)
    assert all(row["reasons"] for row in result["candidates"])
    assert Registry(run.storage).versions() == before


def test_a_published_export_can_be_rolled_back(run: Run, champion: str, exported: dict[str, Any]) -> None:
    by_name = run.config.model_copy(update={"bundle": exported["version"]})
    assert publish(by_name, run.storage)["before"] == champion
    registry = Registry(run.storage)
    assert registry.champion() == exported["version"]
    with pytest.raises(ConfigError, match=champion):
        export(run.config, run.storage)
    assert registry.rollback() == champion


def test_a_bundle_of_another_corpus_is_refused(run: Run, champion: str) -> None:
    key = f"{run.corpus.key}/manifest.json"
    manifest = run.storage.read_json(key)
    run.storage.write_json(key, {**manifest, "fingerprint": "f" * 64})
    try:
        with pytest.raises(ConfigError, match="of corpus"):
            export(run.config, run.storage)
    finally:
        run.storage.write_json(key, manifest)
