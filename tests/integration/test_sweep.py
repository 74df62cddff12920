"""The sweep on a real cluster: every trial in a table, the best one named, everything free afterwards."""

from __future__ import annotations

import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from detect_ai.core.config import Config, SweepConfig, load_config
from detect_ai.core.errors import ResourceError, TrainingError
from detect_ai.training.search_space import apply
from detect_ai.training.sweep import concurrency, sweep
from detect_ai.training.trials import table
from tests.integration.conftest import Run
from tests.integration.runs import driver, own_copy, ray_processes, registered, train_workers, until

LRS = [1e-5, 1e-2, 1e30]  # too small to learn, right, and one that no loss survives


def grid(run: Run, lrs: list[float]) -> Any:
    return replace(run.config, sweep=SweepConfig(search="grid", space={"lr": lrs}, epochs=1))


@pytest.fixture(scope="module")
def swept(run: Run) -> dict[str, Any]:
    """A sweep in a store where earlier sweeps lie already."""
    for day in range(1, 5):
        run.storage.write_bytes(f"runs/{run.config.run}/sweep-2020010{day}T000000000/trial", b"old")
    return sweep(grid(run, LRS), run.storage)


def alone(run: Run, name: str) -> Config:
    """A configuration under a run name of its own, whose trials have one worker."""
    config = own_copy(run.config, run.storage, name)
    return replace(config, train=replace(config.train, num_workers=1))


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
    assert sorted(trial["values"]["lr"] for trial in swept["trials"]) == LRS


def test_the_trial_with_the_best_auroc_is_named_and_of_equals_the_surest(swept: dict[str, Any]) -> None:
    finished = [trial for trial in swept["trials"] if trial["error"] is None]
    assert len(finished) == 2
    assert swept["best"] == max(finished, key=lambda trial: (trial["auroc"], -trial["val_loss"]))


def test_the_checkpoint_of_every_finished_trial_lies_where_it_says(swept: dict[str, Any], run: Run) -> None:
    keys = [trial["checkpoint"] for trial in swept["trials"] if trial["error"] is None]
    assert len(set(keys)) == 2
    assert all(run.storage.exists(f"{key}/model.safetensors") for key in keys)


def test_a_trial_that_diverges_is_recorded_with_its_reason(swept: dict[str, Any]) -> None:
    failed = {trial["values"]["lr"]: trial["error"] for trial in swept["trials"] if trial["error"] is not None}
    assert failed.keys() == {1e30}
    assert re.search(
        r"the training loss is nan at step \d \(learning rate 1.00e\+30, documents [\d, ]+ of .*: lower train.lr",
        failed[1e30],
    )


def test_the_table_shows_every_trial(swept: dict[str, Any]) -> None:
    lines = table(swept["trials"]).splitlines()
    assert len(lines) == 1 + len(LRS)
    assert lines[0].split() == ["lr", "auroc", "val_loss", "accuracy", "epoch", "status"]
    assert lines[1].split()[0] == f"{swept['best']['values']['lr']:.3g}"
    assert re.match(r" *1e\+30 +failed: the training loss is nan", lines[-1])


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


@pytest.mark.slow
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


def test_the_best_configuration_is_a_file_that_a_training_takes(swept: dict[str, Any], run: Run) -> None:
    file = Path(run.storage.path(swept["best_config"]))
    config = load_config(["experiment=best"], str(file.parents[1]))
    expected = apply(run.config, swept["best"]["values"])
    assert config.train.lr == swept["best"]["values"]["lr"]
    assert replace(config.train, use_gpu=False, num_workers=2) == replace(expected.train, use_gpu=False, num_workers=2)
    assert config.model == expected.model


def test_the_report_shows_every_trial_and_its_curve(swept: dict[str, Any], run: Run) -> None:
    page = run.storage.read_bytes(swept["report"]).decode()
    told = run.storage.read_json(swept["report_json"])
    assert told["trials"] == swept["trials"]
    assert [len(trial["curve"]) for trial in told["trials"] if trial["error"] is None] == [1, 1]
    for trial in swept["trials"]:
        assert f'<th scope="row">{trial["values"]["lr"]:.3g}</th>' in page
    assert "the training loss is nan" in page
    assert page.count("<svg") == 2


@pytest.mark.slow
def test_trials_that_fall_behind_are_stopped_and_leave_nothing_held(run: Run) -> None:
    """One good trial first; by asha's halving those that come later and are worse end before their last epoch."""
    space = {"lr": [1e-2, 1e-6], "warmup": [0.1]}
    config = alone(run, "halved")
    config.sweep = SweepConfig(search="grid", space=space, epochs=4, stop="asha", max_concurrent=1)
    found = sweep(config, run.storage)
    status = {trial["values"]["lr"]: trial["status"] for trial in found["trials"]}
    assert status[1e-2] == "finished"
    assert "stopped" in status.values()
    for trial in found["trials"]:
        assert len(trial["curve"]) == (4 if trial["status"] == "finished" else trial["curve"][-1]["epoch"])
        assert trial["status"] == "finished" or trial["curve"][-1]["epoch"] < 4
    assert found["best"]["values"]["lr"] == 1e-2
    assert everything_is_free()


@pytest.mark.slow
def test_a_trial_below_the_median_of_the_others_is_stopped(run: Run) -> None:
    config = alone(run, "median")
    config.sweep = SweepConfig(
        search="grid", space={"lr": [1e-2, 5e-3, 1e-6]}, epochs=4, stop="median", grace=2, max_concurrent=1
    )
    found = sweep(config, run.storage)
    status = {trial["values"]["lr"]: trial["status"] for trial in found["trials"]}
    assert status == {1e-2: "finished", 5e-3: "finished", 1e-6: "stopped"}
    assert found["best"]["values"]["lr"] != 1e-6
    assert everything_is_free()


@pytest.mark.slow
def test_a_trial_whose_process_dies_is_made_again_from_its_last_checkpoint(run: Run) -> None:
    config = alone(run, "dying")
    config.sweep = SweepConfig(search="grid", space={"lr": [1e-2]}, epochs=8)

    def folder() -> str:
        name = next((each for each in run.storage.list("runs/dying") if each.startswith("sweep-")), "none")
        return next(
            (f"runs/dying/{name}/{each}" for each in run.storage.list(f"runs/dying/{name}") if "_00000" in each), ""
        )

    def kill() -> None:
        until(lambda: folder() and registered(run.storage, folder()) >= 2)
        ray_processes("ImplicitFunc")[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    found = sweep(config, run.storage)
    thread.join()
    trial = found["trials"][0]
    assert trial["status"] == "finished", trial["error"]
    assert [line["epoch"] for line in trial["curve"]] == [*range(1, 9)]
    started = run.storage.read_json(f"{found['best']['checkpoint'].rpartition('/')[0]}/start.json")
    assert started["step"] >= 2 * trial["curve"][0]["step"], "nothing was killed, or it began anew"
    assert everything_is_free()


@pytest.mark.slow
@pytest.mark.parametrize("search", ["optuna", "random"])
def test_values_are_drawn_from_the_space(run: Run, search: str) -> None:
    config = alone(run, search)
    space = {"lr": {"low": 1e-3, "high": 1e-2}, "batch_size": {"low": 4, "high": 16}, "decay": ["linear", "cosine"]}
    config.sweep = SweepConfig(search=search, space=space, trials=2, epochs=1)
    found = sweep(config, run.storage)
    assert len(found["trials"]) == 2
    for trial in found["trials"]:
        assert trial["status"] == "finished", trial["error"]
        assert 1e-3 <= trial["values"]["lr"] <= 1e-2
        assert trial["values"]["batch_size"] in range(4, 17)
        assert trial["values"]["decay"] in space["decay"]
    assert len({trial["values"]["lr"] for trial in found["trials"]}) == 2


@pytest.mark.slow
def test_a_killed_sweep_goes_on_without_making_finished_trials_again(run: Run, tmp_path: Path) -> None:
    config = alone(run, "killed-sweep")
    config.sweep = SweepConfig(search="grid", space={"lr": [1e-2, 5e-3]}, epochs=3, max_concurrent=1)
    process = driver("detect_ai.training.sweep:sweep", config, tmp_path)
    name = until(lambda: [each for each in run.storage.list("runs/killed-sweep") if each.startswith("sweep-")])[0]
    folder = Path(run.storage.path(f"runs/killed-sweep/{name}"))
    until(lambda: len(list(folder.glob("*/checkpoint_*/figures.json"))) >= 4 or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "driver.log").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not train_workers())
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoint_*/model.safetensors")}
    assert written
    found = sweep(config, run.storage)
    assert [name for name in run.storage.list("runs/killed-sweep") if name.startswith("sweep-")] == [name]
    assert sorted(trial["values"]["lr"] for trial in found["trials"]) == [5e-3, 1e-2]
    first = min(found["trials"], key=lambda trial: written_first(folder / trial["trial"]))
    kept = folder / first["trial"]
    assert set(kept.glob("checkpoint_*/model.safetensors")) <= written.keys(), "it was trained again"
    for trial in found["trials"]:
        assert trial["status"] == "finished", trial["error"]
        assert [line["epoch"] for line in trial["curve"]] == [1, 2, 3]
    assert everything_is_free()


def written_first(folder: Path) -> float:
    return min(path.stat().st_mtime for path in folder.glob("checkpoint_*/model.safetensors"))
