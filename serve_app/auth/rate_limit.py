"""Rate limits (tokens per minute) and concurrency limits of API keys, enforced over all replicas in one place.

This place is a Ray actor (`rate_actor.py`), or the process of a one-process service. A request is admitted before its
body is read (`reserve`), and its tokens are charged when its text has been tokenised (`charge`). A request may cost
more than the balance, which then becomes negative; further requests are admitted when the rate has refilled it. All
replicas together exceed a rate by at most the requests in progress, whose number the concurrency limit bounds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

logger = logging.getLogger("ray.serve")

RESPONSE_S = 1.0  # how long a request waits for the actor
RETRY_S = 5.0  # after a failure the actor is not called for this long
SLOT_S = 300.0  # a request that never ends, such as one of a lost replica, counts as concurrent for this long

Call = Callable[..., Awaitable[Any]]  # calls a method of RateLimits by name; runs even if not awaited


class Reservation(NamedTuple):
    """Permission for one request, or the reason for its rejection and the time to wait."""

    slot: int  # 0: refused, or admitted uncounted
    refused_by: str = ""  # rate | concurrency
    retry_after_s: int = 0


@dataclass
class Account:
    """Token balance and requests in progress of one key."""

    balance: float
    tokens_per_minute: int
    at: float
    slots: dict[int, float] = field(default_factory=dict)  # when each was reserved

    def refill(self, now: float) -> None:
        """Add the tokens accrued since the last refill; the balance is at most one minute's tokens."""
        rate = self.tokens_per_minute
        self.balance, self.at = min(self.balance + (now - self.at) * rate / 60, float(rate)), now


class RateLimits:
    """Accounts of all keys; the class of the actor."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._last_slot = 0

    def reserve(self, key: str, tokens_per_minute: int, max_concurrent: int) -> Reservation:
        """Admit or refuse a request; a limit of 0 means no limit. Admission costs one token."""
        now = self._clock()
        account = self._accounts.setdefault(key, Account(tokens_per_minute, tokens_per_minute, now))
        account.tokens_per_minute = tokens_per_minute
        account.refill(now)
        account.slots = {slot: since for slot, since in account.slots.items() if now - since < SLOT_S}
        if tokens_per_minute and account.balance < 1:
            return Reservation(0, "rate", math.ceil((1 - account.balance) * 60 / tokens_per_minute))
        if max_concurrent and len(account.slots) >= max_concurrent:
            return Reservation(0, "concurrency", 1)
        if tokens_per_minute:
            account.balance -= 1
        self._last_slot += 1
        account.slots[self._last_slot] = now
        return Reservation(self._last_slot)

    def charge(self, key: str, tokens: int) -> None:
        """Subtract the cost of an admitted request; a negative number refunds it."""
        account = self._accounts.get(key)
        if account and account.tokens_per_minute:  # a key without a rate limit owes nothing
            account.refill(self._clock())
            account.balance -= tokens

    def release(self, key: str, slot: int) -> None:
        """End a request."""
        if account := self._accounts.get(key):
            account.slots.pop(slot, None)


class Limiter:
    """A replica's client of the actor. While the actor does not respond, every request is admitted."""

    def __init__(self, call: Call, clock: Callable[[], float] = time.monotonic) -> None:
        self.call, self._clock = call, clock
        self._silent_until = -math.inf

    async def reserve(self, key: str, tokens_per_minute: int, max_concurrent: int) -> Reservation:
        """Ask the actor to admit one request of a key."""
        if self._clock() < self._silent_until:
            return Reservation(0)

        async def ask() -> Reservation:
            return Reservation(*await self.call("reserve", key, tokens_per_minute, max_concurrent))

        response = asyncio.ensure_future(ask())
        try:
            return await asyncio.wait_for(asyncio.shield(response), RESPONSE_S)
        except BaseException as error:
            response.add_done_callback(partial(self._release_late, key))
            if not isinstance(error, Exception):  # the client has disconnected
                raise
            # The actor or its node is lost: Ray restarts it, with full balances.
            self._silent_until = self._clock() + RETRY_S
            logger.warning("Rate limits are off for %g s: their actor failed (%s)", RETRY_S, type(error).__name__)
            return Reservation(0)

    def _release_late(self, key: str, response: asyncio.Future[Reservation]) -> None:
        """Release the slot of a request that no longer waits for it."""
        if not response.cancelled() and response.exception() is None and response.result().slot:
            self.call("release", key, response.result().slot)


def local_limiter() -> Limiter:
    """A limiter for a service of one process; its methods are called on the event loop."""
    limits = RateLimits()

    def call(method: str, *arguments: Any) -> asyncio.Future[Any]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(getattr(limits, method)(*arguments))
        return done

    return Limiter(call)
