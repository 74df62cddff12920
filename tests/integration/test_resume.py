"""Stages in turn: what was done when they were cut off is not done again, unless something newer took its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.config import Config, load_config
from detect_ai.core.job import read_result, run_stage
from detect_ai.core.resume import in_turn
from detect_ai.core.storage import Storage


class Stages:
    """Three stages that say when they ran; the last one fails until it is told not to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken = True

    def of(self, name: str) -> Any:
        def stage(config: Config, storage: Storage) -> dict[str, Any]:
            self.ran.append(name)
            if name == "third" and self.broken:
                raise KeyboardInterrupt
            return {"by": len(self.ran)}

        return stage

    def all(self) -> dict[str, Any]:
        return {name: self.of(name) for name in ("first", "second", "third")}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config([f"storage.root={tmp_path}", "storage.keep=1"])


@pytest.fixture
def cut_off(config: Config) -> Stages:
    stages = Stages()
    with pytest.raises(KeyboardInterrupt):
        in_turn(config, Storage(config.storage.root), "several", stages.all())
    stages.ran.clear()
    stages.broken = False
    return stages


def test_stages_that_were_cut_off_go_on_with_the_one_that_did_not_end(config: Config, cut_off: Stages) -> None:
    storage = Storage(config.storage.root)
    results = in_turn(config, storage, "several", cut_off.all())
    assert cut_off.ran == ["third"]
    assert list(results) == ["first", "second", "third"]
    assert results["second"] == read_result(storage, config.run, "second")


def test_when_all_came_to_their_end_they_run_again(config: Config, cut_off: Stages) -> None:
    storage = Storage(config.storage.root)
    for _ in range(2):
        cut_off.ran.clear()
        in_turn(config, storage, "several", cut_off.all())
    assert cut_off.ran == ["first", "second", "third"]
    assert len([name for name in storage.list(f"runs/{config.run}") if name.startswith("several-")]) == 1


def test_with_another_configuration_they_run_again(config: Config, cut_off: Stages) -> None:
    config.train.lr *= 2
    in_turn(config, Storage(config.storage.root), "several", cut_off.all())
    assert cut_off.ran == ["first", "second", "third"]


def test_what_was_made_anew_meanwhile_is_followed_by_what_comes_after_it(config: Config, cut_off: Stages) -> None:
    storage = Storage(config.storage.root)
    run_stage("first", lambda *_: {"by": "somebody else"}, config, storage)
    in_turn(config, storage, "several", cut_off.all())
    assert cut_off.ran == ["first", "second", "third"]
