"""Route callers to the deployed version or to a canary, and isolate the canary's failures."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve_app.engine.batcher import ClosedError
from serve_app.engine.engine import Engine
from serve_app.errors import ProblemError, QueueFullError

T = TypeVar("T")
logger = logging.getLogger("ray.serve")


class Versions:
    """The engines of a replica: the deployed version, and a canary that serves a fraction of the callers.

    Each has threads and a queue of its own, so a canary that hangs does not block the deployed version. The health of a
    replica depends on the deployed version alone. The canary always serves the same callers.
    """

    def __init__(self, main: Engine, canary: Engine | None = None, canary_fraction: float = 0.0) -> None:
        self.main, self.canary, self.canary_fraction = main, canary, canary_fraction
        self.engines = [main, canary] if canary else [main]

    def choose(self, caller: str) -> Engine:
        """The version that serves a caller (a key id, or a request id without keys)."""
        if self.canary is None or not self.canary.batcher.runs_within(self.main.config.request_timeout_s):
            return self.main
        position = int.from_bytes(hashlib.blake2b(caller.encode(), digest_size=8).digest()) / 2**64
        return self.canary if position < self.canary_fraction else self.main

    async def run(self, engine: Engine, work: Callable[[Engine], Awaitable[T]]) -> tuple[T, Engine]:
        """The result of an engine, and the engine that produced it: the main one if the canary fails."""
        try:
            return await work(engine), engine
        except (ProblemError, QueueFullError, ClosedError):
            raise
        except Exception as error:  # its message may contain a part of a text
            if engine is self.main:
                raise
            logger.error("Canary %s failed: %s", engine.detector.version, type(error).__qualname__)
            self.main.record("problems", reason="canary")
            return await work(self.main), self.main

    def start(self) -> None:
        """Start the batchers, on the running event loop."""
        for engine in self.engines:
            engine.batcher.start()

    def report(self) -> None:
        """Record the gauges; Ray forgets those that are not set again within 20 seconds."""
        for engine in self.engines:
            role, version = "main" if engine is self.main else "canary", engine.detector.version
            engine.record("loaded", 1, role=role, model_version=version)
            engine.record("waiting_tokens", engine.batcher.waiting_tokens, model_version=version)
        if self.main.log:
            self.main.record("log_age_seconds", self.main.log.age_s)

    async def close(self) -> None:
        """Accept no more requests and finish those accepted."""
        for engine in self.engines:
            if engine is self.main or engine.batcher.alive:
                await engine.batcher.close()
