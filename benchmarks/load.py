"""Load generator of `benchmarks/serve.py`, in a process of its own: `python benchmarks/load.py TEXTS` (a JSON list).

Reads lines of JSON and answers each with one: `url`, `form` (of requests and answers), `concurrency`, and either `only`
(indices of texts, each sent once) or `warm` and `measured`: numbers of requests before and during the measurement. The
load is constant until the last measured answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
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
    """Probability of AI in an answer of labels with scores: of the most likely one, or of both."""
    first = labels[0]
    return first["score"] if first["label"] == "ai" else 1 - first["score"]


def main() -> int:
    """Answer lines until the input ends. Returns the exit code."""
    texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for line in sys.stdin:
        print(json.dumps(asyncio.run(Load(texts, **json.loads(line)).run())), flush=True)
    return 0


class Load:
    """Concurrent clients, each with a persistent connection and one request at a time."""

    def __init__(
        self,
        texts: list[str],
        url: str,
        form: str,
        concurrency: int = 1,
        only: list[int] | None = None,
        warm: int = 0,
        measured: int = 0,
    ) -> None:
        path, body, self._read = FORMS[form]
        self._url = url + path
        self._bodies = [json.dumps(body(text)).encode() for text in texts]
        self._concurrency = concurrency
        self._order: Iterator[int] = iter(only) if only is not None else cycle(range(len(texts)))
        self._until = len(only) if only is not None else warm + measured
        self._warm = warm
        self._answers: list[tuple[int, float, float, bytes]] = []  # position, sent, answered, body

    async def run(self) -> dict[str, Any]:
        """Texts per second, latencies in seconds, CPU fraction of this process, and the answers."""
        connector = aiohttp.TCPConnector(limit=self._concurrency)
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            began, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(self._client(session) for _ in range(self._concurrency)))
            load_cpu = (time.process_time() - cpu) / (time.perf_counter() - began)
        measured = self._answers[self._warm : self._until]
        first = self._answers[self._warm - 1][2] if self._warm else measured[0][1]
        return {
            "texts_per_second": len(measured) / (measured[-1][2] - first),
            "seconds": [answered - sent for _, sent, answered, _ in measured],
            "load_cpu": load_cpu,
            "positions": [position for position, *_ in measured],
            "probabilities": [self._read(json.loads(body)) for *_, body in measured],
        }

    async def _client(self, session: aiohttp.ClientSession) -> None:
        headers = {"Content-Type": "application/json"}
        while len(self._answers) < self._until and (position := next(self._order, None)) is not None:
            sent = time.perf_counter()
            async with session.post(self._url, data=self._bodies[position], headers=headers) as response:
                body = await response.read()
                answered = time.perf_counter()
            if response.status != 200:
                raise SystemExit(f"{self._url} answered {response.status}: {body[:300]!r}")
            self._answers.append((position, sent, answered, body))


if __name__ == "__main__":
    sys.exit(main())
