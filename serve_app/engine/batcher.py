"""Continuous batching of encoder windows: token budgets, fair queueing, several batches in parallel on a CPU."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from detect_ai.models.batch import lane_tokens, padded_length
from serve_app.engine.metrics import Record, discard
from serve_app.errors import QueueFullError

T = TypeVar("T")
Ids = NDArray[np.int32]
Scores = NDArray[np.float64]
Score = Callable[[Sequence[Ids], int], Scores]

LOOK_AHEAD = 4  # a batch takes windows of similar length from this many batches' worth of queue
MAX_CANDIDATES = 256  # windows considered for one batch
HUNG_S = 300.0  # a batch that runs this long will never end
MIN_MEASURED_FILL = 0.25  # of a lane's batch: the time per token of a smaller batch is measured as if it had this size


class ClosedError(Exception):
    """The batcher accepts no more work: the replica is shutting down."""


@dataclass(eq=False)
class _Job:
    """The windows of one request."""

    rows: Sequence[Ids]
    costs: list[int]  # padded tokens of each window
    done: asyncio.Future[Scores]
    scores: Scores
    waiting: list[int]  # indices of the windows that are in no batch yet
    waiting_tokens: int
    num_scored: int = 0
    model_s: float = 0.0  # seconds of the batches that had one of its windows


@dataclass(eq=False)
class Batcher:
    """Scores the windows of concurrent requests in shared batches.

    While the model runs, the next batch accumulates: there is no timer, and a single request is never delayed to fill a
    batch. Callers take turns, then the requests of a caller, one window each. A batch starts with the window whose turn
    it is and adds windows of similar length from the next turns, because padding costs as much as text (not with
    `layers.FusedEncoder`, but there windows of one length share their attention).

    On a CPU several batches run in parallel lanes, one thread each: threads that share a batch wait for each other at
    every layer. A request that finds idle lanes gets the threads of all of them; the next ones wait until it is done.
    One more batch is prepared ahead, so that a lane never waits for the event loop.

    Args:
        teams: executor for batches with several threads. Each executor thread that has run one keeps its own team of
            OpenMP threads, and teams compete for cores, so this executor has few threads.
        max_waiting_tokens: limit of the queue. Each request counts for at most `batch_tokens`, so that one long
            document does not block the others; a caller without waiting requests may use twice the limit. A
            request that finds an empty queue is always accepted.
    """

    score: Score  # windows and a number of threads to log-odds, shape (windows,), in one forward pass
    model: Executor  # one thread for each lane
    teams: Executor
    batch_tokens: int  # padded tokens in all lanes together: bounds how long a new request waits for its first turn
    max_waiting_tokens: int
    special_tokens: int = 0  # added around each window
    pass_tokens: int = 1  # fixed cost of a forward pass
    max_wait_s: float = math.inf  # limit of the estimated queueing delay
    threads: int = 1  # of all lanes together
    lanes: int = 1  # batches that run in parallel
    record: Record = discard
    name: str = ""  # of the queue in metrics
    offered_tokens: float = field(default=0.0, init=False)  # since `demand` was read, with rejected requests
    _token_s: float = field(default=0.0, init=False)  # moving average of the model's thread-seconds per token
    # Decayed sums of (seconds, tokens) of requests outside the model: reading texts and building responses.
    _rest: tuple[float, float] = field(default=(0.0, 0.0), init=False)
    _running_tokens: int = field(default=0, init=False)
    _busy_lanes: int = field(default=0, init=False)
    _busy_threads: int = field(default=0, init=False)
    _batch_starts: list[float] = field(default_factory=list, init=False)
    _queues: dict[str, list[_Job]] = field(default_factory=dict, init=False)  # by caller, in the order of turns
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    _closing: bool = field(default=False, init=False)
    _demand_read: float = field(default_factory=time.perf_counter, init=False)

    def start(self) -> None:
        """Start the tasks that fill the lanes, on the running event loop."""
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self.lanes + 1)]
        self.record("waiting_tokens", self.waiting_tokens, model_version=self.name)

    async def close(self) -> None:
        """Accept no more work and finish what was accepted."""
        self._closing = True
        self._wake.set()
        await asyncio.gather(*self._tasks)

    def runs_within(self, seconds: float) -> bool:
        """Whether the batcher is running, and no batch has taken longer than this."""
        ended = self._closing or not self._tasks or any(task.done() for task in self._tasks)
        return not ended and all(time.perf_counter() - start <= seconds for start in self._batch_starts)

    @property
    def alive(self) -> bool:
        """Whether new requests will be scored."""
        return self.runs_within(HUNG_S)

    @property
    def is_idle(self) -> bool:
        """Whether no batch runs and nothing waits."""
        return not self._busy_lanes and not self._queues

    @property
    def lane_tokens(self) -> int:
        """Padded tokens of a batch in one lane."""
        return lane_tokens(self.batch_tokens, self.lanes)

    @property
    def waiting_tokens(self) -> int:
        """Padded tokens that wait for the model."""
        return sum(job.waiting_tokens for jobs in self._queues.values() for job in jobs)

    def costs(self, rows: Sequence[Ids]) -> list[int]:
        """Padded tokens of each window."""
        return [padded_length(max(1, len(row) + self.special_tokens)) for row in rows]

    async def scores(self, rows: Sequence[Ids], caller: str = "", seconds: dict[str, float] | None = None) -> Scores:
        """Log-odds of windows, shape (windows,). Cancelling the call removes its windows from the queue.

        `rows` are the token ids of the windows of one request. Callers share the model evenly. `seconds["model"]`
        becomes the time of the batches with these windows. Raises QueueFullError, or ClosedError if the batcher was
        closed or never started.
        """
        if not self.alive:
            raise ClosedError
        if not rows:
            return np.empty(0)
        costs = self.costs(rows)
        self.offered_tokens += sum(costs)
        jobs = [job for jobs in self._queues.values() for job in jobs]
        if counted := sum(min(job.waiting_tokens, self.batch_tokens) for job in jobs):
            bound = self.max_waiting_tokens * (1 if caller in self._queues else 2)
            delay_s = self.delay_s(len(costs), caller)
            if delay_s > self.max_wait_s or counted + min(sum(costs), self.batch_tokens) > bound:
                raise QueueFullError(max(1, math.ceil(delay_s)))
        done = asyncio.get_running_loop().create_future()
        job = _Job(rows, costs, done, np.empty(len(rows)), list(range(len(rows))), sum(costs))
        self._queues.setdefault(caller, []).append(job)
        self.record("waiting_tokens", self.waiting_tokens, model_version=self.name)
        self._wake.set()
        try:
            return await job.done
        finally:
            self._drop(job)
            if seconds is not None:
                seconds["model"] = job.model_s

    def delay_s(self, windows: int = 1, caller: str = "") -> float:
        """Estimated seconds until the last of `windows` new windows of a caller gets its turn."""
        own = self._queues.get(caller, [])
        tokens = sum(job.costs[index] for job in own for index in job.waiting[:windows])
        turns = windows + sum(min(windows, len(job.waiting)) for job in own)
        for other, jobs in self._queues.items():
            if other != caller:
                waiting = others = 0
                for job in jobs:  # faster than two generators: this runs for every caller at every request
                    waiting += len(job.waiting)
                    others += job.waiting_tokens
                tokens += round(others * min(1.0, turns / max(1, waiting)))
        return (self._running_tokens + tokens) * self._token_s / self.threads

    def demand(self) -> float:
        """Work offered since the last call, refused requests included, as a fraction of the capacity of all threads."""
        now = time.perf_counter()
        elapsed, self._demand_read = now - self._demand_read, now
        offered, self.offered_tokens = self.offered_tokens, 0.0
        rest_s, rest_tokens = self._rest
        rest_token_s = rest_s / rest_tokens if rest_tokens else 0.0
        # On a CPU all work shares the cores. Work outside the model is mostly Python, which runs one thread at a time.
        # Its measured time includes waits for other threads: this overestimates demand rather than underestimating it.
        token_s = max((self._token_s + rest_token_s) / self.threads, rest_token_s)
        return offered * token_s / max(elapsed, 1e-3)

    @contextmanager
    def lane(self, tokens: int) -> Iterator[int]:
        """Occupy a lane for a batch; yields its number of threads: idle threads are divided among waiting batches."""
        waiting = math.ceil(self.waiting_tokens / self.lane_tokens)
        others = min(max(0, self.lanes - self._busy_lanes - 1), waiting)
        threads = max(1, (self.threads - self._busy_threads) // (1 + others)) if self.lanes > 1 else self.threads
        self._busy_lanes, self._busy_threads = self._busy_lanes + 1, self._busy_threads + threads
        self._running_tokens += tokens
        self._batch_starts.append(start := time.perf_counter())
        try:
            yield threads
        finally:
            self._busy_lanes, self._busy_threads = self._busy_lanes - 1, self._busy_threads - threads
            self._running_tokens -= tokens
            self._batch_starts.remove(start)
            if self._queues or self._closing:
                self._wake.set()

    def executor(self, threads: int) -> Executor:
        """The executor for a batch with this many threads."""
        return self.teams if threads > 1 else self.model

    def measure(self, rows: Sequence[Ids], seconds: float, threads: int) -> None:
        """Update the time per token from a finished batch of windows."""
        costs = self.costs(rows)
        # A small batch takes hardly less time than a larger one and would overestimate the time per token.
        token_s = seconds * threads / max(sum(costs), self.lane_tokens * MIN_MEASURED_FILL)
        self._token_s = 0.8 * self._token_s + 0.2 * token_s if self._token_s else token_s
        tokens = sum(map(len, rows)) + len(rows) * self.special_tokens
        self.record("batch_tokens", tokens, kind="text")
        self.record("batch_tokens", len(rows) * max(costs) - tokens, kind="padding")
        self.record("batch_seconds", seconds, model_version=self.name)

    def measure_rest(self, rows: Sequence[Ids], seconds: float) -> None:
        """Update the time per token outside the model from a finished request with these windows."""
        self._rest = 0.95 * self._rest[0] + seconds, 0.95 * self._rest[1] + sum(self.costs(rows))

    def _drop(self, job: _Job) -> None:
        for caller, jobs in self._queues.items():
            if job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._queues[caller]
                self.record("waiting_tokens", self.waiting_tokens, model_version=self.name)
                return

    async def _run(self) -> None:
        """Run batch after batch, each in the first free lane, until the batcher is closed and the queue is empty."""
        loop = asyncio.get_running_loop()
        while True:
            while not (batch := self._take()):
                if self._closing and not self._queues:
                    return
                self._wake.clear()
                await self._wake.wait()
            rows = [job.rows[index] for job, index in batch]
            tokens = sum(job.costs[index] for job, index in batch)
            with self.lane(tokens) as threads:
                try:
                    executor = self.executor(threads)
                    scores, seconds = await loop.run_in_executor(executor, timed, self.score, rows, threads)
                except Exception as error:  # fails the requests of this batch; the next batch may succeed
                    for job, _ in batch:
                        self._drop(job)
                        if not job.done.done():
                            job.done.set_exception(error)
                    continue
            for job in {job for job, _ in batch}:
                job.model_s += seconds
            for (job, index), score in zip(batch, scores, strict=True):
                job.scores[index] = score
                job.num_scored += 1
                if job.num_scored == len(job.rows) and not job.done.done():
                    job.done.set_result(job.scores)
            self.measure(rows, seconds, threads)

    def _take(self) -> list[tuple[_Job, int]]:
        """Remove the next batch from the queue; empty if there is none yet."""
        all_busy = self._busy_lanes >= self.lanes or self._busy_threads >= self.threads
        if not self._queues or (all_busy and self.waiting_tokens < self.lane_tokens):
            return []  # a small batch may still grow, and would only slow down those that run
        candidates: list[tuple[_Job, int]] = []
        tokens = 0
        for job, index in round_robin(  # of callers, then of the requests of each
            round_robin(zip(repeat(job), job.waiting, strict=False) for job in jobs) for jobs in self._queues.values()
        ):
            candidates.append((job, index))
            tokens += job.costs[index]
            if tokens >= LOOK_AHEAD * self.batch_tokens or len(candidates) == MAX_CANDIDATES:
                break
        costs = np.asarray([job.costs[index] for job, index in candidates])
        batch = [candidates[i] for i in cheapest_with_first(costs, self.lane_tokens, self.pass_tokens)]
        for job, index in batch:
            job.waiting.remove(index)
            job.waiting_tokens -= job.costs[index]
        served = {id(job) for job, _ in batch}
        for caller, jobs in list(self._queues.items()):  # callers and requests that had a turn go to the end
            if any(id(job) in served for job in jobs):
                last = [job for job in jobs if id(job) in served and job.waiting]
                del self._queues[caller]
                if jobs := [job for job in jobs if id(job) not in served] + last:
                    self._queues[caller] = jobs
        self.record("waiting_tokens", self.waiting_tokens, model_version=self.name)
        return batch


def timed(function: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    """The result of a function, and the seconds it took."""
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start


def round_robin(iterables: Iterable[Iterable[T]]) -> Iterator[T]:
    """One item of each in turn, until all are exhausted."""
    iterators = deque(map(iter, iterables))
    while iterators:
        iterator = iterators.popleft()
        for item in iterator:
            yield item
            iterators.append(iterator)
            break


def cheapest_with_first(costs: NDArray[np.int64], budget: int, pass_tokens: int) -> list[int]:
    """Windows to score together with the first: those of similar length that minimise the time per token.

    `costs` are the tokens of each window, shape (n,). Only the first window alone may exceed the padded tokens of the
    `budget`. Returns indices into `costs`, the longest window first; 0 is one of them.
    """
    order = np.argsort(-costs, kind="stable")
    longest_first, first = costs[order], int(np.flatnonzero(order == 0)[0])
    before = np.concatenate(([0], np.cumsum(longest_first)))
    starts, stops = np.arange(first + 1)[:, None], np.arange(first + 1, len(costs) + 1)[None, :]
    padded = longest_first[starts] * (stops - starts)
    efficiency = (before[stops] - before[starts]) / (padded + pass_tokens)
    allowed = (padded <= budget) | ((starts == first) & (stops == first + 1))
    start, stop = np.unravel_index(np.argmax(np.where(allowed, efficiency, -1.0)), efficiency.shape)
    return [int(i) for i in order[start : first + 1 + stop]]
