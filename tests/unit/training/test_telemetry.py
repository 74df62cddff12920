from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detect_ai.core.config import Config
from detect_ai.core.errors import TrainingError
from detect_ai.core.storage import Storage
from detect_ai.training import telemetry
from detect_ai.training.telemetry import MetricsLog, open_telemetry, read_metrics

FOLDER = "runs/default/train-1"


class FakeTrainer:
    """A trainer whose steps cost nothing; like a real one it knows a step's loss once it is synchronized."""

    def __init__(self, rank: int = 0) -> None:
        self.rank, self.world_size, self.total_steps = rank, 2, 100
        self.steps = self.synchronized_steps = 0
        self.last_loss, self.grad_norm, self.lr = 0.5, 1.0, 1e-3
        self.device = SimpleNamespace(type="cpu")
        self.since_log = SimpleNamespace(metrics=lambda: {"train_loss": 0.5, "seconds": 1.0})

    def synchronize(self) -> None:
        self.synchronized_steps = self.steps


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    config = Config()
    config.storage.root, config.tracking.mode, config.train.log_every = str(tmp_path), "disabled", 2
    return {"config": config, "name": "train-1", "group": None, "corpus": "abc", "bar": False}


def run(arguments: dict[str, Any], trainer: Any, steps: int) -> None:
    with open_telemetry(arguments, trainer) as opened:
        for _ in opened.time_data_wait(range(steps)):
            trainer.steps += 1
            opened.log_step()
        opened.flush()


def lines(arguments: dict[str, Any]) -> list[tuple[str, int]]:
    storage = Storage(arguments["config"].storage.root)
    return [(line["kind"], line["step"]) for line in read_metrics(storage, FOLDER)]


def test_rank_0_logs_every_so_many_steps(arguments: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, telemetry.__name__):
        run(arguments, FakeTrainer(), 5)
    assert [message.split(" loss")[0] for message in caplog.messages] == [
        "train-1: step 2/100",
        "train-1: step 4/100",
    ]
    assert lines(arguments) == [("start", 0), ("training", 2), ("training", 4)]
    line = read_metrics(Storage(arguments["config"].storage.root), FOLDER)[1]
    assert {"train_loss", "grad_norm", "lr", "memory_bytes", "data_wait"} <= line.keys()
    assert 0 <= line["data_wait"] < 1


def test_other_ranks_write_nothing(arguments: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, telemetry.__name__):
        run(arguments, FakeTrainer(rank=1), 4)
    assert lines(arguments) == []
    assert not caplog.messages


def test_resumed_run_keeps_lines_up_to_its_step(arguments: dict[str, Any]) -> None:
    run(arguments, FakeTrainer(), 6)
    resumed = FakeTrainer()
    resumed.steps = 4
    run(arguments, resumed, 2)
    assert lines(arguments) == [("start", 0), ("training", 2), ("training", 4), ("start", 4), ("training", 6)]


def test_unwritten_lines_go_with_the_next_flush(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    log = MetricsLog(storage, FOLDER, 0)
    log.write({"kind": "training", "step": 1}, flush=False)
    assert read_metrics(storage, FOLDER) == []
    log.write({"kind": "evaluation", "step": 2})
    assert [line["step"] for line in read_metrics(storage, FOLDER)] == [1, 2]


def test_training_error_is_logged_with_its_step(arguments: dict[str, Any]) -> None:
    trainer: Any = FakeTrainer()
    trainer.synchronized_steps = 3
    with pytest.raises(TrainingError), open_telemetry(arguments, trainer):
        raise TrainingError("the loss is nan")
    assert lines(arguments) == [("start", 0), ("error", 3)]
    resumed = FakeTrainer()
    resumed.steps = 3
    run(arguments, resumed, 0)
    assert ("error", 3) not in lines(arguments)


def test_failed_start_closes_the_wandb_run(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    @contextmanager
    def tracker(*_: Any, **__: Any) -> Any:
        try:
            yield None
        finally:
            closed.append(True)

    def fail(*_: Any) -> None:
        raise OSError("no profiler")

    monkeypatch.setattr(telemetry, "Tracker", tracker)
    monkeypatch.setattr(telemetry, "_profiler", fail)
    arguments["config"].train.profile = True
    with pytest.raises(OSError, match="no profiler"):
        run(arguments, FakeTrainer(), 1)
    assert closed


def test_profile_has_a_trace_and_a_table(arguments: dict[str, Any]) -> None:
    arguments["config"].train.profile = True
    run(arguments, FakeTrainer(), 12)
    storage = Storage(arguments["config"].storage.root)
    assert storage.list(f"{FOLDER}/profile") == ["operations.txt", "trace.json.gz"]
