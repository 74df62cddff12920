"""Training checkpoints, and Ray Train's list of them.

A checkpoint is the model as a bundle has it (`config.json`, `model.safetensors`), what resuming needs
(`optimizer.safetensors`, `state.json`), the evaluations so far (`history.json`) and the one at this step
(`metrics.json`). Ray Train registers a checkpoint once all of it is in the storage, so a run never resumes from an
incomplete one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage

if TYPE_CHECKING:
    import torch
    from ray.train import UserCallback

    from detect_ai.training.trainer import Trainer

logger = logging.getLogger(__name__)

NOT_EVALUATED = -1.0  # AUROC of a checkpoint without an evaluation: Ray Train needs a number to rank it by
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's name for its list of checkpoints
SNAPSHOT_BACKUP = "checkpoints.json"


def report(trainer: Trainer, history: list[dict[str, Any]]) -> None:
    """Report a checkpoint of the last step to Ray Train. Every rank must call this; rank 0 writes it.

    The metrics are those of the evaluation at this step: a checkpoint without one never ranks best. All evaluations
    are reported along, because Ray Train forgets the metrics of a checkpoint that it deletes.
    """
    import ray.train

    from detect_ai.models import encoder

    state = trainer.state()
    evaluated = bool(history) and history[-1]["step"] == trainer.steps
    metrics = history[-1] if evaluated else {"auroc": NOT_EVALUATED, "step": trainer.steps}
    metrics = {**metrics, "score": checkpoint_score(metrics), "history": list(history)}
    if trainer.rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder.save(trainer.module, folder)
        write_state(state, folder)
        (folder / "history.json").write_text(json.dumps(history))
        if evaluated:
            (folder / "metrics.json").write_text(json.dumps(history[-1]))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(name))


def checkpoint_score(metrics: dict[str, Any]) -> float:
    """Score by which Ray Train ranks checkpoints: AUROC, ties broken by the lowest loss (at a weight of 1e-12)."""
    return float(metrics["auroc"] - 1e-12 * metrics.get("val_loss", 0.0))


def restore(trainer: Trainer) -> list[dict[str, Any]]:
    """Load the run's last checkpoint if there is one. Returns the evaluations so far."""
    import ray.train
    from safetensors.torch import load_model

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as name:
        folder = Path(name)
        load_model(trainer.module, folder / "model.safetensors", device=str(trainer.device))
        trainer.load_state(read_state(folder))
        history: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return history


def write_state(state: dict[str, Any], folder: Path) -> None:
    """Write what `Trainer.state` returned: tensors of the optimizer as safetensors, everything else as JSON."""
    from safetensors.torch import save_file

    optimizer = state["optimizer"]
    tensors = {f"{i}.{name}": value for i, values in optimizer["state"].items() for name, value in values.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "optimizer.safetensors")
    rest = {**state, "optimizer": optimizer["param_groups"]}
    (folder / "state.json").write_text(json.dumps(rest))


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote."""
    from safetensors.torch import load_file

    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    tensors: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        number, _, name = key.partition(".")
        tensors.setdefault(int(number), {})[name] = value
    return {**state, "optimizer": {"state": tensors, "param_groups": state["optimizer"]}}


# Ray Train's list of checkpoints. Ray writes it in place, so a job that is killed meanwhile leaves half of it.


def registered(storage: Storage, folder: str) -> list[dict[str, Any]]:
    """The checkpoints of a run that Ray Train has registered and keeps, each with its `checkpoint_dir_name`."""
    checkpoints: list[dict[str, Any]] = _snapshot(storage, folder).get("checkpoint_results", [])
    return checkpoints


def resume_step(storage: Storage, folder: str) -> int:
    """The step of the last registered checkpoint of a run, from which new workers resume; 0 without one."""
    latest = _snapshot(storage, folder).get("latest_checkpoint_result")
    return int(latest["metrics"]["step"]) if latest else 0


def _snapshot(storage: Storage, folder: str) -> dict[str, Any]:
    for name in (SNAPSHOT, SNAPSHOT_BACKUP):
        try:
            snapshot: dict[str, Any] = storage.read_json(f"{folder}/{name}")
        except (FileNotFoundError, InputError):
            continue
        return snapshot
    return {}


def snapshot_backup(root: str, folder: str) -> UserCallback:
    """A Ray Train callback that copies the list of checkpoints once it is written and the old checkpoints are deleted.

    Args:
        root: of the storage.
        folder: key of the run.
    """
    from ray.train import UserCallback

    class SnapshotBackup(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if checkpoint is None:  # Ray Train does not write the list then
                return
            storage = Storage(root)
            try:
                storage.write_bytes(f"{folder}/{SNAPSHOT_BACKUP}", storage.read_bytes(f"{folder}/{SNAPSHOT}"))
            except Exception as error:  # an exception in a callback ends the run, and a missed backup need not
                logger.warning("%s: could not back up the list of checkpoints: %s", folder, error)

    return SnapshotBackup()


def repair_snapshot(storage: Storage, folder: str) -> None:
    """Replace a half-written list of checkpoints by its backup; without a backup the run starts from the beginning."""
    try:
        storage.write_json(f"{folder}/{SNAPSHOT_BACKUP}", storage.read_json(f"{folder}/{SNAPSHOT}"))
    except FileNotFoundError:
        return
    except InputError:
        if storage.exists(f"{folder}/{SNAPSHOT_BACKUP}"):
            logger.warning("%s: the list of checkpoints is half-written; using the one before it", folder)
            storage.write_bytes(f"{folder}/{SNAPSHOT}", storage.read_bytes(f"{folder}/{SNAPSHOT_BACKUP}"))
        else:
            storage.delete(f"{folder}/{SNAPSHOT}")
