"""Ray Train's list of checkpoints after a job that was killed while it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from detect_ai.core.storage import Storage
from detect_ai.training import checkpoint_list

FOLDER = "runs/mine/train-1"
LIST = f"{FOLDER}/checkpoint_manager_snapshot.json"
WHOLE = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def tear(storage: Storage) -> None:
    storage.write_bytes(LIST, storage.read_bytes(LIST)[:-9])


def registered(storage: Storage) -> None:
    """What Ray Train does when it has registered a checkpoint."""
    storage.write_json(LIST, WHOLE)
    checkpoint_list.keeper(storage.root, FOLDER).after_report(None, [{}], object())


def test_a_half_written_list_is_replaced_by_the_one_before_it(storage: Storage) -> None:
    registered(storage)
    tear(storage)
    assert checkpoint_list.read(storage, FOLDER) == WHOLE["checkpoint_results"]
    checkpoint_list.mend(storage, FOLDER)
    assert storage.read_json(LIST) == WHOLE


def test_a_half_written_first_list_is_removed_for_the_run_to_begin_anew(storage: Storage) -> None:
    storage.write_json(LIST, WHOLE)
    tear(storage)
    checkpoint_list.mend(storage, FOLDER)
    assert not storage.exists(LIST)


def test_a_whole_list_stays_whatever_the_copy_is(storage: Storage) -> None:
    registered(storage)
    newer = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2"}]}
    storage.write_json(LIST, newer)
    checkpoint_list.mend(storage, FOLDER)
    assert storage.read_json(LIST) == newer


def test_of_a_run_that_has_no_list_nothing_is_made(storage: Storage) -> None:
    checkpoint_list.mend(storage, FOLDER)
    assert checkpoint_list.read(storage, FOLDER) == []
    assert storage.list("runs") == []


def test_a_copy_that_cannot_be_made_ends_no_run(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    """What a callback raises would."""
    checkpoint_list.keeper(storage.root, FOLDER).after_report(None, [{}], object())
    assert caplog.messages[0].startswith(f"{FOLDER}: the list of checkpoints was not copied: ")
