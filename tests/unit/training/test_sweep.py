from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config, load_config
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.training import sweep, train
from detect_ai.training.checkpoint import SNAPSHOT
from detect_ai.training.sweep import evaluated_checkpoints, ranked, table, trial_function

FOLDER = "runs/a/sweep-1/t"
LOST = RayActorError()


@pytest.fixture
def config() -> Config:
    return load_config(["model.window=256"])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A trial of three checkpoints: evaluated and complete, not evaluated, and one whose write was interrupted."""
    store = Storage(str(tmp_path))
    for name in ("complete", "torn"):
        store.write_json(f"{FOLDER}/checkpoint_{name}/metrics.json", {"auroc": 0.9, "step": 6})
    store.write_bytes(f"{FOLDER}/checkpoint_between/model.safetensors", b"weights")
    registered = [{"checkpoint_dir_name": f"checkpoint_{name}", "metrics": {}} for name in ("between", "complete")]
    store.write_json(f"{FOLDER}/{SNAPSHOT}", {"checkpoint_results": registered})
    return store


def trial(name: str, auroc: float | None, status: str = "finished", val_loss: float = 0.1) -> dict[str, Any]:
    metrics = dict.fromkeys(("auroc", "val_loss", "accuracy", "epoch"))
    if auroc is not None:
        metrics = {"auroc": auroc, "val_loss": val_loss, "accuracy": 0.8, "epoch": 2}
    return {"trial": name, "values": {"lr": 1e-4}, "status": status, "error": "boom", **metrics}


@pytest.mark.parametrize("overrides", [["~sweep.space.lr"], ["sweep=optuna"]])
def test_impossible_sweep_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    """An empty space, and Optuna that is not installed."""
    monkeypatch.setattr(ray_runtime, "connect", lambda: pytest.fail("it started Ray"))
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"sweep\.space is empty|detect-ai\[sweep\]"):
        sweep.sweep(load_config(overrides), Storage(str(tmp_path)))


@pytest.mark.parametrize(
    ("free", "can_grow", "asked", "expected"),
    [(8.0, False, 0, 2), (4.0, False, 0, 1), (0.0, False, 0, 1), (2.0, True, 4, 4), (2.0, True, 0, 1)],
)
def test_concurrency_follows_free_cpus_or_the_limit(
    config: Config, monkeypatch: pytest.MonkeyPatch, free: float, can_grow: bool, asked: int, expected: int
) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": free})
    monkeypatch.setattr(ray_runtime, "can_grow", lambda: can_grow)
    config.train.num_workers, config.train.cpus_per_worker, config.train.use_gpu = 2, 1, False
    config.sweep.max_concurrent = asked
    assert sweep.concurrency(config) == expected


def test_only_registered_evaluated_checkpoints_count(storage: Storage) -> None:
    complete = [(f"{FOLDER}/checkpoint_complete", {"auroc": 0.9, "step": 6})]
    assert evaluated_checkpoints(storage, FOLDER) == complete
    storage.write_bytes(f"{FOLDER}/{SNAPSHOT}", b'{"checkpoint_res')
    assert evaluated_checkpoints(storage, FOLDER) == []
    assert evaluated_checkpoints(storage, "runs/a/sweep-1/other") == []


@pytest.mark.parametrize(
    ("error", "is_result"),
    [
        (WorkerGroupError("workers", {0: ValueError("odd values")}), True),
        (WorkerGroupError("workers", {0: LOST, 1: ValueError("odd values")}), True),
        (WorkerGroupError("workers", {0: LOST, 1: LOST}), False),
        (ControllerError(OSError("the bucket does not answer")), False),
    ],
)
def test_trial_fails_for_its_values_not_for_lost_machines(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_result: bool
) -> None:
    reports: list[dict[str, Any]] = []

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "get", lambda _: (load_config([]), None))
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t"))
    monkeypatch.setattr(tune, "report", reports.append)
    monkeypatch.setattr(sweep, "_report_evaluations", lambda _: None)  # needs Ray Tune, which does not run here
    monkeypatch.setattr(train, "run_training", fail)
    run = trial_function(None, "sweep")
    if is_result:
        run({})
        assert [line["error"] for line in reports]
    else:
        with pytest.raises(type(error)):
            run({})
        assert not reports


def test_finished_trials_rank_before_stopped_and_failed_ones() -> None:
    trials = [
        trial("failed", None, "failed"),
        trial("stopped", 0.99, "stopped"),
        trial("second", 0.9, val_loss=0.2),
        trial("first", 0.9, val_loss=0.1),
    ]
    assert [t["trial"] for t in ranked(trials)] == ["first", "second", "stopped", "failed"]
    lines = table(trials).splitlines()
    assert lines[0].split() == ["lr", "auroc", "val_loss", "accuracy", "epoch", "status"]
    assert lines[1].split() == ["0.0001", "0.9000", "0.1000", "0.8000", "2", "finished"]
    assert lines[4].endswith("failed: boom")
