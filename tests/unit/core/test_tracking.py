"""Tracking is optional, and its failures never stop a run."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest

from detect_ai.core import tracking
from detect_ai.core.compose import load_config
from detect_ai.core.storage import Storage
from detect_ai.core.tracking import Tracker
from tests.fixtures import gcs
from tests.fixtures.wandb_reader import finished, history


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "root"))


def tracker(storage: Storage, mode: str = "offline", **settings: Any) -> Tracker:
    return Tracker(load_config([f"storage.root={storage.root}", f"tracking.mode={mode}"]), **settings)


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_missing_package_stops_no_run(storage: Storage, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracker(storage, mode) as run:
        run.log({"loss": 1.0}, 1)
    assert storage.list("wandb") == []


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Replaces `wandb.init`, which returns a run."""
    fake = Mock(return_value=Mock(spec=["log", "finish"]))
    monkeypatch.setattr("wandb.init", fake)
    return fake


@pytest.mark.parametrize(
    ("has_key", "environment", "configured", "expected"),
    [
        (False, "", "auto", ["offline"]),
        (True, "", "auto", ["online"]),
        (True, "offline", "auto", ["offline"]),
        (True, "disabled", "auto", []),
        (True, "disabled", "offline", ["offline"]),
    ],
)
def test_mode_follows_config_environment_and_key(
    storage: Storage,
    init: Mock,
    monkeypatch: pytest.MonkeyPatch,
    has_key: bool,
    environment: str,
    configured: str,
    expected: list[str],
) -> None:
    monkeypatch.setattr("wandb.login", lambda **_: has_key)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    tracker(storage, configured)
    assert [given.kwargs["mode"] for given in init.call_args_list] == expected


@pytest.mark.parametrize("fails", ["", "return_value.log.", "return_value.finish."])
def test_failure_is_logged_once(storage: Storage, init: Mock, caplog: pytest.LogCaptureFixture, fails: str) -> None:
    init.configure_mock(**{f"{fails}side_effect": OSError("no space left")})
    with tracker(storage) as run:
        run.log({"loss": 1.0}, 1)
        run.log({"loss": 0.5}, 2)
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "no space left" in warning


def test_failed_run_has_an_exit_code(storage: Storage, init: Mock) -> None:
    with pytest.raises(ZeroDivisionError), tracker(storage):
        raise ZeroDivisionError
    assert init.return_value.mock_calls == [call.finish(exit_code=1)]


def test_oldest_runs_are_deleted(storage: Storage, init: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "RUNS_PER_KEPT", 1)
    names = [f"{kind}run-2026010{day}_000000-x" for kind in ("", "offline-") for day in range(5)]
    for name in ("other", *names):
        storage.write_bytes(f"wandb/{name}/file", b"x")
    with tracker(storage):
        pass
    assert storage.list("wandb") == sorted(["other", *names[2:5], *names[7:]])


@pytest.fixture(scope="module", params=["local", "gcs"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Records of an offline run, read from the storage root."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "bundle").mkdir()
    (folder / "bundle/weights.bin").write_bytes(b"weights")
    root = str(folder / "root")
    if request.param == "gcs":
        root = gcs.under(request.getfixturevalue("gcs_bucket"), "tracked")
    with tracker(Storage(root), facts={"corpus_fingerprint": "abc"}, group="sweep-1", name="trial-1") as run:
        run.log({"validation/auroc": 0.75}, step=3)
        run.artifact("champion", folder / "bundle", {"version": "v1"}, ["champion"])
    with Storage(root).local_folder("wandb") as runs:
        return finished(runs)


def test_run_has_group_name_and_config(recorded: list[Any]) -> None:
    (run,) = [record.run for record in recorded if record.HasField("run")]
    assert (run.run_group, run.display_name, run.project) == ("sweep-1", "trial-1", "detect_ai")
    known = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert known["corpus_fingerprint"] == "abc"
    assert known["train"]["epochs"] == load_config([]).train.epochs
    assert not {"storage", "tracking"} & set(known)


def test_metrics_have_their_step(recorded: list[Any]) -> None:
    assert history(recorded)["validation/auroc"] == 0.75
    assert 3 in [record.history.step.num for record in recorded if record.HasField("history")]


def test_artifact_has_files_and_aliases(recorded: list[Any]) -> None:
    artifacts = [record.artifact for record in recorded if record.HasField("artifact")]
    (artifact,) = [artifact for artifact in artifacts if artifact.type == "model"]
    assert (artifact.name, set(artifact.aliases)) == ("champion", {"champion", "latest"})
    assert json.loads(artifact.metadata) == {"version": "v1"}
    assert [entry.path for entry in artifact.manifest.contents] == ["weights.bin"]
