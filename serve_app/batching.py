"""Batches made from the windows of all requests that wait: no timer, no starvation, one model thread."""

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

from detect_ai.batches import padded_length

Ids = NDArray[np.int32]
Scores = NDArray[np.float64]
Score = Callable[[Sequence[Ids]], Scores]

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
    taken: int = 0  # windows that are in a batch or scored
    scored: int = 0

    @property
    def waiting_tokens(self) -> int:
        return sum(self.costs[self.taken :])

    def tokens_before(self, windows: int) -> int:
        """Tokens of it that come before the last window of another with so many windows: they take turns."""
        return sum(self.costs[self.taken : self.taken + windows])

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
    for company. Requests take turns, one window each, so that a long text shares every batch with the short ones
    that came after it.

    Args:
        score: windows to log-odds, shape (windows,). It sorts and pads as it likes.
        model: a single thread that `score` runs in.
        batch_tokens: tokens in a batch, padding within a window's own length class counted. A batch bounds how long
            a new request waits for its turn.
        max_waiting_tokens: more is refused, except from a request that finds nothing waiting.
        max_wait_s: so is a request whose turn would be over later than this, by the speed of the last batches.
        on_batch: is told the tokens and seconds of every batch, and the tokens that wait.
    """

    score: Score
    model: Executor
    batch_tokens: int
    max_waiting_tokens: int
    max_wait_s: float = math.inf
    on_batch: Callable[[int, float, int], None] | None = None
    _token_s: float = field(default=0.0, init=False)  # seconds a token takes, lately
    _running: int = field(default=0, init=False)  # tokens in the model
    _jobs: deque[_Job] = field(default_factory=deque, init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _loop: asyncio.Task[None] | None = field(default=None, init=False)
    _closing: bool = field(default=False, init=False)

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        self._loop = asyncio.get_running_loop().create_task(self._run())

    @property
    def alive(self) -> bool:
        """Whether windows handed in now will be scored."""
        return self._loop is not None and not self._loop.done() and not self._closing

    async def close(self) -> None:
        """Take no more work, finish what was taken."""
        self._closing = True
        self._wake.set()
        if self._loop is not None:
            await self._loop

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
        self._check_room(costs := [padded_length(max(1, len(row))) for row in rows])
        job = _Job(rows, costs, asyncio.get_running_loop().create_future(), np.empty(len(rows)))
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
        waiting = self.waiting_tokens
        ahead = self._running + sum(job.tokens_before(len(costs)) for job in self._jobs)
        is_late = (ahead + sum(costs)) * self._token_s > self.max_wait_s
        if waiting and (is_late or waiting + sum(costs) > self.max_waiting_tokens):
            raise QueueFullError(max(1, math.ceil(waiting * self._token_s)))

    def _drop(self, job: _Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)

    async def _run(self) -> None:
        while batch := await self._next_batch():
            rows = [job.rows[position] for job, position in batch]
            self._running = sum(job.costs[position] for job, position in batch)
            started = time.perf_counter()
            try:
                scores = await asyncio.get_running_loop().run_in_executor(self.model, self.score, rows)
            except Exception as error:  # it belongs to the callers of this batch; the next one may well succeed
                for job, _ in batch:
                    self._drop(job)
                    job.fail(error)
            else:
                for (job, position), score in zip(batch, scores, strict=True):
                    job.put(position, score)
                self._measure(self._running, time.perf_counter() - started)
            self._running = 0

    def _measure(self, tokens: int, seconds: float) -> None:
        # A small batch takes hardly less time than a larger one: by itself it would say that every token is slow.
        token_s = seconds / max(tokens, self.batch_tokens * FULL_ENOUGH)
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
        """One window of each waiting request in turn, until the budget is spent or nothing waits."""
        batch: list[tuple[_Job, int]] = []
        budget = self.batch_tokens
        while self._jobs and (not batch or self._jobs[0].costs[self._jobs[0].taken] <= budget):
            job = self._jobs.popleft()
            batch.append((job, job.taken))
            budget -= job.costs[job.taken]
            job.taken += 1
            if job.taken < len(job.rows):
                self._jobs.append(job)
        return batch
