"""What every rank of a training run does: steps over the stream, an evaluation and a checkpoint after every epoch."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from detect_ai import metrics, model
from detect_ai.backends.torch import autocast, log_odds, model_inputs
from detect_ai.config import Config, TrainConfig
from detect_ai.errors import TrainingError
from detect_ai.progress import Progress
from detect_ai.streaming import Microbatch, microbatch
from detect_ai.tracking import Tracker, resolve_mode
from detect_ai.windows import document_scores


def train_loop(arguments: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker.

    Args:
        arguments: `config`, `steps_per_epoch`, `validation_labels` (one for each document, in order), `corpus` (its
            fingerprint), `name`, `group` and `bar`.
    """
    import ray.train
    import ray.train.torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config: Config = arguments["config"]
    rank, world_size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    torch.set_num_threads(config.train.threads_per_worker)
    network = ray.train.torch.prepare_model(model.build(config.model, config.seed))
    torch.manual_seed(config.seed * 1000 + rank)  # dropout differs between the ranks
    steps_per_epoch = arguments["steps_per_epoch"]
    learner = Learner(config.train, network, ray.train.torch.get_device(), world_size, steps_per_epoch)
    validation = ray.train.get_dataset_shard("validation")
    history: list[dict[str, Any]] = []
    with _tracker(arguments, rank) as tracker, _progress(arguments, rank, learner.total_steps) as progress:
        for step in _steps(read(ray.train.get_dataset_shard("train"))):
            learner.step(step)
            progress.step(f"loss of rank 0 {learner.last_loss:.3f} lr {learner.lr:.1e}")
            if learner.steps % steps_per_epoch:
                continue
            figures = learner.epoch_figures() | learner.evaluate(read(validation), arguments["validation_labels"])
            figures["epoch"] = learner.steps // steps_per_epoch
            history.append(figures)
            tracker.log(figures, learner.steps)
            _report(history, learner.module if rank == 0 else None)


class Learner:
    """The model of one rank, its optimizer and its schedule.

    Args:
        config: the training run.
        network: the model, wrapped for DDP when there are several ranks.
        device: where it runs.
        world_size: number of ranks.
        steps_per_epoch: on every rank.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: torch.nn.Module,
        device: torch.device,
        world_size: int,
        steps_per_epoch: int,
    ) -> None:
        self.network, self.device, self.world_size = network, device, world_size
        wrapped = network.module if isinstance(network, DistributedDataParallel) else network
        self.module = cast(PreTrainedModel, wrapped)
        self.dtype = model.autocast_dtype(config.precision, device)
        self.peak_lr, self.max_grad_norm = config.lr, config.max_grad_norm
        self.total_steps = steps_per_epoch * config.epochs
        self.optimizer = make_optimizer(self.module, config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_share(step, self.total_steps, config.warmup, config.decay)
        )
        self.steps = 0
        self.last_loss = math.nan
        self._reset()

    def step(self, microbatches: list[Microbatch]) -> None:
        """Forward and backward over this rank's microbatches of a step, then one update, the same on all ranks."""
        self.network.train()
        losses = [self._backward(part, sync=part is microbatches[-1]) for part in microbatches]
        self.last_loss = float(sum(losses)) / max(1.0, sum(float(part.weights.sum()) for part in microbatches))
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def _backward(self, part: Microbatch, sync: bool) -> torch.Tensor:
        """Add the gradients of a microbatch. Returns the sum of its weighted losses.

        DDP takes the mean of the ranks' gradients; scaled by the number of ranks over the weight of the whole step
        that mean is the gradient of the mean loss over all documents of the step, however they are dealt.
        """
        weights = torch.from_numpy(part.weights.copy()).to(self.device)
        labels = torch.from_numpy(part.labels.copy()).to(self.device)
        network = self.network
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not sync else nullcontext():
            with autocast(self.device, self.dtype):
                logits = network(**model_inputs(part.batch, self.device)).logits
            loss = (cross_entropy(logits.float(), labels, reduction="none") * weights).sum()
            (loss * (self.world_size / part.step_weight)).backward()
        used = int(part.batch.lengths[part.documents >= 0].sum())
        loss = loss.detach()
        self._sums += np.asarray([float(loss), part.weights.sum(), used, part.batch.input_ids.size])
        return loss

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def epoch_figures(self) -> dict[str, Any]:
        """Figures since the last call, summed over all ranks before dividing."""
        sums = torch.from_numpy(self._sums).to(self.device)
        distributed.all_reduce(sums)
        loss, weight, used, padded = sums.tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the training loss is {loss} by step {self.steps} (lr {self.peak_lr:.2e}): lower train.lr, "
                f"or train in fp32"
            )
        seconds = time.perf_counter() - self._since
        self._reset()
        return {
            "train_loss": loss / weight,
            "tokens_per_second": round(used / seconds),
            "padding": 1 - used / padded,
            "step": self.steps,
            "lr": self.lr,
        }

    def _reset(self) -> None:
        self._sums = np.zeros(4)
        self._since = time.perf_counter()

    def evaluate(self, stream: Iterable[Microbatch], labels: NDArray[np.int64]) -> dict[str, Any]:
        """Figures over every document of a split: the scores of all ranks are joined first, then judged."""
        documents, scores = self._score(stream)
        pairs: list[Any] = [None] * self.world_size
        distributed.all_gather_object(pairs, (documents, scores))
        documents, scores = (np.concatenate(part) for part in zip(*pairs, strict=True))
        by_document = document_scores(scores, documents, len(labels))
        probabilities = 1 / (1 + np.exp(-by_document))
        self._since = time.perf_counter()
        return {
            "auroc": metrics.auroc(labels, by_document),
            "val_loss": metrics.log_loss(labels, probabilities),
            "accuracy": metrics.accuracy(labels, probabilities >= 0.5),
        }

    def _score(self, stream: Iterable[Microbatch]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        self.module.eval()
        documents, scores = [], []
        with torch.inference_mode(), autocast(self.device, self.dtype):
            for part in stream:
                logits = self.module(**model_inputs(part.batch, self.device)).logits
                real = part.documents >= 0
                documents.append(part.documents[real])
                scores.append(log_odds(logits).cpu().numpy()[real])
        return np.concatenate(documents), np.concatenate(scores)


def make_optimizer(network: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; biases and norms do not decay."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def lr_share(step: int, total: int, warmup: float, decay: str) -> float:
    """The share of the peak learning rate at a step: linear warm-up, then linear or cosine decay towards 0."""
    warm = max(1, round(total * warmup)) if warmup else 0
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, total - warm))
    return 1 - done if decay == "linear" else (1 + math.cos(math.pi * done)) / 2


def read(shard: Any) -> Iterator[Microbatch]:
    """The microbatches that Ray Data hands to this rank, the next one fetched while the model runs."""
    rows = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    return map(microbatch, rows)


def _steps(stream: Iterable[Microbatch]) -> Iterator[list[Microbatch]]:
    step: list[Microbatch] = []
    for part in stream:
        step.append(part)
        if part.last:
            yield step
            step = []
    assert not step, "the stream ended within a step"


def _report(history: list[dict[str, Any]], module: PreTrainedModel | None) -> None:
    """Report the figures of the last epoch; rank 0 gives the checkpoint with them (alone they would be dropped).

    The epochs before go with them: Ray Train forgets the figures of a checkpoint that it deletes.
    """
    import ray.train

    figures = {**history[-1], "history": list(history)}
    if module is None:
        ray.train.report(figures)
        return
    with tempfile.TemporaryDirectory() as folder:
        model.save(module, Path(folder))
        (Path(folder) / "figures.json").write_text(json.dumps(history[-1]))
        ray.train.report(figures, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _tracker(arguments: dict[str, Any], rank: int) -> Tracker:
    config: Config = arguments["config"]
    local = "://" not in config.storage.root
    root = Path(config.storage.root if local else "~/.cache/detect_ai").expanduser()
    return Tracker(
        resolve_mode(config.tracking.mode) if rank == 0 else "disabled",
        folder=root,
        # The trials of a sweep run beside each other: none may delete the folder of another.
        keep=config.storage.keep * (max(config.sweep.trials, len(config.sweep.lrs)) if arguments["group"] else 1),
        project=config.tracking.project,
        group=arguments["group"],
        name=arguments["name"],
        config=config.to_dict() | {"corpus_fingerprint": arguments["corpus"]},
    )


def _progress(arguments: dict[str, Any], rank: int, total: int) -> Progress:
    """Rank 0 tells; of the others nothing is heard."""
    every = arguments["config"].train.log_every if rank == 0 else total + 1
    return Progress(arguments["name"], total, arguments["bar"] and rank == 0, every)
