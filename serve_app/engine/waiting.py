"""What waits to be done in threads, and the refusal of what would wait too long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from serve_app.engine.batcher import QueueFullError

T = TypeVar("T")


class WorkQueue:
    """How long new work would wait for its thread, by the speed of late.

    Args:
        max_wait_s: longer is refused.
        workers: threads that do it.
        enough: size from which on the time of a piece says how long a unit takes.
    """

    def __init__(self, max_wait_s: float, workers: int, enough: float = 1) -> None:
        self._max_wait_s, self._workers, self._enough = max_wait_s, workers, enough
        self._size = 0.0  # of all that is not done
        self._unit_s = 0.0  # that a unit of size takes, lately

    @contextmanager
    def place(self, size: float, after_s: float = 0.0) -> Iterator[None]:
        """A place in the queue for the time of the block.

        Args:
            size: of the work; 0: it is let in always.
            after_s: seconds that it will wait for something else afterwards.

        Raises:
            QueueFullError: what is before it would take too long.
        """
        seconds = self._size * self._unit_s / self._workers + after_s
        if size and seconds > self._max_wait_s:
            raise QueueFullError(max(1, math.ceil(seconds)))
        self._size += size
        try:
            yield
        finally:
            self._size -= size

    def measure(self, work: Callable[[], T], size: float) -> T:
        """Do it, and remember how long that took."""
        started = time.perf_counter()
        done = work()
        if size:
            unit_s = (time.perf_counter() - started) / max(size, self._enough)
            self._unit_s = 0.8 * self._unit_s + 0.2 * unit_s if self._unit_s else unit_s
        return done
