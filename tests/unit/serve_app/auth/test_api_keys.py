"""API keys: hashed, found by token, one object per key, permanently revoked."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core import audit_log
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from serve_app.auth import api_keys
from serve_app.auth.api_keys import FOLDER, ApiKey, KeyRing, KeyStore, Scope, create_key


def test_a_key_is_found_by_its_token_alone() -> None:
    (token, key), (_, other) = create_key("one"), create_key("two")
    ring = KeyRing([key, other])
    assert ring.find(token) == key
    for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), token.replace(key.id, other.id), "", f"{token} "):
        assert ring.find(wrong) is None


def test_an_expired_or_revoked_key_is_invalid() -> None:
    now = datetime.now(UTC)
    (past, gone), (future, valid) = (create_key("k", expires=now + timedelta(hours=h)) for h in (-1, 1))
    ring = KeyRing([gone, valid])
    assert ring.find(past) is None
    assert ring.find(future) == valid
    assert KeyRing([valid.model_copy(update={"revoked": now})]).find(future) is None


def test_the_command_creates_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = api_keys.main(["--root", str(tmp_path), *arguments])
        return status, *capsys.readouterr()

    store = KeyStore(Storage(str(tmp_path)))
    limits = ("--tokens-per-minute", "600", "--scope", "admin", "--expires", "2999-01-31")
    token = run("create", "news", *limits)[1].strip()
    run("create", "other")
    key = store.read().find(token)
    assert key is not None
    assert key.created is not None
    assert (key.name, key.tokens_per_minute, key.scopes) == ("news", 600, {Scope.ADMIN})
    assert token.split("_", 2)[2] not in (tmp_path / FOLDER / f"{key.id}.json").read_text()
    assert {line.split("  ")[1] for line in run("list")[1].splitlines()} == {"news", "other"}
    assert run("revoke", key.id)[0] == 0
    assert store.read().find(token) is None
    assert f"revoked {datetime.now(UTC):%Y-%m-%d}" in run("list")[1]
    status, _, error = run("revoke", "00000000")
    assert (status, "no key '00000000'" in error) == (2, True)


def test_changes_of_keys_are_audited_without_secrets(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert api_keys.main(["--root", storage.root, "create", "news"]) == 0
    token = capsys.readouterr().out.strip()
    [key] = KeyStore(storage).read().keys.values()
    assert api_keys.main(["--root", storage.root, "revoke", key.id]) == 0
    assert api_keys.main(["--root", storage.root, "revoke", "00000000"]) == 2
    events = list(audit_log.events(storage))
    assert [(event["action"], event["key"], event["name"], event["scopes"]) for event in events] == [
        ("key-create", key.id, "news", ["detect"]),
        ("key-revoke", key.id, "news", ["detect"]),
    ]
    stored = "".join(storage.read_bytes(f"audit/{name}").decode() for name in storage.list("audit"))
    assert key.sha256 not in stored
    assert token.split("_", 2)[2] not in stored


@pytest.mark.parametrize(
    ("option", "expected"),
    [("--expires=yesterday", "expected a date such as 2027-01-31, found 'yesterday'"), ("--scope=root", "'feedback'")],
)
def test_the_command_says_what_it_expects(
    option: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        api_keys.main(["--root", str(tmp_path), "create", "news", option])
    assert expected in capsys.readouterr().err


def test_the_command_needs_a_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECT_AI_STORAGE_ROOT", raising=False)
    assert api_keys.main(["list"]) == 2
    assert "DETECT_AI_STORAGE_ROOT" in capsys.readouterr().err


def test_creating_a_key_never_restores_a_revoked_one(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operator revokes a leaked key while another one creates a key."""
    leaked, key = create_key("leaked")
    KeyStore(storage).put(key)
    original = create_key

    def revoke_first(*arguments: Any, **limits: Any) -> tuple[str, ApiKey]:
        assert api_keys.main(["--root", storage.root, "revoke", key.id]) == 0
        return original(*arguments, **limits)

    monkeypatch.setattr(api_keys, "create_key", revoke_first)
    assert api_keys.main(["--root", storage.root, "create", "newcomer"]) == 0
    ring = KeyStore(storage).read()
    assert ring.find(leaked) is None
    assert {key.name for key in ring.keys.values()} == {"leaked", "newcomer"}


def test_keys_of_the_environment_take_precedence(storage: Storage) -> None:
    token, key = create_key("outside")
    KeyStore(storage).put(key.model_copy(update={"sha256": "0" * 64, "name": "stored"}))
    environment = json.dumps({"keys": [key.model_dump(mode="json", exclude_none=True)]})
    assert KeyStore(storage, environment).read().find(token) == key


def test_only_changed_objects_are_read_again(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    store, keys = KeyStore(storage), [create_key("k")[1] for _ in range(3)]
    for key in keys:
        store.put(key)
    store.read()
    reads: list[str] = []
    original = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda name: reads.append(name) or original(name))
    store.put(keys[0].model_copy(update={"revoked": datetime.now(UTC)}))
    assert len(store.read().keys) == 3
    assert reads == [f"{FOLDER}/{keys[0].id}.json"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"sha256": "plain-secret"}, "sha256"), ({"scopes": ["all"]}, "scopes"), ({"pin": 1}, "pin"), ({"id": "0"}, "id")],
)
def test_an_invalid_key_is_named_without_its_content(storage: Storage, changes: dict[str, object], field: str) -> None:
    key = create_key("one")[1]
    stored = key.model_dump(mode="json", exclude_none=True) | changes
    storage.write_json(f"{FOLDER}/{key.id}.json", stored)
    token, other = create_key("other")
    KeyStore(storage).put(other)
    assert KeyStore(storage).read(strict=False).find(token) == other
    for read in (KeyStore(storage).read, lambda: KeyStore(storage, json.dumps({"keys": [stored]}))):
        with pytest.raises(ConfigError, match=field) as error:
            read()
        assert "plain-secret" not in str(error.value)


def test_an_object_of_another_id_is_refused(storage: Storage) -> None:
    key = create_key("one")[1]
    storage.write_bytes(f"{FOLDER}/00000000.json", key.model_dump_json().encode())
    with pytest.raises(ConfigError, match=f"expected the key 00000000, found {key.id}"):
        KeyStore(storage).read()


@pytest.mark.parametrize("name", ["", "line\nbreak", "x" * 65])
def test_a_name_is_one_short_line(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        create_key(name)
