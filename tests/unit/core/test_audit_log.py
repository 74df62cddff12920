"""Audit log: appended events, their order, and failed writes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from detect_ai.core import audit_log
from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage


@pytest.fixture(params=["local", "gcs"])
def storage(request, tmp_path):
    root = tmp_path / "root" if request.param == "local" else request.getfixturevalue("gcs_root")
    return Storage(str(root))


def test_events_are_read_oldest_first(storage, monkeypatch):
    monkeypatch.setenv("USER", "ada")
    assert list(audit_log.events(storage)) == []
    for version in "cab":
        audit_log.record(storage, "rollback", version=version, before=None)
    storage.write_bytes("audit/20200101T000000000000Z-0.json.0123.tmp", b"partial")  # of an interrupted write
    events = list(audit_log.events(storage))
    assert [event["version"] for event in events] == ["c", "a", "b"]
    assert set(events[0]) == {"action", "by", "when", "version", "before"}
    assert events[0]["action"] == "rollback"
    assert events[0]["by"].startswith("ada@")
    assert (datetime.now(UTC) - datetime.fromisoformat(events[0]["when"])).total_seconds() < 60


def test_concurrent_events_are_all_kept(tmp_path):
    storage = Storage(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: audit_log.record(storage, "deploy", version=i), range(80)))
    assert sorted(event["version"] for event in audit_log.events(storage)) == list(range(80))


def test_failed_write_is_a_warning_with_the_event(tmp_path, monkeypatch, caplog):
    storage = Storage(str(tmp_path))

    def full(key, data):
        raise OSError("No space left on device")

    monkeypatch.setattr(storage, "create", full)
    audit_log.record(storage, "key-revoke", key="3f9a0c12")
    [line] = caplog.messages
    assert all(part in line for part in ("key-revoke", "3f9a0c12", "No space left on device"))
    assert caplog.records[0].levelname == "WARNING"


def test_damaged_event_is_named(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write_bytes("audit/1.json", b"{")
    with pytest.raises(InputError, match=r"audit/1\.json"):
        list(audit_log.events(storage))
