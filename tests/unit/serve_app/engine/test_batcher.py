"""The batcher: right results, fair turns, isolation of failures, orderly end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.batcher import Batcher, ClosedError, Ids, QueueFullError, Scores, cheapest_with_first


class Model:
    """Scores a window as the sum of its ids. It records its batches, and can be held in the middle of one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.names: set[str] = set()
        self.threads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def score(self, rows: Sequence[Ids], threads: int) -> Scores:
        self.names.add(threading.current_thread().name)
        self.threads.append(threads)
        self.batches.append([int(row.sum()) for row in rows])
        assert self.gate.wait(10)
        if any(-1 in row for row in rows):
            raise ValueError("poison")
        return np.asarray([row.sum() for row in rows], dtype=np.float64)


Scenario = Callable[[Batcher, Model], Coroutine[Any, Any, None]]


def row(value: int, length: int = 8) -> Ids:
    return np.asarray([value] + [0] * (length - 1), dtype=np.int32)


def run(
    scenario: Scenario, batch_tokens: int = 64, max_waiting: int = 10**6, lanes: int = 1, threads: int = 1
) -> Model:
    model = Model()

    async def main() -> None:
        with ThreadPoolExecutor(lanes, "model") as pool:
            batcher = Batcher(model.score, pool, batch_tokens, max_waiting, lanes=lanes, threads=threads)
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


def test_windows_of_like_length_are_scored_together_the_oldest_first() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        lengths = {1: 8, 2: 64, 3: 8, 4: 64, 5: 8, 6: 64}
        others = [asyncio.create_task(batcher.scores([row(i, length)])) for i, length in lengths.items()]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *others)

    assert run(scenario, batch_tokens=192).batches == [[0], [1, 3, 5], [2, 4, 6]]


def test_a_text_of_another_length_waits_for_those_before_it_only() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        short = asyncio.create_task(batcher.scores([row(7, 8)]))
        long = [asyncio.create_task(batcher.scores([row(i, 64)] * 50)) for i in (1, 2)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, short)
        for task in long:
            task.cancel()

    assert [7] in run(scenario, batch_tokens=128).batches[:2]


def test_the_special_tokens_around_a_window_are_counted() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        batcher.special_tokens = 2
        await batcher.scores([row(i, 15) for i in range(8)])

    assert [len(batch) for batch in run(scenario, batch_tokens=48).batches] == [2] * 4


costs_of_windows = st.lists(st.integers(1, 64).map(lambda n: 8 * n), min_size=1, max_size=40)


@given(costs=costs_of_windows, budget=st.integers(8, 2048), pass_tokens=st.integers(1, 256))
def test_what_is_read_with_the_first_fits_and_nothing_makes_a_token_cheaper(
    costs: list[int], budget: int, pass_tokens: int
) -> None:
    chosen = cheapest_with_first(np.asarray(costs), budget, pass_tokens)

    def padded(group: list[int]) -> int:
        return max(costs[i] for i in group) * len(group)

    def worth(group: list[int]) -> float:
        return sum(costs[i] for i in group) / (padded(group) + pass_tokens)

    assert 0 in chosen
    assert len(set(chosen)) == len(chosen)
    assert chosen == [0] or padded(chosen) <= budget
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    runs = [order[a:b] for a in range(len(order)) for b in range(a + 1, len(order) + 1)]
    others = [run for run in runs if 0 in run and (padded(run) <= budget or run == [0])]
    assert worth(chosen) >= max(map(worth, others)) - 1e-9


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
        gone = asyncio.create_task(batcher.scores([row(1)] * 4))
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

    assert len(run(scenario).batches) <= 2  # one was ready


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
    batcher._measure(64, 64 * token_s, 1)
    return await held(batcher, model)


def test_a_request_that_would_wait_too_long_is_refused_with_the_time_to_come_back() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        batcher.max_wait_s = 1.9
        first = await warmed(batcher, model, 1 / 16)
        waits = [asyncio.create_task(batcher.scores([row(i)])) for i in (1, 2)]  # 3 x 8 tokens: 1.5 s
        await asyncio.sleep(0)
        late = asyncio.create_task(batcher.scores([row(3)]))  # after 1.5 s
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as refused:
            await batcher.scores([row(4)])
        assert refused.value.retry_after_s == 2  # 4 x 8 tokens
        model.gate.set()
        await asyncio.gather(first, late, *waits)

    run(scenario)


def test_the_time_of_a_few_tokens_says_little_of_the_time_of_many() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        batcher.max_wait_s = 2.0
        batcher._measure(1, 0.5, 1)
        first = await held(batcher, model)
        waits = [asyncio.create_task(batcher.scores([row(i)])) for i in (1, 2)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *waits)

    run(scenario)


def test_a_short_text_is_not_refused_for_the_long_one_before_it() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        batcher.max_wait_s = 6.0
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

    assert run(scenario).names == {"model_0"}


def test_lanes_run_batches_at_once_with_a_thread_each() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        others = [asyncio.create_task(batcher.scores([row(i, 64)])) for i in range(1, 4)]
        while len(model.batches) < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert not first.done()
        assert model.batches == [[0], [1]]
        model.gate.set()
        await asyncio.gather(first, *others)
        assert not batcher._running
        assert not batcher._busy_threads

    model = run(scenario, lanes=2, threads=2)
    assert model.threads[:2] == [2, 1]  # the first came to an idle service
    assert sorted(model.batches) == [[0], [1], [2], [3]]


def test_what_comes_to_idle_lanes_shares_the_threads() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        await batcher.scores([row(1, 64)])
        await batcher.scores([row(i, 64) for i in (2, 3)])
        await batcher.scores([row(i, 64) for i in range(4, 8)])

    model = run(scenario, lanes=4, threads=8)
    assert model.threads == [8, 4, 4, 2, 2, 2, 2]


def test_a_batch_is_ready_before_a_lane_is_free_where_enough_waits_for_it() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        few = asyncio.create_task(batcher.scores([row(1)]))
        await asyncio.sleep(0.01)
        assert batcher.waiting_tokens == 8
        more = asyncio.create_task(batcher.scores([row(2)] * 8))
        await asyncio.sleep(0.01)
        assert batcher.waiting_tokens == 8  # of 72
        assert len(model.batches) == 1
        model.gate.set()
        await asyncio.gather(first, few, more)

    run(scenario)


def test_a_failure_in_one_lane_leaves_the_others() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        asked = [asyncio.create_task(batcher.scores([row(i, 64)])) for i in (1, -1, 2)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(found[1], ValueError)
        assert [float(found[i][0]) for i in (0, 2)] == [1, 2]  # type: ignore[index]
        assert (await batcher.scores([row(5)])).tolist() == [5]

    run(scenario, lanes=2)


def test_the_event_loop_is_free_while_the_model_runs() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        await asyncio.wait_for(asyncio.sleep(0.01), 1)
        assert not first.done()

    run(scenario)


def test_a_batch_that_never_ends_ends_the_life_of_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.engine.batcher.HUNG_S", 0.1)

    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await held(batcher, model)
        assert batcher.alive
        await asyncio.sleep(0.2)
        assert not batcher.alive
        model.gate.set()
        await first
        assert batcher.alive

    run(scenario)
