"""What a training run writes beside its checkpoints: figures as JSON lines, and the step that it goes on from."""

from __future__ import annotations

import json
from typing import Any

from detect_ai.core.storage import Storage

NAME = "metrics.jsonl"
UNKNOWN = -1.0  # AUROC of a checkpoint that was not evaluated: Ray Train wants a number to rank by


class RunLog:
    """The lines of a run. One that goes on from a step keeps the lines up to it.

    An object store cannot append: the file is written anew at every checkpoint, evaluation and error, not every line.

    Args:
        storage: where the run lies.
        folder: key of the run.
        steps: from which it goes on.
    """

    def __init__(self, storage: Storage, folder: str, steps: int) -> None:
        self._storage, self._key = storage, f"{folder}/{NAME}"
        self._lines = [line for line in read(storage, folder) if line["step"] <= steps and line["kind"] != "error"]

    def write(self, line: dict[str, Any], now: bool = True) -> None:
        """Add a line, which has a `kind` and a `step`; a line that is not written now goes with the next that is."""
        self._lines.append(line)
        if now:
            self.flush()

    def flush(self) -> None:
        """Write all lines so far."""
        if self._lines:
            text = "".join(json.dumps(each) + "\n" for each in self._lines)
            self._storage.write_bytes(self._key, text.encode())


def read(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """The lines of a run, none where it has not written any."""
    try:
        text = storage.read_bytes(f"{folder}/{NAME}").decode()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


def write_start(storage: Storage, folder: str, step: int, workers: int) -> None:
    """Say from which step on the training stream is to be made. Rank 0 does, before any rank asks for the stream."""
    storage.write_json(f"{folder}/start.json", {"step": step, "workers": workers})


def read_start(storage: Storage, folder: str) -> int:
    """The step that `write_start` named last."""
    return int(storage.read_json(f"{folder}/start.json")["step"])
