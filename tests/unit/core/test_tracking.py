"""Tracking is never required and never stops a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.config import TrackingConfig
from detect_ai.core.tracking import Tracker, resolve_mode


class Run:
    """A run of W&B that notes what it is told, and fails where it shall."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.told: list[tuple[str, Any]] = []

    def log(self, values: dict[str, Any], step: int) -> None:
        self._tell("log", (values, step))

    def finish(self, exit_code: int) -> None:
        self._tell("finish", exit_code)

    def _tell(self, what: str, value: Any) -> None:
        self.told.append((what, value))
        if self.fails == what:
            raise OSError("no space left")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], dict[str, Any]]:
    """Makes `wandb.init` return a run, or raise. Returns the arguments it gets."""
    import wandb

    def prepared(outcome: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {}

        def init(**given: Any) -> Any:
            arguments.update(given)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(wandb, "init", init)
        return arguments

    return prepared


# The mode


def test_the_default_mode_is_auto() -> None:
    assert TrackingConfig().mode == "auto"


def test_without_a_key_auto_is_offline() -> None:
    assert resolve_mode("auto") == "offline"


def test_with_a_key_auto_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert resolve_mode("auto") == "online"


@pytest.mark.parametrize(("machine", "mode"), [("api.wandb.ai", "online"), ("api.github.com", "offline")])
def test_the_key_that_wandb_login_wrote_counts(tmp_path: Path, machine: str, mode: str) -> None:
    (tmp_path / ".netrc").write_text(f"machine {machine}\n  login user\n  password {'k' * 40}\n")
    assert resolve_mode("auto") == mode


@pytest.mark.parametrize("odd", [b"\xff\xfe machine", None])
def test_a_netrc_that_cannot_be_read_as_text_or_at_all_is_no_key(tmp_path: Path, odd: bytes | None) -> None:
    if odd is None:
        (tmp_path / ".netrc").mkdir()
    else:
        (tmp_path / ".netrc").write_bytes(odd)
    assert resolve_mode("auto") == "offline"


def test_the_mode_of_the_environment_decides_over_a_key_and_not_over_a_mode_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("offline") == "offline"


# A run


def test_a_disabled_tracker_writes_nothing_and_does_not_even_import_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker("disabled", tmp_path / "runs", keep=1) as tracker:
        tracker.log({"loss": 1.0}, 1)
    assert not (tmp_path / "runs").exists()
    assert caplog.records == []


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_what_is_logged_reaches_the_run(tmp_path: Path, start: Callable[[Any], dict[str, Any]], mode: str) -> None:
    run = Run()
    arguments = start(run)
    with Tracker(mode, tmp_path / "root", keep=2, project="p", name="n", config={"lr": 1}) as tracker:
        tracker.log({"loss": 1.0}, 3)
    assert run.told == [("log", ({"loss": 1.0}, 3)), ("finish", 0)]
    given = {name: arguments[name] for name in ("mode", "dir", "project", "name", "config")}
    assert given == {"mode": mode, "dir": str(tmp_path / "root"), "project": "p", "name": "n", "config": {"lr": 1}}


def test_a_run_that_failed_is_marked_so(tmp_path: Path, start: Callable[[Any], dict[str, Any]]) -> None:
    run = Run()
    start(run)
    with pytest.raises(ZeroDivisionError), Tracker("offline", tmp_path, keep=2):
        raise ZeroDivisionError
    assert run.told == [("finish", 1)]


# What fails


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (OSError("no space left"), "W&B is off for this run: no space left"),
        (Run("log"), "W&B stopped: no space left"),
        (Run("finish"), "W&B did not finish: no space left"),
    ],
)
def test_a_failure_of_wandb_is_told_once_and_stops_no_run(
    tmp_path: Path, start: Callable[[Any], dict[str, Any]], caplog: pytest.LogCaptureFixture, outcome: Any, said: str
) -> None:
    start(outcome)
    with Tracker("online", tmp_path, keep=2) as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.log({"loss": 0.5}, 2)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [said]


def test_without_the_package_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker("offline", tmp_path, keep=2) as tracker:
        tracker.log({"loss": 1.0}, 1)


def test_a_folder_that_cannot_be_made_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Tracker("offline", tmp_path / "file", keep=2) as tracker:
        tracker.log({"loss": 1.0}, 1)


# What is kept


def test_old_runs_are_deleted_whether_offline_or_online(tmp_path: Path, start: Callable[[Any], dict[str, Any]]) -> None:
    start(Run())
    names = [f"{'offline-' * (day % 2)}run-2026010{day}_000000-x" for day in range(5)]
    for name in ("something-else", *names):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    Tracker("offline", tmp_path, keep=3)
    kept = sorted(path.name for path in (tmp_path / "wandb").iterdir())
    assert kept == sorted(["something-else", *names[3:]])  # with the new one there are three


def test_runs_within_the_bound_stay(tmp_path: Path, start: Callable[[Any], dict[str, Any]]) -> None:
    start(Run())
    (tmp_path / "wandb/offline-run-20260101_000000-x").mkdir(parents=True)
    Tracker("offline", tmp_path, keep=3)
    assert len(list((tmp_path / "wandb").iterdir())) == 1
