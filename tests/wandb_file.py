"""What a run of W&B that is offline holds, read from its file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _records(folder: Path) -> Iterator[Any]:
    """The records of the only run below a folder: a log in blocks of 32 KiB, as LevelDB writes it."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 < len(data):
        if (left := 32_768 - at % 32_768) < 7:  # no header fits there
            at += left
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {1, 4}:  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def finished(folder: Path) -> list[Any]:
    """The records of the only run below a folder, once they are all there: W&B writes them beside us."""
    until = time.monotonic() + 60
    while True:
        found = list(_records(folder))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < until, "the run was not written to its end"
        time.sleep(0.1)


def history(told: list[Any]) -> dict[str, Any]:
    """Figures by name."""
    rows = [record.history for record in told if record.HasField("history")]
    return {"/".join(item.nested_key): json.loads(item.value_json) for row in rows for item in row.item}
