from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from detect_ai.core import ray_runtime
from detect_ai.core.compose import load_config
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.training import sweep, train
from detect_ai.training.checkpoint import NOT_EVALUATED
from detect_ai.training.sweep import ranked, run_trial, table

LOST = WorkerHealthCheckFailedError("health check failed", failure=RayActorError())


def result(lr: float = 1e-4, error: Exception | None = None, **reported: Any) -> Any:
    """A result of Ray Tune."""
    return SimpleNamespace(config={"lr": lr}, metrics=reported or None, error=error)


def evaluation(auroc: float, val_loss: float = 0.1) -> dict[str, Any]:
    return {"auroc": auroc, "val_loss": val_loss, "accuracy": 0.8, "epoch": 2, "trial_id": "t"}


@pytest.mark.parametrize("overrides", [["~sweep.space.lr"], ["sweep=optuna"]])
def test_impossible_sweep_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    """An empty search space, and Optuna without its package."""
    monkeypatch.setattr(ray_runtime, "connect", lambda: pytest.fail("it started Ray"))
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"sweep\.space is empty|detect-ai\[sweep\]"):
        sweep.sweep(load_config(overrides), Storage(str(tmp_path)))


@pytest.mark.parametrize(
    ("free", "can_grow", "asked", "expected"),
    [(8.0, False, 0, 2), (4.0, False, 0, 1), (0.0, False, 0, 1), (2.0, True, 4, 4), (2.0, True, 0, 1)],
)
def test_concurrency_follows_free_cpus_or_the_limit(
    monkeypatch: pytest.MonkeyPatch, free: float, can_grow: bool, asked: int, expected: int
) -> None:
    config = load_config(["sweep=random"])
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": free})
    monkeypatch.setattr(ray_runtime, "can_grow", lambda: can_grow)
    monkeypatch.setattr(ray_runtime, "cores", lambda: 16)
    monkeypatch.setattr(sweep, "machines", lambda: 1)
    config.train.num_workers, config.train.cpus_per_worker, config.train.use_gpu = 2, 1, False
    config.sweep.max_concurrent = asked
    assert sweep.concurrency(config) == expected


@pytest.mark.parametrize(("cores", "machines", "expected"), [(2, 1, 2), (16, 1, 3), (2, 2, 3)])
def test_concurrency_is_at_most_that_of_cores_and_trials(
    monkeypatch: pytest.MonkeyPatch, cores: int, machines: int, expected: int
) -> None:
    """Trials have one worker each, for which Ray Data needs no CPU."""
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 16.0})
    monkeypatch.setattr(ray_runtime, "cores", lambda: cores)
    monkeypatch.setattr(sweep, "machines", lambda: machines)
    assert sweep.concurrency(load_config(["sweep=grid", "sweep.space.lr=[1e-5, 2e-5, 3e-5]"])) == expected


@pytest.mark.parametrize(
    ("error", "is_result"),
    [
        (WorkerGroupError("workers", {0: ValueError("odd values")}), True),
        (WorkerGroupError("workers", {0: LOST, 1: RuntimeError("connection closed by peer")}), False),
        (ControllerError(OSError("the bucket does not answer")), False),
    ],
)
def test_trial_fails_for_its_values_not_for_lost_machines(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_result: bool
) -> None:
    reports: list[dict[str, Any]] = []

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t"))
    monkeypatch.setattr(tune, "report", reports.append)
    monkeypatch.setattr(sweep, "ReportEvaluations", lambda _: None)  # needs Ray Tune, which does not run here
    monkeypatch.setattr(train, "run_training", fail)
    corpus: Any = None
    if is_result:
        run_trial({}, load_config([]), corpus, "sweep", 1)
        assert [line["error"] for line in reports]
    else:
        with pytest.raises(type(error)):
            run_trial({}, load_config([]), corpus, "sweep", 1)
        assert not reports


def test_finished_trials_rank_before_stopped_and_failed_ones() -> None:
    results = [
        result(5, OSError("the machine\nis gone")),
        result(4, **{"auroc": NOT_EVALUATED, "epoch": 0, "reached_end": True, "error": "it diverged"}),
        result(3, done=True, **evaluation(0.99)),
        result(2, reached_end=True, **evaluation(0.9, val_loss=0.2)),
        result(1, reached_end=True, checkpoint="runs/a/c", **evaluation(0.9)),
    ]
    trials = ranked([sweep._trial_result(r) for r in results])
    assert [trial["values"]["lr"] for trial in trials] == [1, 2, 3, 5, 4]
    assert [trial["status"] for trial in trials] == ["finished", "finished", "stopped", "failed", "failed"]
    assert [trial["error"] for trial in trials[2:]] == [None, "is gone", "it diverged"]
    assert (trials[0]["checkpoint"], trials[0]["auroc"], trials[4]["auroc"]) == ("runs/a/c", 0.9, None)
    lines = table(trials).splitlines()
    assert lines[0].split() == ["lr", "auroc", "val_loss", "accuracy", "epoch", "status", "error"]
    assert lines[1].split() == ["1", "0.9", "0.1", "0.8", "2", "finished"]
    assert lines[5].endswith("it diverged")
