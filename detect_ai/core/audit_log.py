"""Audit log: who changed shared state, when and with which metrics. Append-only, one object per event."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from detect_ai.core.pointer import author
from detect_ai.core.storage import Storage

logger = logging.getLogger(__name__)

FOLDER = "audit"
Released = Literal["publish", "publish-refused", "rollback", "recalibrate", "deploy", "deploy-failed", "restore"]
Action = Released | Literal["abstain", "erase", "key-create", "key-revoke"]


def record(storage: Storage, action: Action, **details: Any) -> None:
    """Append an event under `audit/`, after the state has changed. `details` must not contain secrets, hashes or texts.

    A failed write does not undo the action or raise: a warning names the action, its details and the error.
    """
    now = datetime.now(UTC)
    event = {"action": action, "by": author(), "when": now.isoformat(timespec="seconds"), **details}
    try:
        # Names sort by time; the random suffix separates events of the same microsecond.
        storage.create(f"{FOLDER}/{now:%Y%m%dT%H%M%S%fZ}-{uuid.uuid4().hex[:8]}.json", json.dumps(event).encode())
    except Exception as error:  # errors of object stores have no common base
        logger.warning("not in the audit log (%s: %s): %s", type(error).__name__, error, json.dumps(event))


def events(storage: Storage) -> Iterator[dict[str, Any]]:
    """All events, oldest first. Raises InputError if a file is not JSON."""
    for name in storage.list(FOLDER):
        if name.endswith(".json"):  # others are left by interrupted writes
            yield storage.read_json(f"{FOLDER}/{name}")
