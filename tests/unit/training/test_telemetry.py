from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detect_ai.core.config import Config
from detect_ai.core.storage import Storage
from detect_ai.training import telemetry
from detect_ai.training.telemetry import open_telemetry, read_metrics

FOLDER = "runs/default/train-1"


class FakeTrainer:
    """A trainer whose steps cost nothing."""

    def __init__(self, rank: int = 0, steps: int = 0) -> None:
        self.rank, self.steps, self.world_size, self.total_steps = rank, steps, 2, 100
        self.grad_norm, self.lr = 1.0, 1e-3
        self.since_log = SimpleNamespace(metrics=lambda: {"train_loss": 0.5, "seconds": 1.0})

    def synchronize(self) -> None:
        pass


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    config = Config()
    config.storage.root, config.tracking.mode, config.train.log_every = str(tmp_path), "disabled", 2
    return {"config": config, "name": "train-1", "group": None, "corpus": "abc"}


def run(arguments: dict[str, Any], trainer: Any, steps: int) -> None:
    with open_telemetry(arguments, trainer) as opened:
        for _ in opened.time_data_wait(range(steps)):
            trainer.steps += 1
            opened.log_step()
        opened.flush()


def written(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return read_metrics(Storage(arguments["config"].storage.root), FOLDER)


def lines(arguments: dict[str, Any]) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in written(arguments)]


def test_rank_0_logs_every_so_many_steps(arguments: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, telemetry.__name__):
        run(arguments, FakeTrainer(), 5)
    assert [message.split(" loss")[0] for message in caplog.messages] == [f"{FOLDER}: step {n}/100" for n in (2, 4)]
    assert lines(arguments) == [("start", 0), ("training", 2), ("training", 4)]
    assert {"train_loss", "grad_norm", "lr"} <= written(arguments)[1].keys()
    assert 0 <= written(arguments)[1]["data_wait"] < 1


def test_other_ranks_write_nothing(arguments: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, telemetry.__name__):
        run(arguments, FakeTrainer(rank=1), 4)
    assert lines(arguments) == []
    assert not caplog.messages


def test_resumed_run_keeps_lines_up_to_its_step(arguments: dict[str, Any]) -> None:
    run(arguments, FakeTrainer(), 6)
    run(arguments, FakeTrainer(steps=4), 2)
    assert lines(arguments) == [("start", 0), ("training", 2), ("training", 4), ("start", 4), ("training", 6)]


def test_profile_has_a_trace_and_a_table(arguments: dict[str, Any]) -> None:
    arguments["config"].train.profile = True
    run(arguments, FakeTrainer(), 12)
    storage = Storage(arguments["config"].storage.root)
    assert storage.list(f"{FOLDER}/profile") == ["operations.txt", "trace.json.gz"]
    assert b"traceEvents" in storage.read_bytes(f"{FOLDER}/profile/trace.json.gz")  # pyarrow decompresses it
