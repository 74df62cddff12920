"""Ray Train's list of a run's checkpoints, kept whole: Ray writes it in place, and a job may be killed meanwhile."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage

if TYPE_CHECKING:
    from ray.train import UserCallback

logger = logging.getLogger(__name__)

_LIST = "checkpoint_manager_snapshot.json"  # Ray's name for it
_COPY = "checkpoints.json"


def read(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """The checkpoints that Ray Train has registered and keeps: of its list, of the copy where that is half-written."""
    for name in (_LIST, _COPY):
        try:
            found: list[dict[str, Any]] = storage.read_json(f"{folder}/{name}")["checkpoint_results"]
        except (FileNotFoundError, InputError):
            continue
        return found
    return []


def keeper(root: str, folder: str) -> UserCallback:
    """A callback of Ray Train that copies the list when a checkpoint is registered, and those it replaces are gone.

    Args:
        root: of the storage.
        folder: key of the run.
    """
    from ray.train import UserCallback

    class Keeper(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if checkpoint is None:  # Ray Train writes no list then
                return
            storage = Storage(root)
            try:
                storage.write_bytes(f"{folder}/{_COPY}", storage.read_bytes(f"{folder}/{_LIST}"))
            except Exception as error:  # what a callback raises ends the run, and the copy is not worth one
                logger.warning("%s: the list of checkpoints was not copied: %s", folder, error)

    return Keeper()


def mend(storage: Storage, folder: str) -> None:
    """Put the copy where a killed job left half a list; without a copy the run begins anew."""
    try:
        storage.write_json(f"{folder}/{_COPY}", storage.read_json(f"{folder}/{_LIST}"))
    except FileNotFoundError:
        return
    except InputError:
        if storage.exists(f"{folder}/{_COPY}"):
            logger.warning("%s: the list of checkpoints is half-written: the one before it is taken", folder)
            storage.write_bytes(f"{folder}/{_LIST}", storage.read_bytes(f"{folder}/{_COPY}"))
        else:
            storage.delete(f"{folder}/{_LIST}")
