"""Ranking of checkpoints, and Ray Train's list of them after a job that was killed while writing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from detect_ai.core.storage import Storage
from detect_ai.training import checkpoint
from detect_ai.training.checkpoint import NOT_EVALUATED, SNAPSHOT

FOLDER = "runs/mine/train-1"
LIST = f"{FOLDER}/{SNAPSHOT}"
ONE = {"checkpoint_dir_name": "checkpoint_1", "metrics": {"step": 4}}
WHOLE = {"checkpoint_results": [ONE], "latest_checkpoint_result": ONE}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def register(storage: Storage) -> None:
    """Register a checkpoint as Ray Train does."""
    storage.write_json(LIST, WHOLE)
    checkpoint.snapshot_backup(storage.root, FOLDER).after_report(None, [{}], object())


def tear(storage: Storage) -> None:
    storage.write_bytes(LIST, storage.read_bytes(LIST)[:-9])


def test_auroc_ranks_checkpoints_and_loss_breaks_ties() -> None:
    metrics = [
        {"auroc": 1.0, "val_loss": 0.001},
        {"auroc": 1.0, "val_loss": 0.4},
        {"auroc": 1.0 - 1e-9, "val_loss": 0.0},  # one pair of 30,000 x 30,000 texts
        {"auroc": NOT_EVALUATED},
    ]
    scores = [checkpoint.checkpoint_score(m) for m in metrics]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


def test_resume_step_is_that_of_the_last_checkpoint(storage: Storage) -> None:
    assert checkpoint.resume_step(storage, FOLDER) == 0
    register(storage)
    assert checkpoint.resume_step(storage, FOLDER) == 4


def test_half_written_list_is_replaced_by_its_backup(storage: Storage) -> None:
    register(storage)
    tear(storage)
    assert checkpoint.registered(storage, FOLDER) == [ONE]
    checkpoint.repair_snapshot(storage, FOLDER)
    assert storage.read_json(LIST) == WHOLE


def test_half_written_first_list_is_removed(storage: Storage) -> None:
    storage.write_json(LIST, WHOLE)
    tear(storage)
    checkpoint.repair_snapshot(storage, FOLDER)
    assert not storage.exists(LIST)


def test_complete_list_wins_over_its_backup(storage: Storage) -> None:
    register(storage)
    newer = {"checkpoint_results": [{**ONE, "checkpoint_dir_name": "checkpoint_2"}]}
    storage.write_json(LIST, newer)
    checkpoint.repair_snapshot(storage, FOLDER)
    assert storage.read_json(LIST) == newer


def test_new_run_has_no_list(storage: Storage) -> None:
    checkpoint.repair_snapshot(storage, FOLDER)
    assert checkpoint.registered(storage, FOLDER) == []
    assert storage.list("runs") == []


def test_failed_backup_does_not_end_the_run(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint.snapshot_backup(storage.root, FOLDER).after_report(None, [{}], object())
    assert caplog.messages[0].startswith(f"{FOLDER}: could not back up")
