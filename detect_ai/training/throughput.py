"""Throughput and loss of a training interval, summed over the ranks."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from torch import distributed


class Meter:
    """Sums over the microbatches of a training interval; they are reduced over the ranks before dividing."""

    def __init__(self, device: torch.device, world_size: int) -> None:
        self._device, self._world_size = device, world_size
        self._sums = np.zeros(4)  # loss, weight, tokens, tokens and padding
        self._seconds = 0.0  # elapsed before the clock started
        self._since = math.nan

    def start(self) -> None:
        """Start the clock unless it runs: the time before the first step is start-up."""
        if math.isnan(self._since):
            self._since = time.perf_counter() - self._seconds

    def add(self, sums: list[float]) -> None:
        """Add a microbatch: the sum of its weighted losses, weight, tokens, and tokens with padding."""
        self._sums += sums

    def exclude(self, seconds: float) -> None:
        """Exclude seconds that were not spent on training."""
        self._since += seconds

    def metrics(self) -> dict[str, Any]:
        """Metrics of the interval; ends it and starts the next one. Every rank must call this."""
        loss, weight, tokens, padded = self._sums_over_ranks()
        seconds = time.perf_counter() - self._since
        self._sums, self._since = np.zeros(4), time.perf_counter()
        return {
            "train_loss": loss / weight,
            "tokens_per_second": round(tokens / seconds),
            "padding": 1 - tokens / padded,
            "seconds": round(seconds, 2),  # of training: neither start-up nor evaluations
        }

    def state(self) -> dict[str, Any]:
        """The sums of all ranks and the seconds so far. Every rank must call this."""
        return {"sums": self._sums_over_ranks(), "seconds": time.perf_counter() - self._since}

    def load_state(self, state: dict[str, Any], rank: int) -> None:
        """Continue from a state: rank 0 takes the sums of all ranks."""
        self._sums = np.asarray(state["sums"]) if rank == 0 else np.zeros(4)
        self._seconds = state["seconds"]

    def _sums_over_ranks(self) -> list[float]:
        sums = torch.from_numpy(self._sums.copy())
        if self._world_size > 1:
            sums = sums.to(self._device)
            distributed.all_reduce(sums)
        values: list[float] = sums.tolist()
        return values
