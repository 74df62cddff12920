"""The sweep on a real cluster: every trial in a table, the best one named, everything free afterwards."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from detect_ai.config import SweepConfig
from detect_ai.errors import ResourceError, TrainingError
from detect_ai.sweep import concurrency, sweep, table
from tests.integration.conftest import Run

LRS = [1e-5, 1e-2, 1e30]  # too small to learn, right, and one that no loss survives


def grid(run: Run, lrs: list[float]) -> Any:
    return replace(run.config, sweep=SweepConfig(search="grid", lrs=lrs, epochs=1))


@pytest.fixture(scope="module")
def swept(run: Run) -> dict[str, Any]:
    """A sweep in a store where earlier sweeps lie already."""
    for day in range(1, 5):
        run.storage.write_bytes(f"runs/{run.config.run}/sweep-2020010{day}T000000000/trial", b"old")
    return sweep(grid(run, LRS), run.storage)


def everything_is_free(seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        if not groups and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.2)
    return False


# The first test of this file: nothing may run between the sweep and it.
def test_all_resources_are_free_after_a_sweep(swept: dict[str, Any]) -> None:
    assert everything_is_free(), (ray.available_resources(), placement_group_table())


def test_every_learning_rate_is_a_trial(swept: dict[str, Any]) -> None:
    assert sorted(trial["lr"] for trial in swept["trials"]) == LRS


def test_the_trial_with_the_best_auroc_is_named_and_of_equals_the_surest(swept: dict[str, Any]) -> None:
    finished = [trial for trial in swept["trials"] if trial["error"] is None]
    assert len(finished) == 2
    assert swept["best"] == max(finished, key=lambda trial: (trial["auroc"], -trial["val_loss"]))


def test_the_checkpoint_of_every_finished_trial_lies_where_it_says(swept: dict[str, Any], run: Run) -> None:
    keys = [trial["checkpoint"] for trial in swept["trials"] if trial["error"] is None]
    assert len(set(keys)) == 2
    assert all(run.storage.exists(f"{key}/model.safetensors") for key in keys)


def test_a_trial_that_diverges_is_recorded_with_its_reason(swept: dict[str, Any]) -> None:
    failed = {trial["lr"]: trial["error"] for trial in swept["trials"] if trial["error"] is not None}
    assert failed.keys() == {1e30}
    assert re.search(
        r"the training loss is nan at step \d \(learning rate 1.00e\+30, documents [\d, ]+ of .*: lower train.lr",
        failed[1e30],
    )


def test_the_table_shows_every_trial(swept: dict[str, Any]) -> None:
    lines = table(swept["trials"]).splitlines()
    assert len(lines) == 1 + len(LRS)
    assert f"{swept['best']['lr']:.2e}" in lines[1]
    assert lines[-1].lstrip().startswith("1.00e+30 failed: ")


def test_two_trials_of_two_workers_run_at_once_on_eight_cpus(swept: dict[str, Any], run: Run) -> None:
    assert ray.cluster_resources()["CPU"] == 8
    assert swept["concurrent"] == 2
    sweep_folder = Path(run.storage.path(swept["best"]["checkpoint"])).parents[1]
    started = sorted(marker.stat().st_mtime for marker in sweep_folder.glob("*/.validate_storage_marker"))
    saved = min(weights.stat().st_mtime for weights in sweep_folder.glob("*/checkpoint_*/model.safetensors"))
    assert started[1] < saved, "the second trial began after the first had trained"


def test_sweeps_are_pruned_to_what_the_store_keeps(swept: dict[str, Any], run: Run) -> None:
    sweeps = [name for name in run.storage.list(f"runs/{run.config.run}") if name.startswith("sweep-")]
    assert len(sweeps) == run.config.storage.keep
    assert sweeps[-1] == swept["best"]["checkpoint"].split("/")[2]


def test_a_limit_of_concurrent_trials_is_kept(run: Run) -> None:
    assert concurrency(replace(run.config, sweep=replace(run.config.sweep, max_concurrent=1))) == 1


def test_a_sweep_of_which_nothing_is_left_says_why(run: Run) -> None:
    with pytest.raises(TrainingError, match=r"^all 1 trials failed; the first said: .*the training loss is nan at"):
        sweep(grid(run, [1e30]), run.storage)
    assert everything_is_free()


def test_a_trial_that_cannot_be_placed_is_refused_at_once(run: Run) -> None:
    config = replace(grid(run, LRS), train=replace(run.config.train, num_workers=8))
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"^a trial of the sweep \(8 workers .* needs 9.1 CPUs, .* 1.1 missing"):
        sweep(config, run.storage)
    assert time.monotonic() - started < 5
