"""Rate and concurrency limits: exact over concurrent requests and several replicas."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from serve_app.auth.rate_limit import RETRY_S, SLOT_S, Limiter, RateLimits, Reservation


class Cluster:
    """An actor behind a delay and a clock that the test moves; like Ray, it runs calls that nobody awaits."""

    def __init__(self, delay: float = 0.0) -> None:
        self.now, self.delay = 0.0, delay
        self.actor = RateLimits(lambda: self.now)

    def call(self, method: str, *arguments: Any) -> Awaitable[Any]:
        async def run() -> Any:
            await asyncio.sleep(self.delay)
            return getattr(self.actor, method)(*arguments)

        return asyncio.ensure_future(run())

    def replica(self) -> Limiter:
        return Limiter(self.call, lambda: self.now)


@pytest.mark.parametrize("replicas", [1, 3])
def test_concurrent_requests_never_lose_a_charge(replicas: int) -> None:
    """8 connections send 256 tokens per request; 60 tokens per minute are allowed."""
    cluster, rate, connections, cost = Cluster(delay=0.005), 60, 8, 256
    drawn, charged = random.Random(replicas), 0

    async def client(limiter: Limiter) -> None:
        nonlocal charged
        for _ in range(40):
            reservation = await limiter.reserve("k", rate, 0)
            if reservation.slot:
                await asyncio.sleep(0.02 * drawn.random())  # the body is read
                limiter.call("charge", "k", cost - 1)
                charged += cost
                limiter.call("release", "k", reservation.slot)
            cluster.now += 0.5

    async def scenario() -> None:
        fleet = [cluster.replica() for _ in range(replicas)]
        await asyncio.gather(*(client(fleet[i % replicas]) for i in range(connections)))
        await asyncio.sleep(0.05)
        minutes = cluster.now / 60
        assert charged > rate
        assert charged <= rate * (1 + minutes) + connections * cost
        cluster.actor.charge("k", 0)
        debt = cluster.actor._accounts["k"].balance
        assert debt == pytest.approx(rate * (1 + minutes) - charged, abs=rate)

    asyncio.run(scenario())


def test_a_debt_is_paid_back_at_the_rate() -> None:
    cluster = Cluster()
    limits = cluster.actor
    assert limits.reserve("k", 60, 0) == Reservation(1)
    limits.charge("k", 289)
    limits.charge("k", -200)  # a refund
    assert limits.reserve("k", 60, 0) == Reservation(0, "rate", 31)
    cluster.now += 31
    assert limits.reserve("k", 60, 0).slot
    assert limits.reserve("other", 60, 0).slot


def test_a_key_without_a_rate_gathers_no_debt() -> None:
    cluster = Cluster()
    limits = cluster.actor
    limits.reserve("k", 0, 5)
    limits.charge("k", 10**6)
    cluster.now += 1
    limits.reserve("k", 60, 5)
    cluster.now += 2
    assert limits.reserve("k", 60, 5).slot


def test_concurrency_is_limited_per_key() -> None:
    cluster = Cluster()
    limits = cluster.actor
    slots = [limits.reserve("k", 0, 2).slot for _ in range(2)]
    assert limits.reserve("k", 0, 2) == Reservation(0, "concurrency", 1)
    assert limits.reserve("other", 0, 2).slot
    limits.release("k", slots[0])
    assert limits.reserve("k", 0, 2).slot
    cluster.now += SLOT_S  # their replica was lost
    assert limits.reserve("k", 0, 2).slot


@pytest.mark.parametrize("leaves", ["limiter", "client"])
def test_a_late_reservation_is_released(leaves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.auth.rate_limit.RESPONSE_S", 0.01 if leaves == "limiter" else 60)
    cluster = Cluster(delay=0.05)

    async def scenario() -> None:
        request = asyncio.create_task(cluster.replica().reserve("k", 0, 1))
        await asyncio.sleep(0.02)
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled() == (leaves == "client")
        await asyncio.sleep(0.15)
        assert cluster.actor.reserve("k", 0, 1).slot == 2  # the first was reserved and released

    asyncio.run(scenario())


@pytest.mark.parametrize("mock", [AsyncMock, Mock])  # the call fails when it is awaited, or when it is made
def test_requests_are_admitted_while_the_actor_is_down(mock: type[Mock], serve_log: pytest.LogCaptureFixture) -> None:
    cluster, dead = Cluster(), mock(side_effect=ConnectionError)

    async def scenario() -> None:
        limiter = Limiter(dead, lambda: cluster.now)
        for _ in range(100):
            assert await limiter.reserve("k", 60, 1) == Reservation(0)
        assert dead.call_count == 1  # later requests do not wait for it
        cluster.now += RETRY_S
        await limiter.reserve("k", 60, 1)
        assert dead.call_count == 2

    asyncio.run(scenario())
    assert "Rate limits are off for 5 s" in serve_log.text
