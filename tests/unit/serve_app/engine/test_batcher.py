"""Continuous batching: correct results, fair turns, limits, isolation of failures, orderly shutdown."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.batcher import Batcher, ClosedError, Ids, Scores, cheapest_with_first
from serve_app.errors import QueueFullError


class Model:
    """Scores a window as the sum of its ids. Records its batches; tests can hold it in the middle of one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def score(self, rows: Sequence[Ids], threads: int) -> Scores:
        self.threads.append(threads)
        self.batches.append([int(row.sum()) for row in rows])
        assert self.gate.wait(10)
        if any(-1 in row for row in rows):
            raise ValueError("poison")
        return np.asarray([row.sum() for row in rows], dtype=np.float64)


Scenario = Callable[[Batcher, Model], Coroutine[Any, Any, None]]


def row(value: int, length: int = 8) -> Ids:
    return np.asarray([value] + [0] * (length - 1), dtype=np.int32)


def run(scenario: Scenario, batch_tokens: int = 64, max_waiting: int = 10**6, lanes: int = 1, **options: Any) -> Model:
    model = Model()

    async def main() -> None:
        with ThreadPoolExecutor(lanes, "model") as pool:
            batcher = Batcher(model.score, pool, pool, batch_tokens, max_waiting, lanes=lanes, **options)
            batcher.start()
            try:
                await asyncio.wait_for(scenario(batcher, model), 20)
            finally:
                model.gate.set()
                await batcher.close()

    asyncio.run(main())
    return model


def batching(**options: Any) -> Callable[[Scenario], Callable[[], None]]:
    """Turn a coroutine into a test, and pass it a running batcher and its model."""

    def decorate(scenario: Scenario) -> Callable[[], None]:
        def test() -> None:
            run(scenario, **options)

        return test

    return decorate


async def hold(batcher: Batcher, model: Model, caller: str = "") -> asyncio.Task[Scores]:
    """Hold the model in the middle of a batch, so that later requests have to wait."""
    model.gate.clear()
    before = len(model.batches)
    task = asyncio.create_task(batcher.scores([row(0)], caller))
    while len(model.batches) == before:
        await asyncio.sleep(0.001)
    return task


async def queue(batcher: Batcher, rows: list[Ids], caller: str = "") -> asyncio.Task[Scores]:
    """Queue a request, which then waits."""
    task = asyncio.create_task(batcher.scores(rows, caller))
    await asyncio.sleep(0)
    return task


async def release(model: Model, *tasks: asyncio.Task[Scores]) -> None:
    model.gate.set()
    await asyncio.gather(*tasks)


@batching()
async def test_every_caller_gets_its_own_scores(batcher: Batcher, model: Model) -> None:
    requests = [[row(100 * i + j, 1 + (i + j) % 30) for j in range(1 + i % 5)] for i in range(60)]
    answers = await asyncio.gather(*(batcher.scores(rows, f"c{len(rows)}") for rows in requests))
    assert [scores.tolist() for scores in answers] == [[float(r.sum()) for r in rows] for rows in requests]


@pytest.mark.parametrize(
    ("special", "length", "batch_tokens", "per_batch"), [(0, 30, 64, 2), (2, 15, 48, 2), (0, 500, 64, 1)]
)
def test_a_batch_keeps_its_token_budget(special: int, length: int, batch_tokens: int, per_batch: int) -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        await batcher.scores([row(i, length) for i in range(6)])

    batches = run(scenario, batch_tokens, special_tokens=special).batches
    assert [len(batch) for batch in batches] == [per_batch] * (6 // per_batch)


@batching(batch_tokens=192)
async def test_windows_of_similar_length_share_a_batch(batcher: Batcher, model: Model) -> None:
    lengths = {1: 8, 2: 64, 3: 8, 4: 64, 5: 8, 6: 64}
    tasks = [await hold(batcher, model)]
    tasks += [await queue(batcher, [row(i, length)]) for i, length in lengths.items()]
    await release(model, *tasks)
    assert model.batches == [[0], [1, 3, 5], [2, 4, 6]]


costs_of_windows = st.lists(st.integers(1, 64).map(lambda n: 8 * n), min_size=1, max_size=40)


@given(costs=costs_of_windows, budget=st.integers(8, 2048), pass_tokens=st.integers(1, 256))
def test_no_other_choice_is_cheaper_per_token(costs: list[int], budget: int, pass_tokens: int) -> None:
    chosen = cheapest_with_first(np.asarray(costs), budget, pass_tokens)

    def padded(group: list[int]) -> int:
        return max(costs[i] for i in group) * len(group)

    def efficiency(group: list[int]) -> float:
        return sum(costs[i] for i in group) / (padded(group) + pass_tokens)

    assert 0 in chosen
    assert len(set(chosen)) == len(chosen)
    assert chosen == [0] or padded(chosen) <= budget
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    runs = [order[a:b] for a in range(len(order)) for b in range(a + 1, len(order) + 1)]
    others = [run for run in runs if 0 in run and (padded(run) <= budget or run == [0])]
    assert efficiency(chosen) >= max(map(efficiency, others)) - 1e-9


@batching()
async def test_long_texts_share_every_batch_evenly(batcher: Batcher, model: Model) -> None:
    tasks = [await hold(batcher, model), *[await queue(batcher, [row(i)] * 40) for i in (1, 2)]]
    await release(model, *tasks)
    batches = model.batches[2:]  # the first two were ready before the second text came
    assert all(batch.count(1) == batch.count(2) for batch in batches[:8])


@batching()
async def test_callers_take_turns_whatever_their_requests(batcher: Batcher, model: Model) -> None:
    first = await hold(batcher, model)
    many = [await queue(batcher, [row(1)] * 8, "busy") for _ in range(50)]
    one = await queue(batcher, [row(2)] * 8, "other")
    await release(model, first, one)
    for task in many:
        task.cancel()
    assert model.batches[2].count(2) == model.batches[2].count(1) == 4  # one batch was ready before
    assert sum(batch.count(2) for batch in model.batches[2:4]) == 8


@batching(batch_tokens=2048, max_waiting=64 * 2048, max_wait_s=5.0)
async def test_a_long_document_delays_no_other_caller(batcher: Batcher, model: Model) -> None:
    # 100,000 tokens with spans (three times the text) against the limit of the local service: 64 batches of 2,048.
    batcher.measure([row(1, 2048)], 0.2, 1)
    first = await hold(batcher, model)
    document = [row(1, 254)] * 520 + [row(1, 75)] * 4000
    long = await queue(batcher, document, "teacher")
    assert batcher.waiting_tokens > batcher.max_waiting_tokens
    short = [await queue(batcher, [row(2, 60)], caller) for caller in ("teacher", *map(str, range(35)))]
    await release(model, first, *short)
    assert not long.done()
    long.cancel()


@batching(max_waiting=32)
async def test_the_queue_bound_is_enforced(batcher: Batcher, model: Model) -> None:
    assert len(await batcher.scores([row(1)] * 100)) == 100  # an empty queue accepts any request
    tasks = [await hold(batcher, model), await queue(batcher, [row(1)] * 3)]
    with pytest.raises(QueueFullError):
        await batcher.scores([row(2)] * 2)
    tasks.append(await queue(batcher, [row(2)] * 2, "other"))  # it has nothing in the queue: twice the limit
    with pytest.raises(QueueFullError):
        await batcher.scores([row(2)] * 4, "third")
    await release(model, *tasks)


@batching(max_wait_s=1.9)
async def test_a_long_delay_is_refused_with_its_seconds(batcher: Batcher, model: Model) -> None:
    batcher.measure([row(1, 64)], 4.0, 1)
    tasks = [await hold(batcher, model), *[await queue(batcher, [row(i)]) for i in (1, 2)]]
    tasks.append(await queue(batcher, [row(3)]))  # behind 3 x 8 tokens at 16 tokens a second: 1.5 s
    with pytest.raises(QueueFullError) as refused:
        await batcher.scores([row(4)])
    assert refused.value.retry_after_s == 2
    await release(model, *tasks)


@batching(max_wait_s=2.0)
async def test_small_batches_do_not_inflate_the_estimate(batcher: Batcher, model: Model) -> None:
    batcher.measure([row(1, 1)], 0.5, 1)
    tasks = [await hold(batcher, model), *[await queue(batcher, [row(i)]) for i in (1, 2)]]
    await release(model, *tasks)


@batching()
async def test_the_estimate_of_a_caller_counts_turns_only(batcher: Batcher, model: Model) -> None:
    batcher.measure([row(1, 64)], 4.0, 1)
    first = await hold(batcher, model)
    waiting = [await queue(batcher, [row(1)], "busy") for _ in range(5)]
    assert batcher.delay_s(1, "busy") == pytest.approx(6 * 8 / 16)
    assert batcher.delay_s(1, "other") == pytest.approx(2 * 8 / 16)  # the running window and one of the other's
    await release(model, first, *waiting)


@batching(max_wait_s=0.1)
async def test_demand_counts_refused_work(batcher: Batcher, model: Model) -> None:
    batcher.measure([row(1, 64)], 4.0, 1)  # 16 tokens a second
    tasks = [await hold(batcher, model), await queue(batcher, [row(1)])]
    batcher.demand()
    start = asyncio.get_running_loop().time()
    for _ in range(20):
        with pytest.raises(QueueFullError):
            await batcher.scores([row(2)])
    await asyncio.sleep(0.2)
    seconds = asyncio.get_running_loop().time() - start
    assert batcher.demand() == pytest.approx(20 * 8 / 16 / seconds, rel=0.2)
    assert batcher.demand() == 0
    await release(model, *tasks)


@pytest.mark.parametrize(("threads", "expected"), [(1, 3 / 2), (8, 1.0)])
def test_demand_counts_work_outside_the_model(threads: int, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 16 tokens a second in the model and 8 outside it, where only one thread runs at a time."""
    batcher = Batcher(lambda rows, threads: np.zeros(len(rows)), None, None, 64, 64, threads=threads)  # type: ignore[arg-type]
    batcher.measure([row(1, 64)], 4.0, 1)
    batcher.measure_rest([row(1, 64)], 8.0)
    now = time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    batcher.demand()
    batcher.offered_tokens, now = 80.0, now + 10
    assert batcher.demand() == pytest.approx(expected)


def test_demand_of_short_texts_counts_their_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(lambda rows, threads: np.zeros(len(rows)), None, None, 1024, 64)  # type: ignore[arg-type]
    now = time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    batcher.demand()
    for _ in range(100):
        batcher.measure_rest([row(1, 32)], 0.004)
        batcher.offered_tokens += 32
    now += 1
    assert batcher.demand() == pytest.approx(0.4)


@batching()
async def test_a_cancelled_request_leaves_the_queue(batcher: Batcher, model: Model) -> None:
    first = await hold(batcher, model)
    gone, stays = await queue(batcher, [row(1)] * 4), await queue(batcher, [row(2)])
    gone.cancel()
    await asyncio.sleep(0)
    await release(model, first, stays)
    assert model.batches == [[0], [2]]


@batching()
async def test_a_cancelled_request_leaves_its_batch_alone(batcher: Batcher, model: Model) -> None:
    first = await hold(batcher, model)
    gone, stays = [await queue(batcher, [row(i)]) for i in (1, 2)]
    await release(model, first)
    gone.cancel()
    assert (await stays).tolist() == [2]


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_error_fails_its_own_batch_only(lanes: int) -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        requests = [asyncio.create_task(batcher.scores([row(i, 64)] * 20)) for i in (1, -1)]
        good, bad = await asyncio.gather(*requests, return_exceptions=True)
        assert isinstance(good, np.ndarray)
        assert isinstance(bad, ValueError)
        assert (await batcher.scores([row(5)])).tolist() == [5]

    batches = run(scenario, lanes=lanes).batches
    assert sum(batch.count(-1) for batch in batches) <= 3  # of 20: no more than was prepared


@batching()
async def test_closing_finishes_accepted_requests(batcher: Batcher, model: Model) -> None:
    first, waits = await hold(batcher, model), await queue(batcher, [row(1)] * 100)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    with pytest.raises(ClosedError):
        await batcher.scores([row(2)])
    await release(model, first, waits)
    await closing


@batching()
async def test_closing_waits_for_a_lane_of_another_user(batcher: Batcher, model: Model) -> None:
    with batcher.lane(8):
        waits = asyncio.create_task(batcher.scores([row(3)]))
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
    await closing
    assert (await waits).tolist() == [3]


@batching(lanes=2, threads=2)
async def test_lanes_run_batches_in_parallel(batcher: Batcher, model: Model) -> None:
    tasks = [await hold(batcher, model), *[await queue(batcher, [row(i, 64)]) for i in range(1, 4)]]
    while len(model.batches) < 2:
        await asyncio.sleep(0.001)
    assert not tasks[0].done()
    await release(model, *tasks)
    assert batcher.is_idle
    assert model.threads[:2] == [2, 1]  # the first found idle lanes
    assert sorted(model.batches) == [[0], [1], [2], [3]]


@batching(lanes=2, threads=2)
async def test_a_small_batch_waits_for_busy_threads(batcher: Batcher, model: Model) -> None:
    """A request with all threads and one more thread on the same cores would slow each other down."""
    tasks = [await hold(batcher, model), await queue(batcher, [row(1)])]
    await asyncio.sleep(0.01)
    assert (batcher.waiting_tokens, model.threads) == (8, [2])
    await release(model, *tasks)
    assert model.threads == [2, 2]


@batching(lanes=4, threads=8)
async def test_idle_lanes_share_the_threads(batcher: Batcher, model: Model) -> None:
    await batcher.scores([row(1, 64)])
    await batcher.scores([row(i, 64) for i in (2, 3)])
    await batcher.scores([row(i, 64) for i in range(4, 8)])
    assert model.threads == [8, 4, 4, 2, 2, 2, 2]


@batching()
async def test_a_full_batch_is_prepared_ahead(batcher: Batcher, model: Model) -> None:
    tasks = [await hold(batcher, model), await queue(batcher, [row(1)])]
    await asyncio.sleep(0.01)
    assert batcher.waiting_tokens == 8  # too few for a batch
    tasks.append(await queue(batcher, [row(2)] * 8))
    await asyncio.sleep(0.01)
    assert batcher.waiting_tokens == 8  # of 72
    await release(model, *tasks)


@batching()
async def test_a_hung_batch_is_unhealthy(batcher: Batcher, model: Model) -> None:
    first = await hold(batcher, model)
    await asyncio.sleep(0.2)
    assert (batcher.alive, batcher.runs_within(0.1)) == (True, False)
    await release(model, first)
    assert batcher.runs_within(0.1)


@batching()
async def test_the_queue_is_reported_when_it_changes(batcher: Batcher, model: Model) -> None:
    recorded: dict[str, float] = {}
    batcher.record = lambda metric, value, **_: recorded.update({metric: value})
    tasks = [await hold(batcher, model), await queue(batcher, [row(1)] * 2)]
    assert recorded["waiting_tokens"] == 16
    await release(model, *tasks)
    assert recorded["waiting_tokens"] == 0


@batching()
async def test_padding_of_a_batch_is_counted(batcher: Batcher, model: Model) -> None:
    recorded: dict[str, float] = {}
    batcher.record = lambda metric, value, **labels: recorded.update({f"{metric} {labels.get('kind', '')}": value})
    await batcher.scores([row(1, 9), row(2, 16)])
    assert (recorded["batch_tokens text"], recorded["batch_tokens padding"]) == (25, 7)


@batching()
async def test_a_request_gets_the_time_of_its_batches(batcher: Batcher, model: Model) -> None:
    seconds: dict[str, float] = {}
    model.gate.clear()
    first = asyncio.create_task(batcher.scores([row(1, 64), row(2, 64)], "", seconds))
    await asyncio.sleep(0.1)
    await release(model, first)
    assert seconds["model"] > 0.05  # seconds of two batches, the first of which was held
