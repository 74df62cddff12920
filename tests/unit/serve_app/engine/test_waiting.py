"""What waits, and what is refused for it."""

from __future__ import annotations

import time

import pytest

from serve_app.engine.batcher import QueueFullError
from serve_app.engine.waiting import WorkQueue


@pytest.fixture
def queue() -> WorkQueue:
    """Two workers, and 10 µs a unit by the last piece."""
    made = WorkQueue(max_wait_s=1.0, workers=2)
    made.measure(lambda: time.sleep(0.05), 5000)
    return made


def test_what_would_wait_too_long_is_refused_with_the_time_to_come_back(queue: WorkQueue) -> None:
    with queue.place(150_000), queue.place(100_000):  # three quarters of a second are before the second
        with pytest.raises(QueueFullError) as refused, queue.place(1):
            pass
        assert refused.value.retry_after_s == 2
    with queue.place(1):
        pass


def test_what_comes_after_counts_too(queue: WorkQueue) -> None:
    with queue.place(100_000):
        with pytest.raises(QueueFullError), queue.place(1, 0.9):
            pass
        with queue.place(0, 9.0):  # a stream waits
            pass


def test_nothing_is_too_large_where_nothing_is_before_it(queue: WorkQueue) -> None:
    with queue.place(10**6):
        pass


def test_a_small_piece_does_not_say_that_every_unit_is_slow() -> None:
    queue = WorkQueue(max_wait_s=1.0, workers=1, enough=1000)
    queue.measure(lambda: time.sleep(0.05), 1)  # 50 µs a unit
    with queue.place(1000), queue.place(1000):
        pass
