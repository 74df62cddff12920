"""Batches made from the windows of all requests that wait: no timer, no starvation, every core at work."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detect_ai.models.batch import lane_tokens, padded_length

Ids = NDArray[np.int32]
Scores = NDArray[np.float64]
Score = Callable[[Sequence[Ids], int], Scores]

LOOK_AHEAD = 4  # batches among whose windows those of like length are found
MOST_COMING = 256  # windows that are looked at for a batch
HUNG_S = 300.0  # a batch that takes so long will never end: a model's first compilation takes a minute
FULL_ENOUGH = 0.25  # share of a batch from which on its time says how long a token takes


class QueueFullError(Exception):
    """More waits than the bounds allow.

    Args:
        retry_after_s: seconds until what waits now will have been read.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class ClosedError(Exception):
    """The batcher takes no more work: the replica is shutting down."""


@dataclass(eq=False)
class _Job:
    """The windows of one request on their way through the model."""

    rows: Sequence[Ids]
    costs: list[int]
    done: asyncio.Future[Scores]
    scores: Scores
    waiting: list[int]  # positions of windows that are in no batch yet
    waiting_tokens: int
    scored: int = 0

    def take(self, position: int) -> None:
        self.waiting.remove(position)
        self.waiting_tokens -= self.costs[position]

    def tokens_before(self, windows: int) -> int:
        """Tokens of it that come before the last window of another with so many windows: they take turns."""
        return sum(self.costs[position] for position in self.waiting[:windows])

    def put(self, position: int, score: float) -> None:
        self.scores[position] = score
        self.scored += 1
        if self.scored == len(self.rows) and not self.done.done():
            self.done.set_result(self.scores)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(eq=False)
class Batcher:
    """Scores windows for many callers at once.

    While the model runs, the next batch gathers: the model never waits for a timer, and a lone request never waits
    for company. Requests take turns, one window each, so that a long text shares the model with the short ones that
    came after it. Of what comes next a batch takes the window that waits longest, and those of like length that go
    with it at the least cost: padding costs as much as text.

    Several batches may run at once, in lanes: a thread each gets more out of a CPU than all threads at one batch, where
    they wait for each other at every layer. What comes to idle lanes gets the threads of all that it leaves idle. Where
    enough waits for it, one batch more is made ready, so that no lane waits for the event loop.

    Args:
        score: windows and a number of threads to log-odds, shape (windows,), in one forward pass.
        model: the threads that `score` runs in, one for each lane.
        batch_tokens: tokens in all lanes together, padding counted. They bound how long a new request waits for its
            turn.
        max_waiting_tokens: more is refused, except from a request that finds nothing waiting.
        special_tokens: that are put around each window.
        pass_tokens: what a batch costs besides its tokens, as so many tokens more.
        max_wait_s: so is a request that what is before it would keep from its last turn for longer than this, by the
            speed of the last batches.
        threads: that `score` may have in all lanes together.
        lanes: batches that run at once.
        on_batch: is told the tokens and seconds of every batch, and the tokens that wait.
    """

    score: Score
    model: Executor
    batch_tokens: int
    max_waiting_tokens: int
    special_tokens: int = 0
    pass_tokens: int = 1
    max_wait_s: float = math.inf
    threads: int = 1
    lanes: int = 1
    on_batch: Callable[[int, float, int], None] | None = None
    _token_s: float = field(default=0.0, init=False)  # seconds of a thread that a token takes, lately
    _running: int = field(default=0, init=False)  # tokens in the model
    _busy_lanes: int = field(default=0, init=False)
    _busy_threads: int = field(default=0, init=False)
    _began: list[float] = field(default_factory=list, init=False)  # when each batch in the model did
    _jobs: deque[_Job] = field(default_factory=deque, init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    _closing: bool = field(default=False, init=False)

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run()) for _ in range(self.lanes + 1)]

    @property
    def alive(self) -> bool:
        """Whether windows handed in now will be scored."""
        ended = not self._tasks or any(task.done() for task in self._tasks)
        hangs = any(time.perf_counter() - began > HUNG_S for began in self._began)
        return not ended and not hangs and not self._closing

    async def close(self) -> None:
        """Take no more work, finish what was taken."""
        self._closing = True
        self._wake.set()
        await asyncio.gather(*self._tasks)

    async def scores(self, rows: Sequence[Ids]) -> Scores:
        """Log-odds of windows, shape (windows,). Cancelling the call takes its windows out of the queue.

        Raises:
            QueueFullError: too much waits already.
            ClosedError: the batcher was closed, or never started.
        """
        if not self.alive:
            raise ClosedError
        if not rows:
            return np.empty(0)
        self._check_room(costs := [padded_length(max(1, len(row) + self.special_tokens)) for row in rows])
        done = asyncio.get_running_loop().create_future()
        job = _Job(rows, costs, done, np.empty(len(rows)), list(range(len(rows))), sum(costs))
        self._jobs.append(job)
        self._wake.set()
        try:
            return await job.done
        finally:
            self._drop(job)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for the model."""
        return sum(job.waiting_tokens for job in self._jobs)

    def _check_room(self, costs: list[int]) -> None:
        waiting, seconds = self.waiting_tokens, self.seconds_before(len(costs))
        if waiting and (seconds > self.max_wait_s or waiting + sum(costs) > self.max_waiting_tokens):
            raise QueueFullError(max(1, math.ceil(seconds)))

    def seconds_before(self, windows: int) -> float:
        """How long what is there keeps a new request with so many windows from its last one."""
        return self._seconds(self._running + sum(job.tokens_before(windows) for job in self._jobs))

    def _seconds(self, tokens: int) -> float:
        """How long all lanes take for so many tokens, by the speed of the last batches."""
        return tokens * self._token_s / self.threads

    def _drop(self, job: _Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)

    async def _run(self) -> None:
        """Batch after batch, each in the lane that is free first."""
        while batch := await self._next_batch():
            rows = [job.rows[position] for job, position in batch]
            tokens = sum(job.costs[position] for job, position in batch)
            threads = self._threads_for_next()
            self._busy_lanes, self._busy_threads = self._busy_lanes + 1, self._busy_threads + threads
            self._running += tokens
            self._began.append(began := time.perf_counter())
            try:
                work = asyncio.get_running_loop().run_in_executor(self.model, self._timed, rows, threads)
                scores, seconds = await work
            except Exception as error:  # it belongs to the callers of this batch; the next one may well succeed
                for job, _ in batch:
                    self._drop(job)
                    job.fail(error)
            else:
                for (job, position), score in zip(batch, scores, strict=True):
                    job.put(position, score)
                self._measure(tokens, seconds, threads)
            self._busy_lanes, self._busy_threads = self._busy_lanes - 1, self._busy_threads - threads
            self._running -= tokens
            self._began.remove(began)

    def _timed(self, rows: Sequence[Ids], threads: int) -> tuple[Scores, float]:
        started = time.perf_counter()
        return self.score(rows, threads), time.perf_counter() - started

    def _threads_for_next(self) -> int:
        """Threads of a batch that was just taken: its share of what is idle, for as many batches as there are."""
        if self.lanes == 1:
            return self.threads
        others = min(max(0, self.lanes - self._busy_lanes - 1), math.ceil(self.waiting_tokens / self._lane_tokens))
        return max(1, (self.threads - self._busy_threads) // (1 + others))

    @property
    def _lane_tokens(self) -> int:
        return lane_tokens(self.batch_tokens, self.lanes)

    def _measure(self, tokens: int, seconds: float, threads: int) -> None:
        # A small batch takes hardly less time than a larger one: by itself it would say that every token is slow.
        token_s = seconds * threads / max(tokens, self._lane_tokens * FULL_ENOUGH)
        self._token_s = 0.8 * self._token_s + 0.2 * token_s if self._token_s else token_s
        if self.on_batch is not None:
            self.on_batch(tokens, seconds, self.waiting_tokens)

    async def _next_batch(self) -> list[tuple[_Job, int]]:
        """What to score next; empty once the batcher is closed and nothing is left."""
        while not (batch := self._take()) and not self._closing:
            self._wake.clear()
            await self._wake.wait()
        return batch

    def _take(self) -> list[tuple[_Job, int]]:
        """The next batch; empty where nothing waits."""
        if self._busy_lanes >= self.lanes and self.waiting_tokens < self._lane_tokens:
            return []  # more may come before a lane is free
        if not self._jobs:
            return []
        coming = self._coming()
        costs = np.asarray([job.costs[position] for job, position in coming])
        batch = [coming[i] for i in cheapest_with_first(costs, self._lane_tokens, self.pass_tokens)]
        for job, position in batch:
            job.take(position)
        # Who had a turn waits until the others had theirs.
        served = {id(job) for job, _ in batch}
        after = [job for job in self._jobs if id(job) in served and job.waiting]
        self._jobs = deque([job for job in self._jobs if id(job) not in served] + after)
        return batch

    def _coming(self) -> list[tuple[_Job, int]]:
        """Windows that come next, in the order of their turns: those of a whole turn, and a few batches of them."""
        coming: list[tuple[_Job, int]] = []
        tokens = turn = 0
        while tokens < self.batch_tokens:
            here = [(job, job.waiting[turn]) for job in self._jobs if turn < len(job.waiting)]
            if not here:
                break
            for job, position in here:
                if tokens >= LOOK_AHEAD * self.batch_tokens or len(coming) == MOST_COMING:
                    return coming
                coming.append((job, position))
                tokens += job.costs[position]
            turn += 1
        return coming


def cheapest_with_first(costs: NDArray[np.int64], budget: int, pass_tokens: int) -> list[int]:
    """Which windows to read together with the first: those of like length that make a token cheapest.

    Args:
        costs: tokens of each window, shape (n,).
        budget: of a batch, padding counted, unless it is the first window alone.
        pass_tokens: what a batch costs besides, as so many tokens more.

    Returns:
        Positions in `costs`, the longest first; 0 is one of them.
    """
    order = np.argsort(-costs, kind="stable")
    longest_first, first = costs[order], int(np.flatnonzero(order == 0)[0])
    before = np.concatenate(([0], np.cumsum(longest_first)))
    starts, stops = np.arange(first + 1)[:, None], np.arange(first + 1, len(costs) + 1)[None, :]
    padded = longest_first[starts] * (stops - starts)
    worth = (before[stops] - before[starts]) / (padded + pass_tokens)
    allowed = (padded <= budget) | ((starts == first) & (stops == first + 1))
    start, stop = np.unravel_index(np.argmax(np.where(allowed, worth, -1.0)), worth.shape)
    return [int(i) for i in order[start : first + 1 + stop]]
