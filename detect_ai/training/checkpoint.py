"""Training checkpoints, and Ray Train's list of them.

A checkpoint is the model in the format of a bundle (`config.json`, `model.safetensors`) and the training state
(`optimizer.safetensors`, `state.json`). Ray Train registers a checkpoint only when it is completely in storage, so a
run never resumes from an incomplete checkpoint.
"""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train

from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage
from detect_ai.models import encoder

if TYPE_CHECKING:
    import torch

    from detect_ai.training.trainer import Trainer

logger = logging.getLogger(__name__)

NOT_EVALUATED = -1.0  # AUROC of a checkpoint without an evaluation: Ray Train needs a number to rank it by
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's name for its list of checkpoints, written in place
BACKUP = "checkpoint_manager_snapshot.backup.json"


def report(trainer: Trainer, history: list[dict[str, Any]], storage: Storage, folder: str) -> None:
    """Report a checkpoint of the last step to Ray Train. Every rank must call this; rank 0 writes the checkpoint.

    The metrics are from the evaluation at this step; a checkpoint without an evaluation never ranks best. The list of
    checkpoints is first backed up under the run's `folder`: Ray Train keeps the listed ones until it has a new list.
    """
    state = trainer.state() | {"history": history}
    evaluated = bool(history) and history[-1]["step"] == trainer.steps
    metrics = history[-1] if evaluated else {"auroc": NOT_EVALUATED, "step": trainer.steps}
    metrics = metrics | {"score": checkpoint_score(metrics)}
    if trainer.rank:
        ray.train.report(metrics)
        return
    with suppress(OSError, InputError):  # no list yet, or a half-written one
        storage.write_json(f"{folder}/{BACKUP}", storage.read_json(f"{folder}/{SNAPSHOT}"))
    with tempfile.TemporaryDirectory() as name:
        encoder.save(trainer.module, Path(name))
        write_state(state, Path(name))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(name))


def checkpoint_score(metrics: dict[str, Any]) -> float:
    """Score by which Ray Train ranks checkpoints: AUROC, ties broken by the lowest loss (at a weight of 1e-12)."""
    return float(metrics["auroc"] - 1e-12 * metrics.get("val_loss", 0.0))


def restore(trainer: Trainer) -> list[dict[str, Any]]:
    """Load the run's last checkpoint, if any. Returns the evaluations so far."""
    from safetensors.torch import load_model

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as name:
        load_model(trainer.module, Path(name) / "model.safetensors", device=str(trainer.device))
        state = read_state(Path(name))
    trainer.load_state(state)
    return list(state["history"])


def write_state(state: dict[str, Any], folder: Path) -> None:
    """Write a training state: optimizer tensors as safetensors, everything else as JSON."""
    from safetensors.torch import save_file

    optimizer = state["optimizer"]
    tensors = {f"{i}.{name}": value for i, values in optimizer["state"].items() for name, value in values.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(json.dumps({**state, "optimizer": optimizer["param_groups"]}))


def read_state(folder: Path) -> dict[str, Any]:
    """Read a training state written by `write_state`."""
    from safetensors.torch import load_file

    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    tensors: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        number, _, name = key.partition(".")
        tensors.setdefault(int(number), {})[name] = value
    return {**state, "optimizer": {"state": tensors, "param_groups": state["optimizer"]}}


def resume_step(storage: Storage, folder: str) -> int:
    """The step of the last registered checkpoint of a run, from which new workers resume; 0 without one."""
    try:
        latest = storage.read_json(f"{folder}/{SNAPSHOT}")["latest_checkpoint_result"]
    except FileNotFoundError:
        return 0
    return int(latest["metrics"]["step"]) if latest else 0


def repair_snapshot(storage: Storage, folder: str) -> None:
    """Replace a half-written list of checkpoints with its backup, or delete it if the backup lists a deleted one."""
    try:
        storage.read_json(f"{folder}/{SNAPSHOT}")
    except FileNotFoundError:
        return
    except InputError:
        logger.warning("%s: the list of checkpoints is half-written: resuming from the one before it", folder)
        backup = storage.read_json(f"{folder}/{BACKUP}") if storage.exists(f"{folder}/{BACKUP}") else {}
        names = [result["checkpoint_dir_name"] for result in backup.get("checkpoint_results", [])]
        if names and all(storage.exists(f"{folder}/{name}") for name in names):
            storage.write_json(f"{folder}/{SNAPSHOT}", backup)
        else:
            storage.delete(f"{folder}/{SNAPSHOT}")
