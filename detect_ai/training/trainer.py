"""The trainer of one rank: model, optimizer, schedule, evaluation and checkpoint state.

The training loop that calls it is in `detect_ai.training.worker`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
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
from detect_ai.models import encoder
from detect_ai.models.backends.torch import autocast, log_odds, model_inputs, upload
from detect_ai.models.batch import Batch
from detect_ai.text.windows import aggregate_windows
from detect_ai.training.batch_plan import Microbatch
from detect_ai.training.throughput import Meter

MAX_GRAD_NORM = 1.0
MEMORY_FRACTION = 0.7  # of a GPU's free memory, for a microbatch: the rest allows for fragments and temporary tensors


class Trainer:
    """The model of one rank, its optimizer and its schedule.

    `network` is wrapped for DDP if there are several ranks. Dropout is seeded by `seed`, step and rank, so a resumed
    run draws the same masks as an uninterrupted one.
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
        parameters = list(self.module.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},  # biases and norms
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        self.max_tokens = 0  # padded tokens up to which the microbatches of a step are joined (`fit_memory`)
        self.steps = 0  # so far
        self.grad_norm = math.nan  # of the last synchronized step, before clipping
        self._pending: tuple[list[Microbatch], torch.Tensor, torch.cuda.Event | None] | None = None
        # Metrics since the epoch began, and since the last log line.
        self.epoch, self.since_log = Meter(device, world_size), Meter(device, world_size)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.config.lr * lr_factor(self.steps, self.total_steps, self.config.warmup)

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was the last of an epoch, or of the run."""
        return self.steps % self.steps_per_epoch == 0 or self.steps == self.total_steps

    @property
    def pad_id(self) -> int:
        """The token id of padding."""
        config: Any = self.module.base_model.config
        return int(config.pad_token_id or 0)

    def fit_memory(self, window: int) -> None:
        """Let large microbatches use the free memory of a GPU. On a CPU small ones are as fast.

        A microbatch of `window` tokens in every row is computed without an update, to measure its memory.
        """
        if self.device.type != "cuda":
            return
        rows = self.config.microbatch_size
        batch = Batch(np.full((rows, window), self.pad_id, np.int32), np.full(rows, window, np.int32))
        zeros = np.zeros(rows, np.int64)
        self._network.train()  # with dropout, whose masks take memory
        torch.cuda.reset_peak_memory_stats(self.device)
        self.backward(Microbatch(batch, zeros, zeros.astype(np.float32), zeros, 1.0, 0, True), sync=False)
        kept = torch.cuda.memory_allocated(self.device)  # with gradients
        used = torch.cuda.max_memory_allocated(self.device) - kept
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - kept
        # The first update allocates two moments for every parameter.
        moments = 0 if self.optimizer.state else 2 * sum(4 * p.numel() for p in self.module.parameters())
        self.max_tokens = tokens_that_fit(used, rows * window, free - moments)
        self.optimizer.zero_grad(set_to_none=True)

    def begin_step(self) -> None:
        """Start the clocks, seed dropout and set the learning rate."""
        for meter in (self.epoch, self.since_log):
            meter.start()
        self._network.train()
        torch.manual_seed(((self.seed * 1_000_003 + self.steps) * 65_536 + self.rank) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def backward(self, part: Microbatch, sync: bool) -> torch.Tensor:
        """Accumulate the gradients of a microbatch, and with `sync` average the sums over the ranks.

        DDP averages the gradients of the ranks. The loss is scaled by the number of ranks over the weight of the whole
        step, so the result is the gradient of the mean loss over all documents of the step, however they are
        distributed. Returns the sum of the weighted losses, which a GPU may not have computed yet.
        """
        labels, weights = (upload(array, self.device) for array in (part.labels, part.weights))
        no_sync = self._ddp.no_sync() if self._ddp and not sync else nullcontext()
        with self._out_of_memory_explained(f"step {self.steps + 1}", part), no_sync:
            with autocast(self.device, self.dtype):
                logits = self._forward(**model_inputs(part.batch, self.device)).logits
            losses = cross_entropy(logits.float(), labels, reduction="none")
            loss = (losses * weights).sum()
            (loss * (self.world_size / part.step_weight)).backward()
        return loss.detach()

    def update(self, microbatches: list[Microbatch], losses: list[torch.Tensor]) -> None:
        """Clip the gradients and apply them, the same on all ranks; `losses` are the return values of `backward`.

        A GPU may still compute the step when this returns. This waits for the previous step, so that one step is always
        queued while the texts of the next one are fetched. `synchronize` waits for the current step.

        Raises TrainingError on every rank if the gradients of the previous step are not finite.
        """
        with self._out_of_memory_explained(f"update of step {self.steps + 1}", microbatches[-1]):
            norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()  # the first step allocates twice the memory of the weights, permanently
        self.optimizer.zero_grad(set_to_none=True)
        values, copied = torch.stack([*losses, norm]), torch.cuda.Event() if self.device.type == "cuda" else None
        if copied is not None:  # reading the copy waits for this step, not for the next one
            values = values.to("cpu", non_blocking=True)
            copied.record()
        self.synchronize()
        self.steps += 1
        self._pending = microbatches, values, copied

    def synchronize(self) -> None:
        """Wait for the last step, add it to the metrics and check its gradients. Every rank must call this.

        Raises TrainingError on every rank if the gradients are not finite.
        """
        if self._pending is None:
            return
        (microbatches, values, copied), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        *losses, self.grad_norm = values.tolist()
        for part, loss in zip(microbatches, losses, strict=True):
            tokens = part.batch.lengths[part.documents >= 0].sum()
            for meter in (self.epoch, self.since_log):
                meter.add([loss, part.weights.sum(), tokens, part.batch.input_ids.size])
        if not math.isfinite(self.grad_norm):
            raise self._diverged(f"the gradient norm is {self.grad_norm} at step {self.steps}")

    def evaluate(self, stream: Iterable[Microbatch], labels: NDArray[np.int64]) -> dict[str, Any]:
        """Metrics over every document of a split, computed from the gathered scores of all ranks.

        Raises TrainingError on every rank if scores are not finite, and as `synchronize`.
        """
        self.synchronize()
        started = time.perf_counter()
        self.module.eval()
        owners, odds = [], []
        with torch.inference_mode(), autocast(self.device, self.dtype):
            for part in stream:
                with self._out_of_memory_explained(f"evaluation after step {self.steps}", part):
                    odds.append(log_odds(self.module(**model_inputs(part.batch, self.device)).logits))
                owners.append(part.documents)
        ranks: list[Any] = [(np.concatenate(owners), torch.cat(odds).cpu().numpy())] * self.world_size
        if self.world_size > 1:
            distributed.all_gather_object(ranks, ranks[0])
        documents, scores = (np.concatenate(parts) for parts in zip(*ranks, strict=True))
        documents, scores = documents[documents >= 0], scores[documents >= 0]
        if not np.isfinite(scores).all():
            raise self._diverged(f"scores are not finite after step {self.steps}")
        by_document = aggregate_windows(scores, documents, len(labels))
        probabilities = 1 / (1 + np.exp(-by_document))
        for meter in (self.epoch, self.since_log):
            meter.exclude(time.perf_counter() - started)
        return {
            "auroc": metrics.auroc(labels, by_document),
            "val_loss": float(metrics.log_losses(labels, probabilities).mean()),
            "accuracy": float((labels == (probabilities >= 0.5)).mean()),
        }

    def state(self) -> dict[str, Any]:
        """Training state without the weights, to resume a run. It is equal on all ranks; every rank must call this.

        The schedule, dropout seeds and the position in the corpus follow from the step. Raises as `synchronize`.
        """
        self.synchronize()
        return {
            "steps": self.steps,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch.state(),
            "since_log": self.since_log.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state, with any number of ranks."""
        self.steps = state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch.load_state(state["epoch"], self.rank)
        self.since_log.load_state(state["since_log"], self.rank)

    def _diverged(self, what: str) -> TrainingError:
        rate = self.config.lr * lr_factor(self.steps - 1, self.total_steps, self.config.warmup)
        return TrainingError(f"{what} (learning rate {rate:.2e}): lower train.lr, or set train.precision=fp32")

    @contextmanager
    def _out_of_memory_explained(self, what: str, part: Microbatch) -> Iterator[None]:
        """Raise ResourceError that names the batch if memory runs out on this rank; Ray Train ends the others."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            rows, width = part.batch.input_ids.shape
            raise ResourceError(
                f"{what}: no memory left on {self.device} for {rows} rows of {width} tokens: lower "
                f"train.microbatch_size ({self.config.microbatch_size}) or model.window"
            ) from error


def tokens_that_fit(used: int, tokens: int, free: int) -> int:
    """Tokens of a microbatch that need `MEMORY_FRACTION` of the free bytes, if these `tokens` have used some bytes."""
    return max(0, int(MEMORY_FRACTION * free / max(1, used) * tokens))


def lr_factor(step: int, total: int, warmup: float) -> float:
    """The fraction of the peak learning rate at a step: linear warm-up, then linear decay to 0."""
    warm = max(1, round(total * warmup)) if warmup else 0
    if step < warm:
        return (step + 1) / warm
    return 1 - min(1.0, (step - warm) / max(1, total - warm))
