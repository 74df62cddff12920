"""Tracking is never required and never stops a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from detect_ai.tracking import Tracker, resolve_mode


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_key_auto_is_offline() -> None:
    assert resolve_mode("auto") == "offline"


def test_with_a_key_auto_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert resolve_mode("auto") == "online"


def test_the_mode_of_the_environment_decides_over_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("offline") == "offline"


def test_a_disabled_tracker_writes_nothing(tmp_path: Path) -> None:
    with Tracker("disabled", tmp_path / "runs", keep=1) as tracker:
        tracker.log({"loss": 1.0}, 1)
    assert not (tmp_path / "runs").exists()


def test_a_failure_of_the_tracker_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(wandb, "init", fail)
    with Tracker("offline", tmp_path, keep=1, project="p") as tracker:
        tracker.log({"loss": 1.0}, 1)


def test_old_offline_runs_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: SimpleNamespace(dir="x"))
    for day in range(5):
        (tmp_path / f"wandb/offline-run-2026010{day}_000000-x").mkdir(parents=True)
    Tracker("offline", tmp_path, keep=3, project="p")
    kept = sorted(path.name for path in (tmp_path / "wandb").iterdir())
    assert kept == ["offline-run-20260103_000000-x", "offline-run-20260104_000000-x"]
