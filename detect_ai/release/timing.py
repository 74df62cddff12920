"""Times of several ways to do the same, on a machine that is never quite still."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one way is as another: the median over the rounds, the least and the most."""

    median: float
    low: float
    high: float


def alternate(
    arms: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Time every arm once in each round, so that whatever slows the machine down slows down all of them.

    The round begins with another arm each time: none always comes after the same one. A first round is not counted.

    Args:
        arms: what to time, by name.
        rounds: at least 1.
        clock: gives seconds.

    Returns:
        Seconds of each arm, one for each round.
    """
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        first = max(turn, 0) % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            arms[name]()
            if turn >= 0:
                seconds[name].append(clock() - started)
    return seconds


def ratio(base: list[float], own: list[float]) -> Ratio:
    """How many times as fast as the base, from seconds of both in the same rounds."""
    found = np.asarray(base) / np.asarray(own)
    return Ratio(float(np.median(found)), float(found.min()), float(found.max()))
