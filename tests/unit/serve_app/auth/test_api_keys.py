"""API keys: found, refused, expired, listed, revoked, and never kept as they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from detect_ai.core.config import ServeConfig
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from serve_app.auth import api_keys
from serve_app.auth.api_keys import KeyRing, Scope, made, parse, ring


def test_a_key_is_found_by_its_token_alone() -> None:
    (token, key), (_, other) = made("one"), made("two")
    found = KeyRing([key, other])
    assert found.find(token) == key
    assert found.find(token[:-1] + ("A" if token[-1] != "A" else "B")) is None
    assert found.find(token.replace(key.id, other.id)) is None
    assert found.find("") is None
    assert found.find(f"{token} ") is None
    assert KeyRing().find(token) is None


def test_an_expired_key_is_none() -> None:
    now = datetime.now(UTC)
    (past, gone), (future, here) = (made("k", expires=now + timedelta(hours=h)) for h in (-1, 1))
    found = KeyRing([gone, here])
    assert found.find(past) is None
    assert found.find(future) == here


def test_the_command_creates_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = api_keys.main(["--root", str(tmp_path), *arguments])
        return status, *capsys.readouterr()

    assert run("list")[1].startswith("no keys in ")
    token = run("create", "news room", "--rate", "600", "--scope", "detect", "admin", "--expires", "2999-01-31")[1]
    second = run("create", "other")[1].strip()
    written = (tmp_path / ServeConfig.keys_file).read_text()
    assert token.strip() not in written
    assert second.rsplit("_", 1)[1] not in written
    found = ring(ServeConfig(), Storage(str(tmp_path)), "").find(token.strip())
    assert found is not None
    assert (found.name, found.rate_per_minute, found.scopes) == ("news room", 600, {Scope.DETECT, Scope.ADMIN})
    listed = run("list")[1].splitlines()
    assert listed[0] == f"{found.id}  news room  admin detect  600 texts a minute, until 2999-01-31"
    assert listed[1].endswith("other  detect  the service's rate")
    assert run("revoke", found.id)[0] == 0
    assert ring(ServeConfig(), Storage(str(tmp_path)), "").find(token.strip()) is None
    status, _, error = run("revoke", found.id)
    assert status == 2
    assert f"no key '{found.id}' in " in error


def test_the_command_names_a_missing_root(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DETECT_AI_STORAGE_ROOT", raising=False)
    assert api_keys.main(["list"]) == 2
    assert "expected --root or DETECT_AI_STORAGE_ROOT" in capsys.readouterr().err


def test_keys_of_the_environment_count_too(tmp_path: Path) -> None:
    token, key = made("from outside")
    environment = json.dumps({"keys": [key.model_dump(mode="json", exclude_none=True)]})
    assert ring(ServeConfig(), Storage(str(tmp_path)), environment).find(token) == key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "Invalid JSON"),
        ('{"keys": [{"id": "0"}]}', r"keys\.0\.id"),
        ('{"tokens": []}', "tokens: Extra inputs"),
        ('{"keys": [{"id": "00000000", "name": "x", "sha256": "plain-secret", "scopes": ["detect"]}]}', "sha256"),
        ('{"keys": [{"id": "00000000", "name": "x", "sha256": "' + "0" * 64 + '", "scopes": ["all"]}]}', "scopes"),
    ],
)
def test_a_bad_file_is_named_without_what_it_holds(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        parse(text, "auth/keys.json")
    assert "plain-secret" not in str(error.value)
    assert str(error.value).startswith("auth/keys.json: expected ")


def test_one_id_stands_once() -> None:
    _, key = made("one")
    with pytest.raises(ConfigError, match=f"{key.id} stand there twice"):
        parse(json.dumps({"keys": [key.model_dump(mode="json")] * 2}), "here")


@pytest.mark.parametrize("name", ["", "line\nbreak", "x" * 65])
def test_a_name_is_one_short_line(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        made(name)
