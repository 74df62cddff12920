"""Load generator of `benchmarks/serve.py`, in a process of its own: `python benchmarks/load.py TEXTS` (a JSON list).

Reads lines of JSON and answers each with one: `url`, `form` (of requests and answers), `texts` (indices, in order) and
either `concurrency`, or `rate`: requests per second at random times, drawn with `seed`, whether or not answers come.
The first `warm` answers and, with several connections, those after the last request was sent, are not measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

# By form: path, body for a text, probability of AI in an answer.
FORMS: dict[str, tuple[str, Callable[[str], Any], Callable[[Any], float]]] = {
    "ours": ("/v1/detect", lambda text: {"text": text}, lambda answer: answer["verdicts"][0]["probability"]),
    "pipeline": ("/", lambda text: {"text": text}, lambda answer: of_labels(answer)),
    "litserve": ("/predict", lambda text: {"text": text}, lambda answer: answer["probability"]),
    "infinity": ("/classify", lambda text: {"input": [text]}, lambda answer: of_labels(answer["data"][0])),
}


def of_labels(labels: list[dict[str, Any]]) -> float:
    """Probability of AI in an answer with scored labels, only the most likely one or both."""
    first = labels[0]
    return first["score"] if first["label"] == "ai" else 1 - first["score"]


def main() -> int:
    """Answer lines until the input ends. Returns the exit code."""
    texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for line in sys.stdin:
        print(json.dumps(asyncio.run(Load(texts, **json.loads(line)).run())), flush=True)
    return 0


class Load:
    """Clients with a persistent connection and one request at a time each, or requests at a rate."""

    def __init__(
        self,
        bodies: list[str],
        url: str,
        form: str,
        texts: list[int],
        concurrency: int = 0,
        rate: float = 0.0,
        warm: int = 0,
        seed: int = 0,
    ) -> None:
        path, body, self._read = FORMS[form]
        self._url = url + path
        self._bodies = {position: json.dumps(body(bodies[position])).encode() for position in texts}
        self._concurrency, self._rate, self._warm, self._seed = concurrency, rate, warm, seed
        self._waiting, self._last_sent = deque(texts), 0.0
        self._answers: list[tuple[int, float, float, bytes]] = []  # position, sent, answered, body

    async def run(self) -> dict[str, Any]:
        """Texts per second, latencies in seconds, CPU fraction of this process, and the answers."""
        connector = aiohttp.TCPConnector(limit=self._concurrency)
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            began, cpu = time.perf_counter(), time.process_time()
            if self._rate:
                await self._at_rate(session)
            else:
                await asyncio.gather(*(self._client(session) for _ in range(self._concurrency)))
            load_cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
        measured = self._answers[self._warm :]
        if self._concurrency > 1:  # while the last requests are answered the load is no longer constant
            measured = [answer for answer in measured if answer[2] <= self._last_sent]
        first = self._answers[self._warm - 1][2] if self._warm else measured[0][1]
        return {
            "texts_per_second": len(measured) / (measured[-1][2] - first),
            "seconds": [answered - sent for _, sent, answered, _ in measured],
            "load_cpu": load_cpu,
            "positions": [position for position, *_ in self._answers],
            "probabilities": [self._read(json.loads(body)) for *_, body in self._answers],
        }

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while self._waiting:
            await self._ask(session, self._waiting.popleft())

    async def _at_rate(self, session: aiohttp.ClientSession) -> None:
        drawn, requests = random.Random(self._seed), []
        while self._waiting:
            requests.append(asyncio.create_task(self._ask(session, self._waiting.popleft())))
            await asyncio.sleep(drawn.expovariate(self._rate))
        await asyncio.gather(*requests)

    async def _ask(self, session: aiohttp.ClientSession, position: int) -> None:
        sent = self._last_sent = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        async with session.post(self._url, data=self._bodies[position], headers=headers) as response:
            body = await response.read()
            answered = time.perf_counter()
        if response.status != 200:
            raise SystemExit(f"{self._url} answered {response.status}: {body[:300]!r}")
        self._answers.append((position, sent, answered, body))


if __name__ == "__main__":
    sys.exit(main())
