"""Rate limits that hold over all replicas, without a hop for each request.

One actor keeps a bucket for each key. A replica leases blocks of it and spends them by itself; it asks again when a
block is used up. What it may admit comes from leases alone, so all replicas together never exceed the rate. A
request is admitted while something is left, and its whole cost is taken then: the account may fall below zero, and
the next request waits until that is paid back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("ray.serve")

BLOCKS_A_MINUTE = 20  # a lease is this part of a minute's rate
IDLE_S = 10.0  # what is leased and not asked for so long goes back
ANSWER_S = 1.0  # the actor has so long to answer

Lease = Callable[[str, int, float], Awaitable[float]]


class TooManyError(Exception):
    """A key is over its rate.

    Args:
        retry_after_s: seconds until it may ask again.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


@dataclass
class Bucket:
    """Texts that a key may still send; filled at its rate, up to a minute's worth.

    Args:
        rate_per_minute: texts.
        at: seconds on the clock of the caller.
    """

    rate_per_minute: int
    at: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = float(self.rate_per_minute)

    def take(self, want: float, rate_per_minute: int, now: float) -> float:
        """As many as there are of what is wanted; a negative number puts back."""
        filled = self.level + (now - self.at) * self.rate_per_minute / 60
        self.rate_per_minute, self.at = rate_per_minute, now
        self.level = min(filled, float(rate_per_minute))
        taken = min(want, max(0.0, self.level))
        self.level = min(self.level - taken, float(rate_per_minute))
        return taken


class Ledger:
    """All buckets: the body of the actor, and what a replica has where the actor does not answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def lease(self, key: str, rate_per_minute: int, want: float) -> float:
        """Texts granted, `want` at most; a negative `want` gives unused ones back."""
        now = self._clock()
        bucket = self._buckets.setdefault(key, Bucket(rate_per_minute, now))
        granted = bucket.take(want, rate_per_minute, now)
        if len(self._buckets) > 10_000:  # keys that were deleted long ago; a full bucket says no more than a new one
            self._buckets = {k: b for k, b in self._buckets.items() if now - b.at < 60}
        return granted


@dataclass
class _Account:
    rate: int
    balance: float = 0.0
    empty_until: float = 0.0
    used: float = 0.0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def block(self) -> float:
        return max(1.0, self.rate / BLOCKS_A_MINUTE)


class Limiter:
    """What a replica knows of the rates.

    Args:
        lease: asks the actor: key, rate and number wanted; returns the number granted.
        clock: seconds.
    """

    def __init__(self, lease: Lease, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease, self._clock = lease, clock
        self._accounts: dict[str, _Account] = {}
        self._alone = Ledger(clock)

    async def admit(self, key: str, rate_per_minute: int) -> None:
        """Take one text of a key's rate. Raises TooManyError."""
        account = self._accounts.setdefault(key, _Account(rate_per_minute))
        account.rate = rate_per_minute
        if account.balance < 1 and account.empty_until <= self._clock():
            async with account.asking:  # one lease serves all that wait for it
                if account.balance < 1 and account.empty_until <= self._clock():
                    account.balance += await self._asked(key, account, account.block - account.balance)
                    if account.balance < 1:
                        account.empty_until = self._clock() + (1 - account.balance) * 60 / account.rate
        now = self._clock()
        if account.balance < 1:
            raise TooManyError(max(1, math.ceil(account.empty_until - now)))
        account.balance -= 1
        account.used = now

    async def wait(self, key: str, rate_per_minute: int) -> None:
        """As `admit`, but waits where that refuses."""
        while True:
            try:
                return await self.admit(key, rate_per_minute)
            except TooManyError as error:
                await asyncio.sleep(error.retry_after_s)

    def spend(self, key: str, rate_per_minute: int, texts: int) -> None:
        """Take what an admitted request costs beside its first text; a negative number gives back."""
        # The account may have been settled and closed while the request was read.
        account = self._accounts.setdefault(key, _Account(rate_per_minute))
        account.balance -= texts
        account.used = self._clock()

    async def settle(self) -> None:
        """Give back what has been idle, and pay what is owed."""
        now = self._clock()
        for key, account in list(self._accounts.items()):
            is_idle = now - account.used >= IDLE_S or account.balance < 0
            if account.asking.locked() or not is_idle:
                continue
            want, account.balance = -account.balance, 0.0
            if want:
                account.balance += await self._asked(key, account, want) - want
            if account.balance == 0 and account.used <= now:
                self._accounts.pop(key, None)

    async def _asked(self, key: str, account: _Account, want: float) -> float:
        try:
            return await asyncio.wait_for(self._lease(key, account.rate, want), ANSWER_S)
        except Exception as error:  # a dead actor, a lost node: Ray starts it again; nobody is refused meanwhile
            logger.warning(
                "The actor of the rate limits did not answer (%s): counting here alone", type(error).__name__
            )
            return self._alone.lease(key, account.rate, want)


def shared_ledger() -> Lease:
    """The one actor of the cluster, started when it is not there."""
    import ray

    actor: Any = (
        ray.remote(Ledger)
        .options(
            name="quota",
            namespace="detect_ai",
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
        )
        .remote()
    )

    async def lease(key: str, rate_per_minute: int, want: float) -> float:
        granted: float = await actor.lease.remote(key, rate_per_minute, want)
        return granted

    return lease


def stop_shared_ledger() -> None:
    """End the actor, if there is one."""
    import ray

    try:
        ray.kill(ray.get_actor("quota", namespace="detect_ai"))
    except ValueError:
        return
