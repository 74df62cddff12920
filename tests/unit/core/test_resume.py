"""Which attempt of a run is gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from detect_ai.core import resume
from detect_ai.core.config import load_config
from detect_ai.core.storage import Storage

OLD, NEW = "train-20200101T000000000", "train-20200102T000000000"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def leave(storage: Storage, name: str, digest: str, finished: bool) -> None:
    storage.write_json(f"runs/mine/{name}/attempt.json", {"digest": digest, "finished": finished})


def test_an_attempt_that_did_not_end_is_gone_on_with(storage: Storage) -> None:
    leave(storage, OLD, "this", finished=False)
    assert resume.cut_off(storage, "mine", "train", "this") == OLD


def test_a_finished_one_is_not(storage: Storage) -> None:
    leave(storage, OLD, "this", finished=True)
    assert resume.cut_off(storage, "mine", "train", "this") is None


def test_one_of_something_else_is_not(storage: Storage) -> None:
    leave(storage, OLD, "another", finished=False)
    assert resume.cut_off(storage, "mine", "train", "this") is None


def test_one_of_another_kind_is_not(storage: Storage) -> None:
    leave(storage, "sweep-20200101T000000000", "this", finished=False)
    assert resume.cut_off(storage, "mine", "train", "this") is None


def test_one_that_a_finished_one_followed_is_not(storage: Storage) -> None:
    leave(storage, OLD, "this", finished=False)
    leave(storage, NEW, "this", finished=True)
    assert resume.cut_off(storage, "mine", "train", "this") is None


def test_a_folder_without_a_word_of_what_it_is_does_not_count(storage: Storage) -> None:
    leave(storage, OLD, "this", finished=False)
    storage.write_bytes(f"runs/mine/{NEW}/checkpoint", b"of an older version")
    assert resume.cut_off(storage, "mine", "train", "this") == OLD


def test_a_run_without_attempts_has_none(storage: Storage) -> None:
    assert resume.cut_off(storage, "mine", "train", "this") is None


def test_what_changes_the_outcome_changes_the_digest() -> None:
    config = load_config([])
    others = [
        config.model_copy(update={"seed": config.seed + 1}),
        config.model_copy(update={"train": config.train.model_copy(update={"epochs": config.train.epochs + 1})}),
        config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.3})}),
    ]
    found = [resume.digest(each, "a corpus") for each in [config, *others]] + [resume.digest(config, "another")]
    assert len(set(found)) == len(found)


def test_where_and_how_safely_it_runs_does_not() -> None:
    config = load_config([])
    moved = config.train.model_copy(
        update={"num_workers": 7, "max_failures": 9, "checkpoint_every": 5, "log_every": 3, "profile": True}
    )
    assert resume.digest(config.model_copy(update={"train": moved, "run": "other"}), "a corpus") == resume.digest(
        config, "a corpus"
    )
