"""Progress of a run: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)


class Progress:
    """Progress over a known number of steps, told from a worker.

    Args:
        what: what is running.
        total: steps in all.
        bar: draw a bar at the driver's terminal; otherwise log a line every `every` steps.
        every: steps between two lines.
        done: steps made before.
    """

    def __init__(self, what: str, total: int, bar: bool, every: int, done: int = 0) -> None:
        self._what, self._total, self._every = what, total, every
        self._done = done
        self._bar: Any = None
        if bar:
            from ray.experimental import tqdm_ray

            self._bar = tqdm_ray.tqdm(desc=what, total=total, unit="step")
            self._bar.update(done)

    def step(self, note: Callable[[], str]) -> None:
        """One step more; the note is made when it is told."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(1)
            self._bar.set_description(f"{self._what} {note()}")
        elif self._done % self._every == 0:
            logger.info("%s: step %d/%d %s", self._what, self._done, self._total, note())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
