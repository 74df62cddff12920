"""What a run of W&B that is offline holds, read from its file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detect_ai.core.config import load_config
from detect_ai.core.tracking import open_run
from tests.fixtures.wandb_reader import finished, history


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("tracked")
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "weights.bin").write_bytes(b"weights")
    config = load_config([f"storage.root={folder / 'store'}", "tracking.mode=offline", "seed=7"])
    with open_run(config, facts={"corpus_fingerprint": "abc"}, group="sweep-1", name="trial-1") as run:
        run.log({"validation/auroc": 0.75}, step=3)
        run.curve("evaluation/roc", "ROC", ("fpr", "tpr"), [(0.0, 0.0), (0.5, 1.0)])
        run.artifact("champion", bundle, {"version": "v1"}, ["champion"])
    return finished(folder / "store")


def test_the_run_has_its_group_and_name_and_the_whole_configuration(told: list[Any]) -> None:
    (run,) = [record.run for record in told if record.HasField("run")]
    assert (run.run_group, run.display_name, run.project) == ("sweep-1", "trial-1", "detect_ai")
    known = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (known["seed"], known["corpus_fingerprint"]) == (7, "abc")
    assert known["train"]["epochs"] == load_config([]).train.epochs


def test_figures_stand_at_their_step(told: list[Any]) -> None:
    assert history(told)["validation/auroc"] == 0.75
    steps = [record.history.step.num for record in told if record.HasField("history")]
    assert 3 in steps


def test_a_curve_is_a_table_of_its_points(told: list[Any]) -> None:
    found, table = history(told), "evaluation/roc_table"
    kept = [found[f"{table}/{name}"] for name in ("_type", "nrows", "ncols")]
    assert kept == ["table-file", 2, 2]


def test_the_artifact_has_its_files_aliases_and_facts(told: list[Any]) -> None:
    (artifact,) = [
        record.artifact for record in told if record.HasField("artifact") and record.artifact.type == "model"
    ]
    assert (artifact.name, set(artifact.aliases)) == ("champion", {"champion", "latest"})
    assert json.loads(artifact.metadata) == {"version": "v1"}
    assert [entry.path for entry in artifact.manifest.contents] == ["weights.bin"]
