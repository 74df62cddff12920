"""The sweep on a real cluster: every trial is recorded, the best one named, everything released afterwards."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from detect_ai.core.config import Config, SweepConfig
from detect_ai.core.errors import ResourceError
from detect_ai.training.sweep import sweep
from detect_ai.training.telemetry import read_metrics
from tests.integration.conftest import Run
from tests.integration.runs import attempts, kill_driver, last_start, own_copy, ray_processes, registered, until

LRS = [1e-2, 1e30]  # one that trains, and one that diverges


def grid_config(run: Run, name: str, lrs: list[float], epochs: int, **changes: Any) -> Config:
    """A configuration with another run name, whose trials have one worker."""
    config = own_copy(run.config, run.storage, name)
    config.train.num_workers = 1
    config.sweep = SweepConfig(search="grid", space={"lr": lrs}, epochs=epochs, **changes)
    return config


def epochs(run: Run, folder: str) -> list[int]:
    return [line["epoch"] for line in read_metrics(run.storage, folder) if line["kind"] == "evaluation"]


def everything_is_free(seconds: float = 60) -> bool:
    gc.collect()  # actors of a Dataset that failed live until the error's traceback is collected
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        if not groups and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def swept(run: Run) -> dict[str, Any]:
    """A sweep in a run that holds older ones."""
    config = grid_config(run, "swept", LRS, epochs=1)
    for day in range(1, 5):
        run.storage.write_bytes(f"runs/swept/sweep-2020010{day}T000000000/trial", b"old")
    result = sweep(config, run.storage)
    assert everything_is_free(), (ray.available_resources(), placement_group_table())
    return result


@pytest.mark.slow
def test_best_trial_has_a_checkpoint(swept: dict[str, Any], run: Run) -> None:
    assert sorted(trial["values"]["lr"] for trial in swept["trials"]) == LRS
    best = swept["best"]
    assert (best["values"], best["status"], best["epoch"]) == ({"lr": 1e-2}, "finished", 1)
    assert run.storage.exists(f"{best['checkpoint']}/model.safetensors")
    metrics = run.storage.read_json(f"{best['checkpoint']}/state.json")["history"][-1]
    assert (metrics["auroc"], metrics["val_loss"]) == (best["auroc"], best["val_loss"])


@pytest.mark.slow
def test_older_sweeps_are_pruned(swept: dict[str, Any], run: Run) -> None:
    sweeps = attempts(run.storage, "swept", "sweep")
    assert len(sweeps) == run.config.storage.keep
    assert sweeps[-1] == swept["best"]["checkpoint"].split("/")[2]


def test_trial_that_cannot_be_placed_is_refused(run: Run) -> None:
    config = grid_config(run, "too-big", LRS, epochs=1)
    config.train.num_workers = 8
    with pytest.raises(ResourceError, match=r"^a trial of the sweep \(8 workers .* needs 9.1 CPUs"):
        sweep(config, run.storage)
    assert attempts(run.storage, "too-big", "sweep") == []


@pytest.mark.slow
def test_asha_stops_worse_trials(run: Run) -> None:
    """One good trial runs first: halving stops later, worse trials before their last epoch."""
    result = sweep(grid_config(run, "halved", [1e-2, 1e-6], epochs=4, stop="asha", max_concurrent=1), run.storage)
    status = {trial["values"]["lr"]: trial["status"] for trial in result["trials"]}
    assert status == {1e-2: "finished", 1e-6: "stopped"}
    for trial in result["trials"]:
        assert (trial["epoch"] == 4) == (trial["status"] == "finished")
    assert result["best"]["values"]["lr"] == 1e-2
    assert everything_is_free()


@pytest.mark.slow
def test_trial_whose_process_dies_resumes_from_its_checkpoint(run: Run) -> None:
    config = grid_config(run, "dying", [1e-2], epochs=8)

    def folder() -> str:
        names = [f"runs/dying/{name}" for name in attempts(run.storage, "dying", "sweep")]
        return next((f"{name}/{trial}" for name in names for trial in run.storage.list(name) if "_00000" in trial), "")

    def kill() -> None:
        until(lambda: folder() and registered(run.storage, folder()) >= 2)
        ray_processes("ImplicitFunc")[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    result = sweep(config, run.storage)
    thread.join()
    trial = result["trials"][0]
    assert trial["status"] == "finished", trial["error"]
    assert epochs(run, folder()) == [*range(1, 9)]
    assert last_start(run.storage, folder())["step"] > 0, "nothing was killed, or it started from the beginning"
    assert everything_is_free()


@pytest.mark.slow
@pytest.mark.parametrize("search", ["optuna", "random"])
def test_values_are_drawn_from_the_space(run: Run, search: str) -> None:
    config = grid_config(run, search, LRS, epochs=1)
    space = {"lr": {"low": 1e-3, "high": 1e-2}, "batch_size": {"low": 4, "high": 16}, "dropout": [0.0, 0.1]}
    config.sweep = SweepConfig(search=search, space=space, trials=2, epochs=1)
    result = sweep(config, run.storage)
    assert len({trial["values"]["lr"] for trial in result["trials"]}) == 2
    for trial in result["trials"]:
        assert trial["status"] == "finished", trial["error"]
        assert 1e-3 <= trial["values"]["lr"] <= 1e-2
        assert trial["values"]["batch_size"] in range(4, 17)
        assert trial["values"]["dropout"] in space["dropout"]


@pytest.mark.slow
def test_killed_sweep_resumes_without_repeating_finished_trials(run: Run, tmp_path: Path) -> None:
    config = grid_config(run, "killed-sweep", [1e-2, 5e-3], epochs=3, max_concurrent=1)
    root = Path(run.storage.path("runs/killed-sweep"))
    states = "sweep-*/*/checkpoint_*/state.json"
    kill_driver("detect_ai.training.sweep:sweep", config, tmp_path, lambda: len(list(root.glob(states))) >= 4)
    (name,) = attempts(run.storage, "killed-sweep", "sweep")
    written = set(root.glob(f"{name}/*/checkpoint_*/model.safetensors"))
    first = min(written, key=lambda path: path.stat().st_mtime).parents[1]
    result = sweep(config, run.storage)
    assert attempts(run.storage, "killed-sweep", "sweep") == [name]
    assert set(first.glob("checkpoint_*/model.safetensors")) <= written, "it was trained again"
    for trial in result["trials"]:
        assert trial["status"] == "finished", trial["error"]
        assert epochs(run, trial["checkpoint"].rpartition("/")[0]) == [1, 2, 3]
    assert everything_is_free()
