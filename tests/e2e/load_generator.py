"""Load generator for tests: asynchronous clients that check every answer."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from detect_ai.detector.detector import Detector
from tests.fixtures import tiny_models


@dataclass
class Seen:
    """Observed answers; `refused` has the seconds in the replica of each 503; those of the proxy have none."""

    statuses: list[int] = field(default_factory=list)  # of every request, after the retries of its client
    seconds: list[float] = field(default_factory=list)  # latency of each answer with status 200
    refused: list[float] = field(default_factory=list)  # from `Server-Timing`
    wrong: list[str] = field(default_factory=list)  # answers that differ from the model's
    versions: list[str] = field(default_factory=list)  # of each answer


class Load:
    """Clients that send texts of `words` (minimum, maximum) words; any of the `detectors` may answer.

    `tokens` are API keys, used in turn.
    """

    def __init__(
        self,
        url: str,
        *detectors: Detector,
        words: tuple[int, int] = (20, 120),
        retries: int = 0,
        tokens: Sequence[str] = (),
    ) -> None:
        drawn = random.Random(0)
        self.texts = [tiny_models.text(kind, drawn, drawn.randint(*words)) for kind in ("human", "ai") * 16]
        self.url, self.retries, self.seen = url, retries, Seen()
        self.headers = [{"Authorization": f"Bearer {token}"} for token in tokens] or [{}]
        self._expected = {d.version: [v.probability for v in d.detect(self.texts)] for d in detectors}

    async def run(self, clients: int, until: Callable[[], bool]) -> Seen:
        """Send requests until a condition holds."""
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=self.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(self._one(client, number, until) for number in range(clients)))
        return self.seen

    async def offer(self, per_second: float, seconds: float) -> Seen:
        """Send requests at a fixed rate, whether or not answers come."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=60, limits=limits) as client:
            requests = []
            for number in range(int(per_second * seconds)):
                requests.append(asyncio.create_task(self._ask(client, number % len(self.texts))))
                await asyncio.sleep(1 / per_second)
            self.seen.statuses += await asyncio.gather(*requests)
        return self.seen

    @asynccontextmanager
    async def during(self, clients: int) -> AsyncIterator[Seen]:
        """Send requests while the block runs."""
        ending = asyncio.Event()
        asking = asyncio.create_task(self.run(clients, ending.is_set))
        try:
            yield self.seen
        finally:
            ending.set()
            await asking

    async def _one(self, client: httpx.AsyncClient, number: int, until: Callable[[], bool]) -> None:
        while not until():
            number = (number + 1) % len(self.texts)
            for _ in range(self.retries + 1):
                status = await self._ask(client, number)
                if status == 200:
                    break
            self.seen.statuses.append(status)

    async def _ask(self, client: httpx.AsyncClient, number: int) -> int:
        started = time.perf_counter()
        try:
            headers = self.headers[number % len(self.headers)]
            response = await client.post("/v1/detect", json={"text": self.texts[number]}, headers=headers)
        except httpx.TransportError:
            return 0
        seconds = time.perf_counter() - started
        if response.status_code == 200:
            self.seen.seconds.append(seconds)
            self._check(response.json()["verdicts"][0], number)
        elif response.status_code == 503:
            took = re.search(r"dur=([\d.]+)", response.headers.get("Server-Timing", ""))
            self.seen.refused += [float(took[1]) / 1000] if took else []
        return response.status_code

    def _check(self, verdict: dict[str, object], number: int) -> None:
        version = str(verdict["model_version"])
        self.seen.versions.append(version)
        if verdict["probability"] != pytest.approx(self._expected[version][number], abs=1e-4):
            self.seen.wrong.append(f"text {number} by {version}")


async def wait_for(reached: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


REPLICA = "ray::ServeReplica:detect_ai:Detector"


def actors(name: str = REPLICA) -> list[psutil.Process]:
    """Processes of this machine whose Ray name has this prefix."""
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if " ".join(process.info["cmdline"] or []).startswith(name)]
