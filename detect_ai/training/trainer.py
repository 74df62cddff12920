"""The model of one rank while it learns: steps, evaluations, and all that a later run needs to go on from here."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from detect_ai import metrics
from detect_ai.core.config import TrainConfig
from detect_ai.core.errors import ResourceError, TrainingError
from detect_ai.models import encoder, flops
from detect_ai.models.backends.torch import autocast, log_odds, model_inputs, upload
from detect_ai.models.compiling import compiled
from detect_ai.text.windows import aggregate_windows
from detect_ai.training.data import Microbatch

_SHOWN = 20  # documents that a message names


class Learner:
    """The model of one rank, its optimizer and its schedule.

    Args:
        config: the training run.
        network: the model, wrapped for DDP when there are several ranks.
        device: where it runs.
        world_size: number of ranks.
        steps_per_epoch: on every rank.
        seed: of dropout, together with step and rank: a run that goes on from a checkpoint draws what it would have.
        rank: of this process.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: torch.nn.Module,
        device: torch.device,
        world_size: int,
        steps_per_epoch: int,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.config, self.device, self.world_size = config, device, world_size
        self.seed, self.rank = seed, rank
        self._ddp = network if isinstance(network, DistributedDataParallel) else None
        self.module = cast(PreTrainedModel, self._ddp.module if self._ddp else network)
        self._network = network
        self._forward = compiled(network, config.compiled_lengths) if config.compile else network
        self.dtype = encoder.autocast_dtype(config.precision, device)
        self.max_grad_norm = config.max_grad_norm
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = min(steps_per_epoch * config.epochs, config.max_steps or sys.maxsize)
        self.optimizer = make_optimizer(self.module, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.steps = 0
        self.settled = 0  # the last step whose figures are known: these
        self.last_loss = self.grad_norm = math.nan
        self._unsettled: _Launched | None = None
        self._flops = flops.Counter(self.module)
        self.epoch = Meter(device, self.dtype, world_size)  # since the epoch began
        self.lately = Meter(device, self.dtype, world_size)  # since the last line of the log

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.config.lr * lr_share(self.steps, self.total_steps, self.config.warmup, self.config.decay)

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was the last of an epoch, or of the run."""
        return self.steps % self.steps_per_epoch == 0 or self.steps == self.total_steps

    def step(self, microbatches: list[Microbatch]) -> None:
        """Forward and backward over this rank's microbatches of a step, then one update, the same on all ranks.

        A GPU may still be at work on it when this returns: the step before is waited for, so that there is always
        one in its queue while the next one's texts are fetched. `settle` waits for this one.

        Raises:
            TrainingError: on every rank alike, when the gradients of the step before are not finite.
        """
        for meter in (self.epoch, self.lately):
            meter.begin()
        self._network.train()
        torch.manual_seed(((self.seed * 1_000_003 + self.steps) * 65_536 + self.rank) % 2**63)
        lr = self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = self._gradients(microbatches)
        if self.config.adversarial:
            memory = self._memory_for(f"step {self.steps + 1}", microbatches[-1], self._smaller_steps())
            with memory, self._moved_embeddings():
                losses += self._gradients(microbatches)
        with self._memory_for(f"update of step {self.steps + 1}", microbatches[-1], self._smaller_steps()):
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
            scale = self._scale()
            self.scaler.step(self.optimizer)  # the first one takes twice the memory of the weights, for good
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        launched = _Launched.of(self.steps, lr, microbatches, torch.stack([*losses, norm, scale]))
        self.settle()
        self._unsettled = launched

    def settle(self) -> None:
        """Wait for the last step, count it, and see that its gradients were finite. Every rank must ask.

        Raises:
            TrainingError: on every rank alike, when they were not.
        """
        if self._unsettled is None:
            return
        step, self._unsettled = self._unsettled, None
        *losses, self.grad_norm, scale = step.read()
        self.settled = step.number
        first = losses[: len(step.microbatches)]  # those at the embeddings as they are
        self.last_loss = sum(first) / max(1.0, sum(float(part.weights.sum()) for part in step.microbatches))
        for part, loss in zip(step.microbatches, first, strict=True):
            self._count(part, loss)
        # A scaler skips a step whose gradients overflow, and lowers its scale until none does.
        if not math.isfinite(self.grad_norm) and not scale > 1:
            raise TrainingError(self._not_finite(step, losses))

    def _gradients(self, microbatches: list[Microbatch]) -> list[torch.Tensor]:
        return [self._backward(part, sync=part is microbatches[-1]) for part in microbatches]

    @contextmanager
    def _moved_embeddings(self) -> Iterator[None]:
        """Move the word embeddings up the gradient of the step, by `train.adversarial` in all, and back again.

        What is learnt there as well makes scores hang less on single words. Of Miyato, Dai and Goodfellow (2017),
        «Adversarial training methods for semi-supervised text classification», with one direction for a whole step:
        it is that of all ranks' gradients, so it does not depend on how a step is dealt. A gradient that overflowed
        has no direction, and moves nothing.
        """
        words = self.module.base_model.get_input_embeddings().weight  # type: ignore[operator]
        kept, gradient = words.detach().clone(), words.grad
        norm = torch.linalg.vector_norm(gradient)
        direction = torch.where(norm.isfinite() & (norm > 0), gradient / norm, 0.0)
        with torch.no_grad():
            words.add_(direction, alpha=self.config.adversarial)
        try:
            yield
        finally:
            with torch.no_grad():
                words.copy_(kept)

    def _backward(self, part: Microbatch, sync: bool) -> torch.Tensor:
        """Add the gradients of a microbatch. Returns the sum of its weighted losses, which may not be computed yet.

        DDP takes the mean of the ranks' gradients; scaled by the number of ranks over the weight of the whole step
        that mean is the gradient of the mean loss over all documents of the step, however they are dealt.
        """
        labels, weights = (upload(array, self.device) for array in (part.labels, part.weights))
        memory = self._memory_for(f"step {self.steps + 1}", part, self._smaller_steps())
        with memory, self._no_sync() if not sync else nullcontext():
            with autocast(self.device, self.dtype):
                logits = self._forward(**model_inputs(part.batch, self.device)).logits
            smoothing = self.config.label_smoothing
            each = cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
            loss = (each * weights).sum()
            self.scaler.scale(loss * (self.world_size / part.step_weight)).backward()
        return loss.detach()

    def _count(self, part: Microbatch, loss: float) -> None:
        lengths = part.batch.lengths[part.documents >= 0]
        size = part.batch.input_ids.size
        operations = self._flops.of_training(lengths) * (2 if self.config.adversarial else 1)
        for meter in (self.epoch, self.lately):
            meter.add([loss, part.weights.sum(), lengths.sum(), size, operations])

    def _scale(self) -> torch.Tensor:
        """That of the gradients, not read back; 1 without a scaler, whose scale does not exist before its first use."""
        scale = self.scaler._scale if self.scaler.is_enabled() else None
        return torch.ones((), device=self.device) if scale is None else scale.clone().reshape(())

    def _smaller_steps(self) -> str:
        return (
            f"lower train.microbatch_size ({self.config.microbatch_size}) or model.window, or set "
            "train.gradient_checkpointing=true"
        )

    @contextmanager
    def _memory_for(self, what: str, part: Microbatch, remedy: str) -> Iterator[None]:
        """Name the documents for which no memory is left, on this rank alone: Ray Train ends the others."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            rows, width = part.batch.input_ids.shape
            raise ResourceError(
                f"{what}: no memory left on {self.device} for {rows} rows of {width} tokens (documents "
                f"{_named(part.documents)}): {remedy}"
            ) from error

    def _no_sync(self) -> AbstractContextManager[None]:
        return self._ddp.no_sync() if self._ddp else nullcontext()

    def _not_finite(self, step: _Launched, losses: list[float]) -> str:
        passes = cycle(step.microbatches)  # train.adversarial makes two
        odd = [(loss, part.documents) for loss, part in zip(losses, passes, strict=False) if not math.isfinite(loss)]
        mine = (odd, [part.documents for part in step.microbatches])
        ranks = gather(mine, self.world_size)
        bad = [pair for found, _ in ranks for pair in found]
        what = f"the training loss is {bad[0][0]}" if bad else f"the gradient's norm is {self.grad_norm}"
        # Of finite losses whose gradient is not, no one tells which document it is of: all of the step are named.
        named = [documents for _, documents in bad] or [documents for _, every in ranks for documents in every]
        return (
            f"{what} at step {step.number} (learning rate {step.lr:.2e}, documents {_named(np.concatenate(named))} of "
            "the split train): lower train.lr, or train.precision=fp32"
        )

    def evaluate(self, stream: Iterable[Microbatch], labels: NDArray[np.int64]) -> dict[str, Any]:
        """Figures over every document of a split: the scores of all ranks are joined first, then judged.

        Raises:
            TrainingError: on every rank alike, when scores are not finite; or as `settle`.
        """
        self.settle()
        started = time.perf_counter()
        parts = gather(self._score(stream), self.world_size)
        documents, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        odd = documents[~np.isfinite(scores)]
        if len(odd):
            rate = self.optimizer.param_groups[0]["lr"]  # of the last step
            raise TrainingError(
                f"scores are not finite after step {self.steps} (learning rate {rate:.2e}, documents {_named(odd)} "
                "of the split validation): lower train.lr, or train.precision=fp32"
            )
        by_document = aggregate_windows(scores, documents, len(labels))
        probabilities = 1 / (1 + np.exp(-by_document))
        for meter in (self.epoch, self.lately):
            meter.pause(time.perf_counter() - started)
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
                remedy = f"lower train.microbatch_size ({self.config.microbatch_size}) or model.window"
                with self._memory_for(f"evaluation after step {self.steps}", part, remedy):
                    scores.append(log_odds(self.module(**model_inputs(part.batch, self.device)).logits))
                documents.append(part.documents)
        found = np.concatenate(documents)
        return found[found >= 0], torch.cat(scores).cpu().numpy()[found >= 0]

    def state(self) -> dict[str, Any]:
        """What a later run needs beside the weights; the same on all ranks, so every rank must ask.

        The schedule and the seeds of dropout follow from the step, the place in the corpus as well.

        Raises:
            TrainingError: as `settle`.
        """
        self.settle()
        return {
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch.state(),
            "lately": self.lately.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, at any number of ranks."""
        self.steps = state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch.restore(state["epoch"], first=self.rank == 0)
        self.lately.restore(state["lately"], first=self.rank == 0)


@dataclass(frozen=True)
class _Launched:
    """A step that a GPU may still be at work on.

    Its figures are the weighted losses of its microbatches, with `train.adversarial` once more those at the moved
    embeddings, its gradient's norm and the scale of that. They are on their way to the CPU when the step is launched:
    who reads them waits for this step, not for the next one.
    """

    number: int
    lr: float
    microbatches: list[Microbatch]
    figures: torch.Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, number: int, lr: float, microbatches: list[Microbatch], figures: torch.Tensor) -> _Launched:
        """Send the figures of a step on their way."""
        if not figures.is_cuda:
            return cls(number, lr, microbatches, figures, None)
        sent, arrived = figures.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        return cls(number, lr, microbatches, sent, arrived)

    def read(self) -> list[float]:
        """The figures, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        figures: list[float] = self.figures.tolist()
        return figures


class Meter:
    """Sums over the microbatches of a stretch of training; what it tells is reduced over the ranks before dividing."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None, ranks: int) -> None:
        self._device, self._ranks = device, ranks
        self._peak = flops.peak(device, dtype)
        self._sums = np.zeros(5)  # loss, weight, tokens, tokens and padding, floating point operations
        self._seconds = 0.0  # before the clock runs
        self._since = math.nan

    def begin(self) -> None:
        """Let the clock run, if it does not: what comes before the first step is start-up."""
        if math.isnan(self._since):
            self._since = time.perf_counter() - self._seconds

    def add(self, sums: list[float]) -> None:
        """Count a microbatch: the sum of its weighted losses, weight, tokens, tokens and padding, operations."""
        self._sums += sums

    def pause(self, seconds: float) -> None:
        """Leave out seconds that were not spent on training."""
        self._since += seconds

    def figures(self) -> dict[str, Any]:
        """Figures since the stretch began, which ends here. Every rank must ask."""
        loss, weight, tokens, padded, operations = total(self._sums, self._device, self._ranks)
        seconds = time.perf_counter() - self._since
        self._sums, self._since = np.zeros(5), time.perf_counter()
        mfu = {"mfu": operations / seconds / (self._peak * self._ranks)} if self._peak else {}
        return {
            "train_loss": loss / weight,
            "tokens_per_second": round(tokens / seconds),
            "padding": 1 - tokens / padded,
            "seconds": round(seconds, 2),  # of training: neither start-up nor evaluations
            **mfu,
        }

    def state(self) -> dict[str, Any]:
        """The sums of all ranks and the seconds so far. Every rank must ask."""
        sums = total(self._sums, self._device, self._ranks)
        return {"sums": sums, "seconds": time.perf_counter() - self._since}

    def restore(self, state: dict[str, Any], first: bool) -> None:
        """Go on from a state: the first rank takes the sums of all."""
        self._sums = np.asarray(state["sums"]) if first else np.zeros_like(self._sums)
        self._seconds = state["seconds"]


def gather(value: Any, ranks: int) -> list[Any]:
    """The values of all ranks, in the order of the ranks."""
    if ranks == 1:
        return [value]
    values: list[Any] = [None] * ranks
    distributed.all_gather_object(values, value)
    return values


def total(sums: NDArray[np.float64], device: torch.device, ranks: int) -> list[float]:
    """The sums over all ranks."""
    if ranks == 1:
        return [float(value) for value in sums]
    tensor = torch.from_numpy(sums.copy()).to(device)
    distributed.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


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


def _named(documents: NDArray[np.int64]) -> str:
    found = sorted({int(document) for document in documents if document >= 0})
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(map(str, found[:_SHOWN])) + more
