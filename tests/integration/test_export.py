"""Ways to run a champion, measured and judged on a real cluster: what goes into the registry, and what does not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detect_ai import metrics
from detect_ai.calibration.calibration import calibrate
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import result_key, run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.release.calibrate import calibrate_checkpoint
from detect_ai.release.export import export
from detect_ai.release.publish import publish
from tests.integration.conftest import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OPEN = {"min_speedup": 1e-6, "max_auroc_change": 1.0, "max_tpr_drop": 1.0}


@pytest.fixture(scope="module")
def run(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A store of its own: other tests count the versions of the shared one."""
    root = shutil.copytree(run.storage.root, tmp_path_factory.mktemp("exported") / "store")
    storage = Storage(str(root))
    config = run.config.model_copy(update={"storage": run.config.storage.model_copy(update={"root": str(root)})})
    return replace(run, config=config, storage=storage, corpus=Corpus.open(storage, run.prepared["corpus"]))


def config_of(run: Run, bundle: str = "", **settings: Any) -> Config:
    told = {"rounds": 2, "texts": 16, "candidates": ["onnx-int8"], **settings}
    serve = run.config.serve.model_copy(update={"threads_per_replica": 1})
    return run.config.model_copy(
        update={"bundle": bundle, "serve": serve, "export": run.config.export.model_copy(update=told)}
    )


@pytest.fixture(scope="module")
def champion(run: Run) -> str:
    for name, stage in {"calibrate": calibrate_checkpoint, "evaluate": evaluate, "publish": publish}.items():
        run_stage(name, stage, run.config, run.storage)
    return Registry(run.storage).require_champion()


@pytest.fixture(scope="module")
def exported(run: Run, champion: str) -> dict[str, Any]:
    """With an open gate, so that something passes however fast this machine is today."""
    return run_stage("export", export, config_of(run, **OPEN), run.storage)


@pytest.fixture(scope="module")
def child(run: Run, exported: dict[str, Any]) -> Detector:
    with Registry(run.storage).folder(exported["version"]) as folder:
        return Detector.load(folder)


def ids_of(run: Run, split: str) -> list[Any]:
    return [np.asarray(row, np.int32) for row in run.corpus.read(split, ["input_ids"])["input_ids"].to_pylist()]


def test_the_fastest_that_passes_is_a_version_with_its_parent_and_the_champion_stays(
    run: Run, champion: str, exported: dict[str, Any], child: Detector
) -> None:
    registry = Registry(run.storage)
    assert registry.champion() == champion == exported["parent"] == child.spec.parent
    assert set(registry.versions()) == {champion, exported["version"]}
    assert exported["backend"] == child.spec.backend == "onnx-int8"


def test_its_thresholds_are_those_of_its_own_scores(run: Run, child: Detector) -> None:
    labels, scores = run.corpus.labels("calibration"), child.score(ids_of(run, "calibration"))
    own = calibrate(labels, scores, run.config.calibration.target_fprs)
    found = child.spec.calibration
    # In 8 bits a score moves with the batch that it is in.
    np.testing.assert_allclose(found.human_scores, own.human_scores, atol=0.1)
    with Registry(run.storage).folder(str(child.spec.parent)) as folder:
        parent = Detector.load(folder).spec.calibration
    assert found.human_scores != parent.human_scores
    assert sorted(found.thresholds) == sorted(parent.thresholds)


def test_the_table_has_every_candidate_with_its_speed_and_its_figures(run: Run, exported: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in exported["candidates"]}
    assert set(rows) == {"torch", "onnx-int8"}
    assert rows["torch"]["speedup"] == 1
    assert not rows["torch"]["passes"]
    for name, row in rows.items():
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"], name
        assert row["n_human"] == int((run.corpus.labels("validation") == 0).sum())
    expected = metrics.auroc(run.corpus.labels("validation"), detector_of(run).score(ids_of(run, "validation")))
    assert rows["torch"]["auroc"] == pytest.approx(expected, abs=1e-9)
    assert rows["torch"]["difference"] == 0
    assert rows["onnx-int8"]["difference"] > 0
    (attempt,) = [name for name in run.storage.list(f"runs/{run.config.run}") if name.startswith("export-")]
    table = run.storage.read_bytes(f"runs/{run.config.run}/{attempt}/table.md").decode()
    assert "| onnx-int8 |" in table
    assert "**chosen**" in table
    assert run.storage.list(f"runs/{run.config.run}/{attempt}") == ["bundle", "table.md"]


def detector_of(run: Run) -> Detector:
    registry = Registry(run.storage)
    with registry.folder(registry.require_champion()) as folder:
        return Detector.load(folder)


def test_what_is_not_faster_makes_nothing(run: Run, champion: str, exported: dict[str, Any]) -> None:
    before = Registry(run.storage).versions()
    result = export(config_of(run, **{**OPEN, "min_speedup": 1e6}), run.storage)
    assert (result["version"], result["backend"], result["chosen"]) == (None, None, None)
    reasons = {row["name"]: row["reasons"] for row in result["candidates"]}
    assert reasons == {"torch": ["The others are measured against it."], "onnx-int8": ["Not 1e+06 times as fast."]}
    assert Registry(run.storage).versions() == before


def test_what_is_faster_and_worse_makes_nothing_and_what_cannot_be_made_is_said(
    run: Run, champion: str, exported: dict[str, Any]
) -> None:
    """The gate allows less than no change: nothing is as good as that."""
    before = Registry(run.storage).versions()
    config = config_of(run, min_speedup=1e-6, max_auroc_change=-1.0, candidates=["torch+layers-1", "torch+layers-2"])
    result = export(config, run.storage)
    assert result["chosen"] is None
    reasons = {row["name"]: row["reasons"] for row in result["candidates"]}
    assert reasons["torch+layers-1"][0].startswith("AUROC moved by ")
    assert result["left_out"] == {"torch+layers-2": "InputError: 2 layers: expected 1 to 1, fewer than the encoder has"}
    assert Registry(run.storage).versions() == before


def test_a_published_export_is_champion_until_it_is_rolled_back(
    run: Run, champion: str, exported: dict[str, Any]
) -> None:
    open_gate = run.config.gate.model_copy(update={"min_auroc": 0.0, "max_auroc_drop": 1.0})
    config = run.config.model_copy(update={"bundle": exported["version"], "gate": open_gate})
    assert publish(config, run.storage)["before"] == champion
    registry = Registry(run.storage)
    assert registry.champion() == exported["version"]
    with pytest.raises(ConfigError) as error:
        export(config_of(run), run.storage)
    assert str(error.value) == (
        f"bundle {exported['version']} is an export itself: name the one that it was made from, {champion}"
    )
    assert registry.rollback() == champion


def test_a_bundle_of_another_corpus_is_refused(run: Run, champion: str) -> None:
    config = config_of(run)
    record = run.storage.read_json(result_key(run.config.run, "prepare"))
    manifest_key = f"{run.corpus.key}/manifest.json"
    manifest = run.storage.read_json(manifest_key)
    assert record["result"]["corpus"] == run.corpus.key
    run.storage.write_json(manifest_key, {**manifest, "fingerprint": "f" * 64})
    try:
        with pytest.raises(
            ConfigError, match=r"learnt from corpus .* thresholds need the calibration split of its own"
        ):
            export(config, run.storage)
    finally:
        run.storage.write_json(manifest_key, manifest)
