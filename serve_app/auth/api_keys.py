"""API keys: many, hashed at rest, with scopes and rates, revoked without a restart.

They lie in one JSON file under the storage root (`serve.keys_file`), and in the environment variable
`DETECT_AI_API_KEYS` of whoever deploys, as `{"keys": [{"id": …, "name": …, "sha256": …, "scopes": ["detect"]}]}`:

    python -m serve_app.auth.api_keys create newsroom --rate 600     # prints the key, once
    python -m serve_app.auth.api_keys list
    python -m serve_app.auth.api_keys revoke 3f9a0c12

A key is 256 random bits behind a public id, so a fast hash is enough at rest: there is nothing to guess.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from detect_ai.core.config import ServeConfig
from detect_ai.core.errors import ConfigError, DetectAIError
from detect_ai.core.storage import Storage

ENVIRONMENT = "DETECT_AI_API_KEYS"
_TOKEN = re.compile(r"dai_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_NOBODY = "0" * 64  # compared with where no key has the id, so that both answers take the same time


class Scope(StrEnum):
    """What a key may do."""

    DETECT = "detect"
    ADMIN = "admin"


class ApiKey(BaseModel):
    """A key as it is kept: what it may do, never the key itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]
    name: Annotated[str, StringConstraints(pattern=r"^[ -~]{1,64}$")] = Field(description="Whose it is")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    scopes: frozenset[Scope]
    rate_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Texts a minute, over all replicas; that of the service when left out"
    )
    expires: AwareDatetime | None = None


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[ApiKey] = []


class KeyRing:
    """The keys that are valid now."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self.keys = {key.id: key for key in keys}

    def find(self, token: str) -> ApiKey | None:
        """The key that a token is, unless it is none or has expired. A wrong one takes as long as a right one."""
        parsed = _TOKEN.fullmatch(token)
        key = self.keys.get(parsed[1]) if parsed else None
        is_right = hmac.compare_digest(digest(token), key.sha256 if key else _NOBODY)
        if key is None or not is_right or (key.expires and key.expires <= datetime.now(UTC)):
            return None
        return key


def digest(token: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(token.encode()).hexdigest()


def made(
    name: str,
    scopes: Iterable[Scope] = (Scope.DETECT,),
    rate_per_minute: int | None = None,
    expires: datetime | None = None,
) -> tuple[str, ApiKey]:
    """A new key: the token to hand out, and what to keep. Raises ConfigError."""
    number = secrets.token_hex(4)
    token = f"dai_{number}_{secrets.token_urlsafe(32)}"
    try:
        return token, ApiKey(
            id=number,
            name=name,
            sha256=digest(token),
            scopes=frozenset(scopes),
            rate_per_minute=rate_per_minute,
            expires=expires,
        )
    except ValidationError as error:
        raise ConfigError(f"key: {_explained(error)}") from None


def parse(text: str, where: str) -> list[ApiKey]:
    """The keys of a file. Raises ConfigError, which repeats no hash."""
    try:
        keys = _KeyFile.model_validate_json(text).keys
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explained(error)}") from None
    twice = {key.id for key in keys if [other.id for other in keys].count(key.id) > 1}
    if twice:
        raise ConfigError(f"{where}: {', '.join(sorted(twice))} stand there twice: revoke and create them again")
    return keys


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return (
        f'expected {{"keys": [...]}} as `python -m serve_app.auth.api_keys create` writes it: {place}: {first["msg"]}'
    )


def read(storage: Storage, name: str) -> list[ApiKey]:
    """The keys of a file under the storage root; none where there is no such file. Raises ConfigError."""
    if not name or not storage.exists(name):
        return []
    return parse(storage.read_bytes(name).decode("utf-8", errors="replace"), storage.uri(name))


def ring(config: ServeConfig, storage: Storage, environment: str) -> KeyRing:
    """The keys of the file and of the environment together. Raises ConfigError."""
    return KeyRing([*(parse(environment, ENVIRONMENT) if environment else []), *read(storage, config.keys_file)])


def main(argv: Sequence[str] | None = None) -> int:
    """Create, list or revoke keys. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.auth.api_keys", description="API keys of the service.")
    parser.add_argument(
        "--root", default=os.environ.get("DETECT_AI_STORAGE_ROOT", ""), help="storage root; DETECT_AI_STORAGE_ROOT"
    )
    parser.add_argument(
        "--file", default=ServeConfig.keys_file, help="under the root, as serve.keys_file (%(default)s)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", help="whose it is")
    create.add_argument("--scope", nargs="+", type=Scope, default=[Scope.DETECT], choices=list(Scope))
    create.add_argument("--rate", type=int, help="texts a minute; that of the service when left out")
    create.add_argument("--expires", type=_moment, help="a date such as 2027-01-31")
    verbs.add_parser("list", help="ids, names and scopes")
    verbs.add_parser("revoke", help="take a key back").add_argument("id")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.root:
            raise ConfigError("expected --root or DETECT_AI_STORAGE_ROOT: the storage root that the service has")
        print(_done(Storage(arguments.root), arguments))  # noqa: T201 - what the command is for
    except DetectAIError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _done(storage: Storage, arguments: argparse.Namespace) -> str:
    keys = read(storage, arguments.file)
    if arguments.verb == "list":
        return "\n".join(_line(key) for key in keys) or f"no keys in {storage.uri(arguments.file)}"
    if arguments.verb == "revoke":
        kept = [key for key in keys if key.id != arguments.id]
        if len(kept) == len(keys):
            found = ", ".join(key.id for key in keys) or "none"
            raise ConfigError(f"no key {arguments.id!r} in {storage.uri(arguments.file)}; found {found}")
        _write(storage, arguments.file, kept)
        return f"revoked {arguments.id}: running replicas refuse it within serve.keys_refresh_s"
    token, key = made(arguments.name, arguments.scope, arguments.rate, arguments.expires)
    _write(storage, arguments.file, [*keys, key])
    return token


def _line(key: ApiKey) -> str:
    rate = f"{key.rate_per_minute} texts a minute" if key.rate_per_minute else "the service's rate"
    until = f", until {key.expires:%Y-%m-%d}" if key.expires else ""
    return f"{key.id}  {key.name}  {' '.join(sorted(key.scopes))}  {rate}{until}"


def _write(storage: Storage, name: str, keys: list[ApiKey]) -> None:
    storage.write_bytes(name, (_KeyFile(keys=keys).model_dump_json(indent=2, exclude_none=True) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
