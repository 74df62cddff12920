"""Append-only pointer with compare-and-swap: shared state that concurrent writers cannot lose or corrupt."""

from __future__ import annotations

import getpass
import re
import socket
import uuid
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from detect_ai.core.errors import ConflictError, InputError, first_problem
from detect_ai.core.storage import Storage


def author() -> str:
    """The user and host of this process, as `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # neither in the environment nor in the user database, as in some containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


class Record(BaseModel):
    """One state: its position in the sequence, its value, and who wrote it when (UTC, ISO 8601).

    `token` makes the content unique to one writer, as `Storage.create` requires.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    number: int
    value: dict[str, Any]
    by: str
    when: str
    token: str = ""


class Pointer:
    """A sequence of records `<prefix>/000001.json`, `000002.json`, …; the highest number is the current state.

    Records are created, never changed or deleted, and each number is created at most once (`Storage.create`).
    """

    def __init__(self, storage: Storage, prefix: str) -> None:
        self.storage, self.prefix = storage, prefix

    def read(self) -> Record | None:
        """The current record; None before the first. Raises InputError if its file is malformed."""
        names = self.names()
        return self.load(names[-1]) if names else None

    def history(self) -> list[Record]:
        """All records, oldest first. Raises InputError if a file is malformed."""
        return [self.load(name) for name in self.names()]

    def advance(self, value: dict[str, Any], after: int) -> Record:
        """Append a record unless record `after`, which the caller has read (0: none), already has a successor.

        Raises:
            ConflictError: record `after + 1` exists.
        """
        when = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(number=after + 1, value=value, by=author(), when=when, token=uuid.uuid4().hex)
        name = f"{record.number:06d}.json"
        if not self.storage.create(f"{self.prefix}/{name}", record.model_dump_json(indent=2).encode()):
            winner = self.load(name)
            version = f" with version {winner.value['version']}" if "version" in winner.value else ""
            raise ConflictError(  # without the value, which for a service contains settings and hashed keys
                f"{self.prefix}/{name}: {winner.by} wrote it first, at {winner.when}{version}; "
                "look at the new state and try again"
            )
        return record

    def names(self) -> list[str]:
        """Names of the records, oldest first."""
        names = self.storage.list(self.prefix)
        return sorted((name for name in names if re.fullmatch(r"\d{6,}\.json", name)), key=lambda name: int(name[:-5]))

    def load(self, name: str) -> Record:
        """A record by name. Raises InputError if its file is malformed."""
        key = f"{self.prefix}/{name}"
        try:
            record = Record.model_validate_json(self.storage.read_bytes(key))
            if record.number == int(name[:-5]):
                return record
            problem = f"number {record.number} does not match the name"
        except ValidationError as error:
            problem = first_problem(error)
        advice = "Restore the file, or delete it to return to the record before it"
        raise InputError(f"{self.storage.uri(key)}: {problem}. {advice}")
