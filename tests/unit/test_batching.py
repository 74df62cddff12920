"""The batcher: right results, fair turns, isolation of failures, orderly end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from serve_app.batching import Batcher, ClosedError, Ids, QueueFullError, Scores


class Model:
    """Scores a window as the sum of its ids. It records its batches, and can be held in the middle of one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def score(self, rows: Sequence[Ids]) -> Scores:
        self.threads.add(threading.current_thread().name)
        self.batches.append([int(row.sum()) for row in rows])
        assert self.gate.wait(10)
        if any(-1 in row for row in rows):
            raise ValueError("poison")
        return np.asarray([row.sum() for row in rows], dtype=np.float64)


Scenario = Callable[[Batcher, Model], Coroutine[Any, Any, None]]


def row(value: int, length: int = 8) -> Ids:
    return np.asarray([value] + [0] * (length - 1), dtype=np.int32)


def run(scenario: Scenario, batch_tokens: int = 64, max_waiting: int = 10**6) -> Model:
    model = Model()

    async def main() -> None:
        with ThreadPoolExecutor(1, "model") as thread:
            batcher = Batcher(model.score, thread, batch_tokens, max_waiting)
            batcher.start()
            try:
                await asyncio.wait_for(scenario(batcher, model), 20)
            finally:
                model.gate.set()
                await batcher.close()

    asyncio.run(main())
    return model


async def held(batcher: Batcher, model: Model) -> asyncio.Task[Scores]:
    """Hold the model in the middle of a batch, so that what follows has to wait."""
    model.gate.clear()
    task = asyncio.create_task(batcher.scores([row(0)]))
    while not model.batches:
        await asyncio.sleep(0.001)
    return task


def test_scores_come_back_in_the_order_of_the_windows() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        assert (await batcher.scores([row(3), row(1), row(2)])).tolist() == [3, 1, 2]

    run(scenario)


def test_each_of_many_callers_gets_its_own_scores() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        asked = [[row(100 * i + j, 1 + (i + j) % 30) for j in range(1 + i % 5)] for i in range(60)]
        found = await asyncio.gather(*(batcher.scores(rows) for rows in asked))
        assert [scores.tolist() for scores in found] == [[float(r.sum()) for r in rows] for rows in asked]

    run(scenario)


def test_requests_that_wait_are_scored_in_one_batch() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        others = [asyncio.create_task(batcher.scores([row(i)])) for i in (1, 2, 3)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *others)

    assert run(scenario).batches == [[0], [1, 2, 3]]


def test_a_batch_holds_at_most_its_budget_of_tokens() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        await batcher.scores([row(i, 30) for i in range(10)])

    assert [len(batch) for batch in run(scenario, batch_tokens=64).batches] == [2] * 5


def test_a_window_larger_than_the_budget_is_scored_alone() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        assert (await batcher.scores([row(7, 500)])).tolist() == [7]

    run(scenario, batch_tokens=64)


def test_a_short_text_is_in_the_next_batch_although_a_long_one_waits() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        long, short = (asyncio.create_task(batcher.scores(rows)) for rows in ([row(1)] * 1000, [row(2)]))
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, short)
        assert not long.done()
        long.cancel()

    assert 2 in run(scenario).batches[1]


def test_long_texts_share_every_batch_evenly() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        both = [asyncio.create_task(batcher.scores([row(i) for _ in range(40)])) for i in (1, 2)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *both)

    assert all(batch.count(1) == batch.count(2) for batch in run(scenario).batches[1:])


def test_a_cancelled_request_leaves_the_queue() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        gone = asyncio.create_task(batcher.scores([row(1)] * 100))
        stays = asyncio.create_task(batcher.scores([row(2)]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, stays)

    assert run(scenario).batches == [[0], [2]]


def test_cancelling_a_request_in_the_model_leaves_the_others_of_its_batch() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        gone, stays = (asyncio.create_task(batcher.scores([row(i)])) for i in (1, 2))
        await asyncio.sleep(0)
        model.gate.set()
        await first
        gone.cancel()
        assert (await stays).tolist() == [2]

    run(scenario)


def test_an_exception_reaches_only_the_callers_of_its_batch() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        poisoned = asyncio.create_task(batcher.scores([row(-1)] * 20))
        await asyncio.sleep(0)
        model.gate.set()
        assert (await first).tolist() == [0]
        with pytest.raises(ValueError, match="poison"):
            await poisoned
        assert (await batcher.scores([row(5)])).tolist() == [5]

    run(scenario)


def test_no_further_window_of_a_failed_request_is_scored() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        with pytest.raises(ValueError, match="poison"):
            await batcher.scores([row(-1)] * 100)

    assert len(run(scenario).batches) == 1


def test_more_than_the_bound_is_refused_while_others_wait() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        waits = asyncio.create_task(batcher.scores([row(1)] * 3))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.scores([row(2)] * 2)
        model.gate.set()
        await asyncio.gather(first, waits)

    run(scenario, max_waiting=32)


async def warmed(batcher: Batcher, model: Model, token_s: float) -> asyncio.Task[Scores]:
    """A batcher that knows its speed, with a request in the model."""
    batcher._measure(64, 64 * token_s)
    return await held(batcher, model)


def test_a_request_that_would_wait_too_long_is_refused_with_the_time_to_come_back() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        batcher.max_wait_s = 2.0
        first = await warmed(batcher, model, 1 / 16)
        waits = [asyncio.create_task(batcher.scores([row(i)])) for i in (1, 2)]  # 3 x 8 tokens: 1.5 s
        await asyncio.sleep(0)
        late = asyncio.create_task(batcher.scores([row(3)]))  # 2 s
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as refused:
            await batcher.scores([row(4)])
        assert refused.value.retry_after_s == 2  # 24 tokens wait
        model.gate.set()
        await asyncio.gather(first, late, *waits)

    run(scenario)


def test_the_time_of_a_few_tokens_says_little_of_the_time_of_many() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        batcher.max_wait_s = 2.0
        batcher._measure(1, 0.5)
        first = await held(batcher, model)
        waits = [asyncio.create_task(batcher.scores([row(i)])) for i in (1, 2)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *waits)

    run(scenario)


def test_a_short_text_is_not_refused_for_the_long_one_before_it() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        batcher.max_wait_s = 2.0
        first = await warmed(batcher, model, 1 / 16)
        long = asyncio.create_task(batcher.scores([row(1)] * 100))  # nothing waits yet
        await asyncio.sleep(0)
        short = asyncio.create_task(batcher.scores([row(2)]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.scores([row(3)] * 3)
        model.gate.set()
        await asyncio.gather(first, short)
        long.cancel()

    run(scenario)


def test_a_lone_request_is_never_too_large() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        assert len(await batcher.scores([row(1)] * 100)) == 100

    run(scenario, max_waiting=32)


def test_closing_finishes_what_was_taken_and_refuses_the_rest() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        waits = asyncio.create_task(batcher.scores([row(1)] * 100))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(ClosedError):
            await batcher.scores([row(2)])
        model.gate.set()
        await closing
        assert (await first).tolist() == [0]
        assert len(await waits) == 100

    run(scenario)


def test_the_model_runs_in_its_own_thread_only() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        await asyncio.gather(*(batcher.scores([row(i)] * 9) for i in range(5)))

    assert run(scenario).threads == {"model_0"}


def test_the_event_loop_is_free_while_the_model_runs() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        await asyncio.wait_for(asyncio.sleep(0.01), 1)
        assert not first.done()

    run(scenario)
