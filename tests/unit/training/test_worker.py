from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from detect_ai.training.worker import group_steps


def parts(*slots: int, ends: tuple[int, ...]) -> Any:
    """Microbatches by their slot in a step; those at the positions in `ends` are the last of their step."""
    return [SimpleNamespace(slot=slot, last=i in ends) for i, slot in enumerate(slots)]


def grouped(stream: Any, rank: int, world_size: int) -> list[list[int]]:
    return [[part.slot for part in step] for step in group_steps(stream, rank, world_size)]


def test_microbatches_are_grouped_at_the_last_one() -> None:
    assert grouped(parts(0, 1, 2, 0, 0, 1, ends=(2, 3, 5)), 0, 1) == [[0, 1, 2], [0], [0, 1]]
    assert grouped(parts(1, 4, 1, ends=(1, 2)), 1, 3) == [[1, 4], [1]]


def test_step_is_yielded_before_the_next_is_fetched() -> None:
    fetched = []
    stream = (fetched.append(part.slot) or part for part in parts(0, 0, ends=(0, 1)))
    next(group_steps(stream, 0, 1))
    assert fetched == [0]


@pytest.mark.parametrize("wrong", [(0,), (1, 2), (1, 4, 4), (4,)])
def test_microbatches_of_another_rank_or_a_step_without_end_fail(wrong: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match=rf"rank 1 of 3 got microbatch {wrong[-1]}"):
        grouped(parts(*wrong, ends=()), 1, 3)
    with pytest.raises(AssertionError, match="ended within a step"):
        grouped(parts(1, 1, ends=(0,)), 1, 3)
