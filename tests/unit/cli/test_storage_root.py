"""Commands on a storage root: the audit log, the registry, and erasing a request."""

import json
from datetime import UTC, datetime

import pytest

from detect_ai.cli.__main__ import main
from detect_ai.core import audit_log
from detect_ai.core.config import MonitoringConfig
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from detect_ai.monitoring.feedback import Feedback
from detect_ai.monitoring.log_files import read
from detect_ai.monitoring.prediction_log import RowLog
from detect_ai.schemas import Label
from tests.unit.monitoring.test_feedback import prediction


@pytest.fixture
def root(tmp_path, tiny_bundle):
    """A storage root with a champion."""
    registry = Registry(Storage(str(tmp_path / "root")))
    registry.set_champion(registry.add(tiny_bundle))
    return registry.storage.root


def test_audit_prints_a_line_per_event(root, capsys):
    for version in ("b", "a"):
        audit_log.record(Storage(root), "rollback", version=version)
    assert main(["audit", "--root", root]) == 0
    assert [json.loads(line)["version"] for line in capsys.readouterr().out.splitlines()] == ["b", "a"]


def test_registry_verify_prints_problems_and_a_summary(root, capsys, monkeypatch):
    monkeypatch.setenv("DETECT_AI_STORAGE_ROOT", root)
    champion = Registry(Storage(root)).champion()
    assert main(["registry", "verify"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"versions": 1, "records": 1, "champion": champion, "problems": 0}
    Storage(root).write_bytes(f"registry/versions/{champion}/config.json", b"{}")
    assert main(["registry", "verify", "--root", root]) == 1
    *problems, line = capsys.readouterr().out.splitlines()
    assert len(problems) == json.loads(line)["problems"] == 2
    assert all(champion in problem for problem in problems)


@pytest.mark.parametrize("command", [["audit"], ["registry", "verify"], ["erase", "r1"]])
def test_a_root_without_the_folder_is_bad_usage(command, tmp_path, capsys):
    assert main(command) == 2
    assert "DETECT_AI_STORAGE_ROOT" in capsys.readouterr().err
    assert main([*command, "--root", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_erase_deletes_a_request_from_the_log(root, capsys):
    log = RowLog(Storage(root), "predictions", 1, 10**9)
    rows = [prediction(name, time=datetime.now(UTC), reasons=[]) for name in ("r1", "r2")]
    log.append(rows)
    log.flush()
    Feedback(Storage(root), MonitoringConfig()).vote(rows[0], "k1", Label.HUMAN, may_audit=False)
    assert main(["erase", "r1", "--root", root]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 1, "labels": 1}
    assert read(Storage(root))["request_id"].to_pylist() == ["r2"]
    assert main(["erase", "unknown", "--root", root]) == 1
    assert "request id" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/d", "sqlite:////no/such/folder/secret.db"])
def test_erase_that_cannot_reach_the_labels_erases_nothing(url, root, capsys):
    log = RowLog(Storage(root), "predictions", 1, 10**9)
    log.append([prediction("r1", time=datetime.now(UTC), reasons=[])])
    log.flush()
    assert main(["erase", "r1", "--root", root, "--feedback-url", url]) == 2
    assert "secret" not in capsys.readouterr().err
    assert read(Storage(root)).num_rows == 1


def test_registry_needs_a_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["registry"])
    assert ended.value.code == 2
    assert "verify" in capsys.readouterr().err


def test_an_empty_bundle_is_not_the_champion(capsys):
    """An empty value comes from a variable that is not set."""
    assert main(["serve", "--bundle", ""]) == 2
    assert "--bundle is empty" in capsys.readouterr().err
