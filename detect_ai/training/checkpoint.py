"""Full checkpoints of a training run: the model as a bundle has it, and beside it what a later run needs to go on.

`config.json` and `model.safetensors` are the model; `figures.json` holds the last evaluation; `history.json` all of
them; `optimizer.safetensors` and `state.json` the optimizer, its scaler, the step and the sums.
Ray Train registers a checkpoint when it lies in the storage as a whole: a half-written one is never gone on from.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file

from detect_ai.models import encoder
from detect_ai.training.runlog import UNKNOWN
from detect_ai.training.trainer import Learner


def report(learner: Learner, history: list[dict[str, Any]]) -> None:
    """Hand Ray Train a checkpoint of the last step; every rank must, rank 0 writes it.

    The figures are those of the evaluation at this step, if there was one: a checkpoint without is never the best.
    All evaluations go with it, for Ray Train forgets the figures of a checkpoint that it deletes.
    """
    import ray.train

    state = learner.state()
    evaluated = bool(history) and history[-1]["step"] == learner.steps
    figures = history[-1] if evaluated else {"auroc": UNKNOWN, "step": learner.steps}
    figures = {**figures, "rank": rank(figures), "history": list(history)}
    if learner.rank:
        ray.train.report(figures)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder.save(learner.module, folder)
        write_state(state, folder)
        (folder / "history.json").write_text(json.dumps(history))
        if evaluated:
            (folder / "figures.json").write_text(json.dumps(history[-1]))
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(name))


def rank(figures: dict[str, Any]) -> float:
    """What Ray Train keeps the highest of: AUROC, and of equals the lowest loss, which moves it by next to nothing."""
    return float(figures["auroc"] - 1e-12 * figures.get("val_loss", 0.0))


def restore(learner: Learner) -> list[dict[str, Any]]:
    """Go on from the run's last checkpoint, where there is one. Returns the evaluations so far."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as name:
        folder = Path(name)
        load_model(learner.module, folder / "model.safetensors", device=str(learner.device))
        learner.restore(read_state(folder))
        history: list[dict[str, Any]] = json.loads((folder / "history.json").read_text())
    return history


def write_state(state: dict[str, Any], folder: Path) -> None:
    """Write what `Learner.state` gave: tensors of the optimizer, and all else as JSON."""
    optimizer = state["optimizer"]
    tensors = {f"{i}.{name}": value for i, held in optimizer["state"].items() for name, value in held.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "optimizer.safetensors")
    rest = {**state, "optimizer": optimizer["param_groups"]}
    (folder / "state.json").write_text(json.dumps(rest))


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    held: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        number, _, name = key.partition(".")
        held.setdefault(int(number), {})[name] = value
    return {**state, "optimizer": {"state": held, "param_groups": state["optimizer"]}}
