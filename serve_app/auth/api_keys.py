"""API keys: hashed at rest, with scopes, rate limits and expiry, revoked without a restart.

Each key is one object `auth/keys/<id>.json` under the storage root, so that concurrent creations and revocations cannot
undo each other:

    python -m serve_app.auth.api_keys create newsroom --tokens-per-minute 60000     # prints the key, once
    python -m serve_app.auth.api_keys list
    python -m serve_app.auth.api_keys revoke 3f9a0c12

Further keys come from the deployer's environment variable `DETECT_AI_API_KEYS`, as
`{"keys": [{"id": …, "name": …, "sha256": …, "scopes": ["detect"]}]}`; they override objects with the same id.

A key is a public id and 256 random bits, which cannot be guessed, so a fast hash is enough at rest.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from detect_ai.core import audit_log
from detect_ai.core.config import ServeConfig
from detect_ai.core.errors import ConfigError, DetectAIError, first_problem
from detect_ai.core.storage import Storage

logger = logging.getLogger("ray.serve")

ENVIRONMENT = "DETECT_AI_API_KEYS"
FOLDER = "auth/keys"
REFRESH_S = 5  # delay until running replicas refuse a revoked key
_TOKEN = re.compile(r"dai_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_NO_HASH = "0" * 64  # compared if no key has the id, so that both cases take the same time


class Scope(StrEnum):
    """Permission of a key."""

    DETECT = "detect"
    FEEDBACK = "feedback"  # labels as appeals
    AUDIT = "audit"  # labels that count in error rates
    ADMIN = "admin"


class ApiKey(BaseModel):
    """A key as stored: its hash and what it permits, never the key itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    name: str = Field(pattern=r"^[ -~]{1,64}$")  # owner
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[Scope]
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None  # over all replicas; None: serve.tokens_per_minute
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or self.expires > datetime.now(UTC))


_KEY = TypeAdapter(ApiKey)
_KEYS = TypeAdapter(dict[Literal["keys"], list[ApiKey]])


class KeyRing:
    """Keys by id; the last of several keys with the same id counts."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self.keys = {key.id: key for key in keys}

    def find(self, token: str) -> ApiKey | None:
        """The valid key with this token. A wrong token takes as long as a right one."""
        match = _TOKEN.fullmatch(token)
        key = self.keys.get(match[1]) if match else None
        is_equal = hmac.compare_digest(digest(token), key.sha256 if key else _NO_HASH)
        return key if key and is_equal and key.is_valid else None


class KeyStore:
    """Keys under a storage root and in `environment`, the content of `DETECT_AI_API_KEYS`."""

    def __init__(self, storage: Storage, environment: str = "") -> None:
        self._storage = storage
        self._environment = _parse(_KEYS, environment, ENVIRONMENT).get("keys", []) if environment else []
        self._known: dict[str, tuple[tuple[Any, Any], ApiKey]] = {}  # by id, with (mtime, size)

    def read(self, strict: bool = True) -> KeyRing:
        """All keys, revoked ones included; reads only objects that have changed.

        An object that is not a key raises ConfigError; if not `strict`, it is logged and skipped.
        """
        known: dict[str, tuple[tuple[Any, Any], ApiKey]] = {}
        for info in self._storage.infos(FOLDER):
            number, changed = info.base_name.removesuffix(".json"), (info.mtime_ns, info.size)
            if number == info.base_name:
                continue
            if number in self._known and self._known[number][0] == changed:
                known[number] = self._known[number]
                continue
            name = f"{FOLDER}/{info.base_name}"
            where = self._storage.uri(name)
            try:
                key = _parse(_KEY, self._storage.read_bytes(name).decode(errors="replace"), where)
                if key.id != number:
                    raise ConfigError(f"{where}: expected the key {number}, found {key.id}")
                known[number] = (changed, key)
            except ConfigError as error:
                if strict:
                    raise
                logger.error("This key is refused: %s", error)
        self._known = known
        return KeyRing([*(key for _, key in known.values()), *self._environment])

    def put(self, key: ApiKey) -> None:
        """Create or replace the object of a key."""
        text = key.model_dump_json(indent=2, exclude_none=True)
        self._storage.write_bytes(f"{FOLDER}/{key.id}.json", f"{text}\n".encode())


def checked_keys(config: ServeConfig, storage: Storage, keys: str | None = None) -> str | None:
    """Hashed API keys of the environment, as JSON. If no keys exist: None on loopback, otherwise raises ConfigError."""
    environment = os.environ.get(ENVIRONMENT, "") if keys is None else keys
    if KeyStore(storage, environment).read().keys:
        return environment
    if not config.is_local:
        raise ConfigError(
            f"serve.host={config.host} lets other machines use the service, and there are no API keys: create one with "
            f"`python -m serve_app.auth.api_keys --root {storage.root} create NAME`, or give serve.host=127.0.0.1"
        )
    logger.info("No API keys: any process on this machine may use the service (`python -m serve_app.auth.api_keys`)")
    return None


def digest(token: str) -> str:
    """The hash of a key at rest."""
    return hashlib.sha256(token.encode()).hexdigest()


def create_key(name: str, scopes: Iterable[Scope] = (Scope.DETECT,), **limits: Any) -> tuple[str, ApiKey]:
    """A token for the owner, and its record; `limits` are `tokens_per_minute` and `expires`. Raises ConfigError."""
    number = secrets.token_hex(4)
    token = f"dai_{number}_{secrets.token_urlsafe(32)}"
    known = {"id": number, "name": name, "sha256": digest(token), "scopes": scopes, "created": _now()}
    try:
        return token, ApiKey.model_validate(known | limits)
    except ValidationError as error:
        raise ConfigError(f"key: {first_problem(error)}") from None


def _parse(adapter: TypeAdapter[Any], text: str, where: str) -> Any:
    """Parse keys. Raises ConfigError, whose message contains no hash."""
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        expected = "expected what `python -m serve_app.auth.api_keys create` writes"
        raise ConfigError(f"{where}: {expected}: {first_problem(error)}") from None


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _date(given: str) -> datetime:
    try:
        return datetime.fromisoformat(given)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a date such as 2027-01-31, found {given!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Create, list or revoke keys. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.auth.api_keys", description="API keys of the service.")
    root = os.environ.get("DETECT_AI_STORAGE_ROOT", "")
    parser.add_argument("--root", default=root, help="storage root of the service; default: DETECT_AI_STORAGE_ROOT")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="create a key and print it, once")
    create.add_argument("name", help="owner")
    create.add_argument("--scope", nargs="+", default=[Scope.DETECT], choices=[*map(str, Scope)])
    create.add_argument("--tokens-per-minute", type=int, help="rate limit; default: serve.tokens_per_minute")
    create.add_argument("--expires", type=_date, help="a date such as 2027-01-31")
    commands.add_parser("list", help="ids, owners and scopes")
    commands.add_parser("revoke", help="make a key invalid").add_argument("id")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.root:
            raise ConfigError("expected --root or DETECT_AI_STORAGE_ROOT: the storage root of the service")
        storage = Storage(arguments.root)
        if not storage.is_local:
            print(f"asks {storage.root}; without access to it this takes two minutes", file=sys.stderr)  # noqa: T201
        store, lines = KeyStore(storage), []
        if arguments.command == "create":
            expires = arguments.expires and arguments.expires.astimezone(UTC)
            limits = {"tokens_per_minute": arguments.tokens_per_minute, "expires": expires}
            token, key = create_key(arguments.name, map(Scope, arguments.scope), **limits)
            store.put(key)
            audit_log.record(storage, "key-create", key=key.id, name=key.name, scopes=sorted(key.scopes))
            lines = [token]
        elif arguments.command == "revoke":
            keys = store.read().keys
            if arguments.id not in keys:
                raise ConfigError(f"no key {arguments.id!r} in {FOLDER}/; found {', '.join(keys) or 'none'}")
            key = keys[arguments.id]
            store.put(key.model_copy(update={"revoked": _now()}))
            audit_log.record(storage, "key-revoke", key=key.id, name=key.name, scopes=sorted(key.scopes))
            lines = [f"revoked {arguments.id}: running replicas refuse it within {REFRESH_S} s"]
        else:
            for key in store.read().keys.values():
                rate = f"{key.tokens_per_minute} tokens/min" if key.tokens_per_minute else "default rate"
                dates = {"created": key.created, "expires": key.expires, "revoked": key.revoked}
                ends = [f"{name} {date:%Y-%m-%d}" for name, date in dates.items() if date]
                lines.append("  ".join([key.id, key.name, " ".join(sorted(key.scopes)), rate, *ends]))
        print("\n".join(lines) or f"no keys in {FOLDER}/")  # noqa: T201 - the output of a command
    except DetectAIError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
