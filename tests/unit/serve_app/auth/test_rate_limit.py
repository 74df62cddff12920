"""Rates: right over several replicas, few questions to the actor, debts paid, a dead actor survived."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from serve_app.auth.rate_limit import BLOCKS_A_MINUTE, IDLE_S, Ledger, Limiter, TooManyError


class World:
    """A clock that the test moves, a ledger, and a count of the questions it was asked."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, 0
        self.ledger = Ledger(self.clock)

    def clock(self) -> float:
        return self.now

    async def lease(self, key: str, rate: int, want: float) -> float:
        self.asked += 1
        await asyncio.sleep(0)
        return self.ledger.lease(key, rate, want)

    def replica(self) -> Limiter:
        return Limiter(self.lease, self.clock)


async def admitted(replica: Limiter, times: int, rate: int, key: str = "k") -> int:
    """How many of so many requests were let in."""
    count = 0
    for _ in range(times):
        try:
            await replica.admit(key, rate)
        except TooManyError:
            continue
        count += 1
    return count


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_all_replicas_together_admit_the_rate_and_no_more(replicas: int) -> None:
    world, rate, drawn = World(), 600, random.Random(replicas)

    async def scenario() -> None:
        fleet = [world.replica() for _ in range(replicas)]
        at_once = sum(await asyncio.gather(*(admitted(each, 400, rate) for each in fleet for _ in range(2))))
        assert at_once == rate  # the bucket was full
        later = 0
        for _ in range(600):  # two minutes, far more asked than allowed
            world.now += 0.2
            later += sum([await admitted(drawn.choice(fleet), 10, rate)])
        assert rate * 2 * 0.9 <= later <= rate * 2

    run(scenario())


def test_a_lease_serves_many_requests() -> None:
    world = World()

    async def scenario() -> None:
        assert await admitted(world.replica(), 300, 6000) == 300
        assert world.asked == 300 / (6000 / BLOCKS_A_MINUTE)

    run(scenario())


def test_requests_that_wait_for_a_lease_share_it() -> None:
    world = World()

    async def scenario() -> None:
        replica = world.replica()
        await asyncio.gather(*(admitted(replica, 1, 600) for _ in range(30)))
        assert world.asked == 1

    run(scenario())


def test_a_refusal_says_when_to_come_back_and_asks_nobody_until_then() -> None:
    world = World()

    async def scenario() -> None:
        replica = world.replica()
        assert await admitted(replica, 61, 60) == 60
        asked = world.asked
        with pytest.raises(TooManyError) as refused:
            await replica.admit("k", 60)
        assert (refused.value.retry_after_s, world.asked) == (1, asked)
        world.now += 1
        await replica.admit("k", 60)

    run(scenario())


def test_a_request_of_many_texts_is_let_in_and_paid_for_afterwards() -> None:
    world = World()

    async def scenario() -> None:
        replica = world.replica()
        await replica.admit("k", 60)
        replica.spend("k", 60, 89)  # with the first, a minute and a half's worth; a minute's was there
        with pytest.raises(TooManyError) as refused:
            await replica.admit("k", 60)
        assert refused.value.retry_after_s == 31
        world.now += 31
        await replica.admit("k", 60)

    run(scenario())


def test_a_debt_of_many_minutes_is_paid_at_the_rate() -> None:
    world = World()

    async def scenario() -> None:
        replica = world.replica()
        await replica.admit("k", 60)
        replica.spend("k", 60, 299)
        for _ in range(48):
            world.now += 5
            await replica.settle()
            with pytest.raises(TooManyError):
                await replica.admit("k", 60)
        world.now += 5
        await replica.settle()
        await replica.admit("k", 60)

    run(scenario())


def test_a_request_that_took_long_to_come_is_paid_for_all_the_same() -> None:
    world = World()

    async def scenario() -> None:
        replica = world.replica()
        await replica.admit("k", 60)
        world.now += 15
        await replica.settle()
        replica.spend("k", 60, 90)
        with pytest.raises(TooManyError):
            await replica.admit("k", 60)

    run(scenario())


def test_what_is_given_back_may_be_spent_again() -> None:
    world = World()

    async def scenario() -> None:
        replica = world.replica()
        await replica.admit("k", 60)
        replica.spend("k", 60, 200)
        replica.spend("k", 60, -200)
        await replica.admit("k", 60)

    run(scenario())


def test_keys_do_not_share() -> None:
    world = World()

    async def scenario() -> None:
        replica = world.replica()
        assert await admitted(replica, 100, 60, "a") == 60
        assert await admitted(replica, 100, 60, "b") == 60

    run(scenario())


def test_what_lies_idle_goes_to_another_replica() -> None:
    world, rate = World(), 60

    async def scenario() -> None:
        idle, busy = world.replica(), world.replica()
        await idle.admit("k", rate)
        assert await admitted(busy, 100, rate) == rate - rate // BLOCKS_A_MINUTE
        world.now += IDLE_S
        await idle.settle()
        assert await admitted(busy, 100, rate) == int(IDLE_S) + rate // BLOCKS_A_MINUTE - 1

    run(scenario())


def test_a_dead_actor_refuses_nobody_at_once() -> None:
    async def dead(key: str, rate: int, want: float) -> float:
        raise ConnectionError

    async def scenario() -> None:
        world = World()
        assert await admitted(Limiter(dead, world.clock), 100, 60) == 60

    run(scenario())


def test_a_new_rate_holds_from_the_next_request() -> None:
    world = World()

    async def scenario() -> None:
        replica = world.replica()
        assert await admitted(replica, 100, 60) == 60
        world.now += 60
        assert await admitted(replica, 100, 30) <= 30

    run(scenario())
