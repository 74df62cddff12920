"""The trainer of one rank: model, optimizer, schedule, evaluation and the state that a checkpoint holds.

`detect_ai.training.worker` has the training loop that drives it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from detect_ai import metrics
from detect_ai.core.config import TrainConfig
from detect_ai.core.errors import ResourceError, TrainingError
from detect_ai.models import encoder, flops
from detect_ai.models.backends.torch import autocast, log_odds, model_inputs, upload
from detect_ai.text.windows import aggregate_windows
from detect_ai.training.batch_plan import Microbatch
from detect_ai.training.throughput import Meter, gather

MAX_GRAD_NORM = 1.0
_MAX_NAMED = 20  # documents in an error message


class Trainer:
    """The model of one rank, its optimizer and its schedule.

    Args:
        config: the training run.
        network: the model, wrapped for DDP when there are several ranks.
        device: where it runs.
        world_size: number of ranks.
        steps_per_epoch: on every rank.
        seed: of dropout, together with step and rank: a resumed run draws what the interrupted one would have.
        rank: of this process.

    Attributes:
        steps: optimizer steps so far.
        last_loss: mean loss of this rank's part of the last synchronized step.
        grad_norm: of the last synchronized step, before clipping.
        synchronized_steps: number of the last synchronized step, the one that these values belong to.
        epoch: metrics since the epoch began.
        since_log: metrics since the last line of the log.
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
        self._forward = torch.compile(network, dynamic=True) if config.compile else network
        self.dtype = encoder.autocast_dtype(config.precision, device)
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = min(steps_per_epoch * config.epochs, config.max_steps or sys.maxsize)
        self.optimizer = make_optimizer(self.module, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.steps = 0
        self.synchronized_steps = 0
        self.last_loss = self.grad_norm = math.nan
        self._pending: _PendingStep | None = None
        self._flops = flops.Counter(self.module)
        self.epoch = Meter(device, self.dtype, world_size)
        self.since_log = Meter(device, self.dtype, world_size)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.config.lr * lr_factor(self.steps, self.total_steps, self.config.warmup)

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was the last of an epoch, or of the run."""
        return self.steps % self.steps_per_epoch == 0 or self.steps == self.total_steps

    def begin_step(self) -> None:
        """Start the clocks, seed dropout and set the learning rate."""
        for meter in (self.epoch, self.since_log):
            meter.start()
        self._network.train()
        torch.manual_seed(((self.seed * 1_000_003 + self.steps) * 65_536 + self.rank) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def backward(self, part: Microbatch, sync: bool) -> torch.Tensor:
        """Add the gradients of a microbatch, and with `sync` average the sums over the ranks.

        DDP takes the mean of the ranks' gradients; scaled by the number of ranks over the weight of the whole step
        that mean is the gradient of the mean loss over all documents of the step, however they are dealt.

        Returns:
            The sum of the weighted losses. A GPU may not have computed it yet.
        """
        labels, weights = (upload(array, self.device) for array in (part.labels, part.weights))
        no_sync = self._ddp.no_sync() if self._ddp and not sync else nullcontext()
        with self._out_of_memory_named(f"step {self.steps + 1}", part), no_sync:
            with autocast(self.device, self.dtype):
                logits = self._forward(**model_inputs(part.batch, self.device)).logits
            losses = cross_entropy(logits.float(), labels, reduction="none")
            loss = (losses * weights).sum()
            self.scaler.scale(loss * (self.world_size / part.step_weight)).backward()
        return loss.detach()

    def update(self, microbatches: list[Microbatch], losses: list[torch.Tensor]) -> None:
        """Clip the gradients and apply them, the same on all ranks.

        A GPU may still be at work on the step when this returns. The step before is waited for, so that there is
        always one in its queue while the next one's texts are fetched. `synchronize` waits for this one.

        Args:
            microbatches: of this rank.
            losses: what `backward` returned for them, with `train.adversarial` twice for each.

        Raises:
            TrainingError: on every rank alike, when the gradients of the step before are not finite.
        """
        with self._out_of_memory_named(f"update of step {self.steps + 1}", microbatches[-1]):
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), MAX_GRAD_NORM)
            # Not read back here. The scale of a scaler does not exist before its first use.
            scale = self.scaler._scale if self.scaler.is_enabled() else None
            scale = torch.ones_like(norm) if scale is None else scale.clone().reshape(())
            self.scaler.step(self.optimizer)  # the first one takes twice the memory of the weights, permanently
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        lr = self.optimizer.param_groups[0]["lr"]
        self.steps += 1
        pending = _PendingStep.launch(self.steps, lr, microbatches, torch.stack([*losses, norm, scale]))
        self.synchronize()
        self._pending = pending

    def synchronize(self) -> None:
        """Wait for the last step, add it to the metrics and check its gradients. Every rank must call this.

        Raises:
            TrainingError: on every rank alike, when they are not finite.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        *losses, self.grad_norm, scale = step.wait()
        self.synchronized_steps = step.number
        first_pass = losses[: len(step.microbatches)]  # those at the embeddings as they are
        weight = sum(float(part.weights.sum()) for part in step.microbatches)
        self.last_loss = sum(first_pass) / weight if weight else math.nan
        for part, loss in zip(step.microbatches, first_pass, strict=True):
            lengths = part.batch.lengths[part.documents >= 0]
            operations = self._flops.of_training(lengths) * (2 if self.config.adversarial else 1)
            for meter in (self.epoch, self.since_log):
                meter.add([loss, part.weights.sum(), lengths.sum(), part.batch.input_ids.size, operations])
        # A scaler skips a step whose gradients overflow, and lowers its scale until none does.
        if not math.isfinite(self.grad_norm) and not scale > 1:
            raise TrainingError(self._non_finite_message(step, losses))

    def evaluate(self, stream: Iterable[Microbatch], labels: NDArray[np.int64]) -> dict[str, Any]:
        """Metrics over every document of a split: the scores of all ranks are joined before they are computed.

        Raises:
            TrainingError: on every rank alike, when scores are not finite; or as `synchronize`.
        """
        self.synchronize()
        started = time.perf_counter()
        parts = gather(self._score(stream), self.world_size)
        documents, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        bad = documents[~np.isfinite(scores)]
        if len(bad):
            rate = self.optimizer.param_groups[0]["lr"]  # of the last step
            raise TrainingError(
                f"scores are not finite after step {self.steps} (learning rate {rate:.2e}, documents {_named(bad)} "
                "of the split validation): lower train.lr, or set train.precision=fp32"
            )
        by_document = aggregate_windows(scores, documents, len(labels))
        probabilities = 1 / (1 + np.exp(-by_document))
        for meter in (self.epoch, self.since_log):
            meter.exclude(time.perf_counter() - started)
        return {
            "auroc": metrics.auroc(labels, by_document),
            "val_loss": float(metrics.log_losses(labels, probabilities).mean()),
            "accuracy": float((labels == (probabilities >= 0.5)).mean()),
        }

    def _score(self, stream: Iterable[Microbatch]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        self.module.eval()
        owners, scores = [], []
        with torch.inference_mode(), autocast(self.device, self.dtype):
            for part in stream:
                with self._out_of_memory_named(f"evaluation after step {self.steps}", part):
                    scores.append(log_odds(self.module(**model_inputs(part.batch, self.device)).logits))
                owners.append(part.documents)
        documents = np.concatenate(owners)
        return documents[documents >= 0], torch.cat(scores).cpu().numpy()[documents >= 0]

    def state(self) -> dict[str, Any]:
        """Training state without the weights, for a resumed run; equal on all ranks, so every rank must call this.

        The schedule, the seeds of dropout and the place in the corpus follow from the step.

        Raises:
            TrainingError: as `synchronize`.
        """
        self.synchronize()
        return {
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch.state(),
            "since_log": self.since_log.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state, at any number of ranks."""
        self.steps = state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch.load_state(state["epoch"], self.rank)
        self.since_log.load_state(state["since_log"], self.rank)

    @contextmanager
    def _out_of_memory_named(self, what: str, part: Microbatch) -> Iterator[None]:
        """Name the documents for which no memory is left, on this rank alone: Ray Train ends the others."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            rows, width = part.batch.input_ids.shape
            raise ResourceError(
                f"{what}: no memory left on {self.device} for {rows} rows of {width} tokens (documents "
                f"{_named(part.documents)}): lower train.microbatch_size ({self.config.microbatch_size}) or "
                "model.window"
            ) from error

    def _non_finite_message(self, step: _PendingStep, losses: list[float]) -> str:
        passes = cycle(step.microbatches)  # train.adversarial makes two
        local_bad = [(loss, p.documents) for loss, p in zip(losses, passes, strict=False) if not math.isfinite(loss)]
        ranks = gather((local_bad, [part.documents for part in step.microbatches]), self.world_size)
        bad = [pair for of_rank, _ in ranks for pair in of_rank]
        what = f"the training loss is {bad[0][0]}" if bad else f"the gradient's norm is {self.grad_norm}"
        # Where the losses are finite and the gradient is not, no single document is known: all of the step are named.
        named = [documents for _, documents in bad] or [documents for _, all_ in ranks for documents in all_]
        return (
            f"{what} at step {step.number} (learning rate {step.lr:.2e}, documents {_named(np.concatenate(named))} of "
            "the split train): lower train.lr, or set train.precision=fp32"
        )


@dataclass(frozen=True)
class _PendingStep:
    """A step that a GPU may still be at work on.

    Its values are the weighted losses of its microbatches (with `train.adversarial` also those at the moved
    embeddings), the gradient norm and the loss scale. Their copy to the CPU is queued when the step is launched:
    whoever reads them waits for this step, not for the next one.
    """

    number: int
    lr: float
    microbatches: list[Microbatch]
    values: torch.Tensor
    copied: torch.cuda.Event | None

    @classmethod
    def launch(cls, number: int, lr: float, microbatches: list[Microbatch], values: torch.Tensor) -> _PendingStep:
        """Queue the copy of a step's values to the CPU."""
        if not values.is_cuda:
            return cls(number, lr, microbatches, values, None)
        copy, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()
        copied.record()
        return cls(number, lr, microbatches, copy, copied)

    def wait(self) -> list[float]:
        """The values, once they have been copied."""
        if self.copied is not None:
            self.copied.synchronize()
        values: list[float] = self.values.tolist()
        return values


def make_optimizer(network: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW without weight decay of biases and norms."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def lr_factor(step: int, total: int, warmup: float) -> float:
    """The fraction of the peak learning rate at a step: linear warm-up, then linear decay towards 0."""
    warm = max(1, round(total * warmup)) if warmup else 0
    if step < warm:
        return (step + 1) / warm
    return 1 - min(1.0, (step - warm) / max(1, total - warm))


def _named(documents: NDArray[np.int64]) -> str:
    numbers = sorted({int(document) for document in documents if document >= 0})
    more = f" and {len(numbers) - _MAX_NAMED} more" if len(numbers) > _MAX_NAMED else ""
    return ", ".join(map(str, numbers[:_MAX_NAMED])) + more
