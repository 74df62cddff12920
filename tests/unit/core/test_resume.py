"""Interrupted attempts, their digests, and stages in order."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core import ray_runtime, resume
from detect_ai.core.compose import load_config
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import read_result, run_stage
from detect_ai.core.resume import run_stages, settle_pipeline
from detect_ai.core.storage import Storage

OLD, NEW = "train-20200101T000000000", "train-20200102T000000000"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([], None),
        ([(OLD, "this", False)], OLD),
        ([(OLD, "this", True)], None),
        ([(OLD, "another", False)], None),
        ([("sweep-20200101T000000000", "this", False)], None),
        ([(OLD, "this", False), (NEW, "this", True)], None),
        ([(OLD, "this", False), (NEW, "this", False)], NEW),
    ],
)
def test_newest_unfinished_attempt_is_resumed(storage: Storage, attempts: list[Any], expected: str | None) -> None:
    storage.write_bytes("runs/mine/train-20200103T000000000/checkpoint", b"")  # no attempt
    for name, digest, finished in attempts:
        storage.write_json(f"runs/mine/{name}/attempt.json", {"digest": digest, "finished": finished})
    assert resume.interrupted(storage, "mine", "train", "this") == expected


@pytest.mark.parametrize("override", ["seed=9", "train.epochs=9", "model.dropout=0.3"])
def test_decisive_setting_changes_digest(override: str) -> None:
    assert resume.digest(load_config([override]), "corpus") != resume.digest(load_config(), "corpus")
    assert resume.digest(load_config(), "corpus") != resume.digest(load_config(), "other")


@pytest.mark.parametrize("override", ["run=x", "train.num_workers=7", "train.max_failures=9", "train.profile=true"])
def test_machine_setting_keeps_digest(override: str) -> None:
    assert resume.digest(load_config([override]), "corpus") == resume.digest(load_config(), "corpus")


NAMES = ["first", "second", "third"]


def run_all(config: Config, broken: str = "") -> tuple[list[str], dict[str, Any]]:
    """Run three stages and interrupt the broken one. Returns the names of the stages that ran, and all results."""
    ran: list[str] = []

    def stage(name: str) -> Any:
        def run(config: Config, storage: Storage) -> dict[str, Any]:
            ran.append(name)
            if name == broken:
                raise KeyboardInterrupt
            return {"by": len(ran)}

        return run

    return ran, run_stages(config, Storage(config.storage.root), "several", {name: stage(name) for name in NAMES})


@pytest.fixture
def config(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Configuration of a run whose third stage was interrupted."""
    monkeypatch.setattr(ray_runtime, "claimed", lambda *_: nullcontext())
    config = load_config([f"storage.root={storage.root}", "storage.keep=1"])
    with pytest.raises(KeyboardInterrupt):
        run_all(config, broken="third")
    return config


def test_finished_stages_are_not_repeated(config: Config, storage: Storage) -> None:
    ran, results = run_all(config)
    assert (ran, list(results)) == (["third"], NAMES)
    assert results["second"] == read_result(storage, config.run, "second")


def test_finished_attempt_is_repeated_and_pruned(config: Config, storage: Storage) -> None:
    run_all(config)
    assert run_all(config)[0] == NAMES
    assert len([name for name in storage.list(f"runs/{config.run}") if name.startswith("several-")]) == 1


def test_other_configuration_starts_again(config: Config) -> None:
    config.train.lr *= 2
    assert run_all(config)[0] == NAMES


def test_newer_result_repeats_later_stages(config: Config, storage: Storage) -> None:
    run_stage("first", lambda *_: {"by": "another job"}, config, storage)
    assert run_all(config)[0] == NAMES


def settled(*overrides: str, config_dir: Path | None = None) -> Config:
    config = load_config(overrides, str(config_dir) if config_dir else None)
    settle_pipeline(config, overrides)
    return config


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    """A directory with experiments and an option of `train`."""
    files = {
        "experiment/rate": "train: {lr: 7.0e-5}",
        "experiment/same_rate": "train: {lr: 1.5e-4, epochs: 9}",
        "experiment/no_sweep": "train: {lr: 7.0e-5, from_sweep: false}",
        "experiment/dropout": "sweep: {space: {dropout: [0.0, 0.3]}}\nmodel: {dropout: 0.2}",
        "experiment/data": "data: x.csv",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(f"# @package _global_\n{content}\n")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/mine.yaml").write_text("lr: 7.0e-5\n")
    return tmp_path


DEMO = ("run=demo", "sweep=grid", "gate.max_auroc_drop=1", "gate.max_fpr_increase=1")


@pytest.mark.parametrize(
    ("overrides", "sweeps", "rate"),
    [
        (DEMO, True, 1.5e-4),
        (("train=gpu",), True, 5e-5),
        (("train.epochs=9", "model=mpnet"), True, 1.5e-4),
        (("experiment=same_rate",), True, 1.5e-4),
        (("experiment=no_sweep",), False, 7e-5),
        (("experiment=base",), False, 1.4e-4),
        (("train.from_sweep=false", "train.lr=3e-5"), False, 3e-5),
        (("experiment=rate", "train.from_sweep=true"), True, 7e-5),
        (("train=mine", "train.from_sweep=true"), True, 7e-5),
    ],
)
def test_pipeline_sweeps_unless_told_otherwise(
    overrides: tuple[str, ...], sweeps: bool, rate: float, config_dir: Path
) -> None:
    config = settled(*overrides, config_dir=config_dir)
    assert (config.train.from_sweep, config.train.lr) == (sweeps, rate)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("train.lr=3e-5",), "train.lr"),
        (("train.lr=1.5e-4",), "train.lr"),
        (("train.lr=3e-5", "train.from_sweep=true"), "train.lr"),
        (("experiment=rate",), "train.lr"),
        (("train=mine",), "train.lr"),
        (("experiment=dropout",), "model.dropout"),
        (("bundle=4f2a",), "bundle"),
        (("experiment=data",), "data"),
    ],
)
def test_pipeline_refuses_values_that_it_would_ignore(overrides: tuple[str, ...], key: str, config_dir: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{key}"):
        settled(*overrides, config_dir=config_dir)
