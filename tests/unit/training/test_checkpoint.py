"""Ranking of checkpoints, and Ray Train's list of checkpoints after a job was killed while writing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from detect_ai.core.storage import Storage
from detect_ai.training import checkpoint
from detect_ai.training.checkpoint import BACKUP, NOT_EVALUATED, SNAPSHOT

FOLDER = "runs/mine/train-1"
LIST = f"{FOLDER}/{SNAPSHOT}"
ONE = {
    "checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}],
    "latest_checkpoint_result": {"metrics": {"step": 4}},
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_auroc_ranks_checkpoints_and_loss_breaks_ties() -> None:
    metrics = [
        {"auroc": 1.0, "val_loss": 0.001},
        {"auroc": 1.0, "val_loss": 0.4},
        {"auroc": 1.0 - 1e-9, "val_loss": 0.0},  # one pair of 30,000 x 30,000 texts
        {"auroc": NOT_EVALUATED},
    ]
    scores = [checkpoint.checkpoint_score(m) for m in metrics]
    assert scores == sorted(set(scores), reverse=True)


def test_resume_step_is_that_of_the_last_checkpoint(storage: Storage) -> None:
    assert checkpoint.resume_step(storage, FOLDER) == 0
    storage.write_json(LIST, ONE)
    assert checkpoint.resume_step(storage, FOLDER) == 4


def test_only_a_half_written_list_is_replaced(storage: Storage) -> None:
    checkpoint.repair_snapshot(storage, FOLDER)
    storage.write_json(LIST, ONE)
    checkpoint.repair_snapshot(storage, FOLDER)
    assert storage.read_json(LIST) == ONE
    storage.write_bytes(LIST, storage.read_bytes(LIST)[:-9])
    checkpoint.repair_snapshot(storage, FOLDER)
    assert not storage.exists(LIST)
    storage.write_bytes(LIST, b"{")
    storage.write_json(f"{FOLDER}/{BACKUP}", ONE)
    checkpoint.repair_snapshot(storage, FOLDER)
    assert not storage.exists(LIST), "its checkpoint is deleted"
    storage.write_bytes(LIST, b"{")
    storage.write_json(f"{FOLDER}/checkpoint_1/state.json", {})
    checkpoint.repair_snapshot(storage, FOLDER)
    assert checkpoint.resume_step(storage, FOLDER) == 4
