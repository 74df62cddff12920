"""Throughput and loss of an interval of training, and the collective operations that sum them over the ranks."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from detect_ai.models import flops


class Meter:
    """Sums over the microbatches of an interval of training; metrics are reduced over the ranks before dividing."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None, world_size: int) -> None:
        self._device, self._world_size = device, world_size
        self._peak = flops.peak(device, dtype)
        self._sums = np.zeros(5)  # loss, weight, tokens, tokens and padding, floating point operations
        self._seconds = 0.0  # before the clock runs
        self._since = math.nan

    def start(self) -> None:
        """Start the clock unless it runs: what comes before the first step is start-up."""
        if math.isnan(self._since):
            self._since = time.perf_counter() - self._seconds

    def add(self, sums: list[float]) -> None:
        """Count a microbatch: the sum of its weighted losses, weight, tokens, tokens and padding, operations."""
        self._sums += sums

    def exclude(self, seconds: float) -> None:
        """Leave out seconds that were not spent on training."""
        self._since += seconds

    def metrics(self) -> dict[str, Any]:
        """Metrics since the stretch began, and begin a new one. Every rank must call this."""
        loss, weight, tokens, padded, operations = sum_over_ranks(self._sums, self._device, self._world_size)
        seconds = time.perf_counter() - self._since
        self._sums, self._since = np.zeros(5), time.perf_counter()
        mfu = {"mfu": operations / seconds / (self._peak * self._world_size)} if self._peak else {}
        return {
            "train_loss": loss / weight,
            "tokens_per_second": round(tokens / seconds),
            "padding": 1 - tokens / padded,
            "seconds": round(seconds, 2),  # of training: neither start-up nor evaluations
            **mfu,
        }

    def state(self) -> dict[str, Any]:
        """The sums of all ranks and the seconds so far. Every rank must call this."""
        sums = sum_over_ranks(self._sums, self._device, self._world_size)
        return {"sums": sums, "seconds": time.perf_counter() - self._since}

    def load_state(self, state: dict[str, Any], rank: int) -> None:
        """Continue from a state: rank 0 takes the sums of all ranks."""
        self._sums = np.asarray(state["sums"]) if rank == 0 else np.zeros_like(self._sums)
        self._seconds = state["seconds"]


def gather(value: Any, world_size: int) -> list[Any]:
    """The values of all ranks, in the order of the ranks."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    distributed.all_gather_object(values, value)
    return values


def sum_over_ranks(sums: NDArray[np.float64], device: torch.device, world_size: int) -> list[float]:
    """The elementwise sums over all ranks."""
    if world_size == 1:
        return [float(value) for value in sums]
    tensor = torch.from_numpy(sums.copy()).to(device)
    distributed.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]
