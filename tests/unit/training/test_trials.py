"""Which checkpoints of a trial count."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError

from detect_ai.core.config import load_config
from detect_ai.core.storage import Storage
from detect_ai.training import train, trials
from detect_ai.training.trials import _evaluated, trainable

SNAPSHOT = "runs/a/sweep-1/t/checkpoint_manager_snapshot.json"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A trial of three checkpoints: evaluated and whole, not evaluated, and one whose write was cut off."""
    store = Storage(str(tmp_path))
    for name, figures in (("whole", {"auroc": 0.9, "step": 6}), ("torn", {"auroc": 0.9, "step": 6})):
        store.write_json(f"runs/a/sweep-1/t/checkpoint_{name}/figures.json", figures)
    store.write_bytes("runs/a/sweep-1/t/checkpoint_between/model.safetensors", b"weights")
    registered = [{"checkpoint_dir_name": f"checkpoint_{name}", "metrics": {}} for name in ("between", "whole")]
    store.write_json(SNAPSHOT, {"checkpoint_results": registered})
    return store


def test_only_evaluated_checkpoints_that_ray_train_registered_count(storage: Storage) -> None:
    found = _evaluated(storage, "runs/a/sweep-1/t")
    assert found == [("runs/a/sweep-1/t/checkpoint_whole", {"auroc": 0.9, "step": 6})]


@pytest.mark.parametrize("snapshot", [b"", b'{"checkpoint_res'])
def test_a_trial_that_ended_while_it_wrote_what_it_has_has_none(storage: Storage, snapshot: bytes) -> None:
    storage.write_bytes(SNAPSHOT, snapshot)
    assert _evaluated(storage, "runs/a/sweep-1/t") == []


def test_a_trial_that_wrote_nothing_has_none(storage: Storage) -> None:
    assert _evaluated(storage, "runs/a/sweep-1/other") == []


LOST = RayActorError()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (WorkerGroupError("workers", {0: ValueError("odd values")}), True),
        (WorkerGroupError("workers", {0: LOST, 1: ValueError("odd values")}), True),
        (WorkerGroupError("workers", {0: LOST, 1: LOST}), False),
        (ControllerError(OSError("the bucket does not answer")), False),
    ],
)
def test_a_trial_fails_for_its_values_and_not_for_machines_or_storage_that_are_lost(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: bool
) -> None:
    said: list[dict[str, Any]] = []

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ray, "get", lambda _: (load_config([]), None))
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t"))
    monkeypatch.setattr(tune, "report", said.append)
    monkeypatch.setattr(trials, "_evaluations", lambda _: None)  # is Ray Tune's, which does not run here
    monkeypatch.setattr(train, "run_training", fail)
    trial = trainable(None, "sweep")
    if told:
        trial({})
        assert [line["error"] for line in said]
    else:
        with pytest.raises(type(error)):
            trial({})
        assert not said
