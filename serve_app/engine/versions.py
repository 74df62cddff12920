"""Which version answers: the one deployed, a canary for a share of the callers, and one in the shadow for nobody."""

from __future__ import annotations

import asyncio
import hashlib
import logging

from detect_ai.schemas import Verdict
from serve_app.engine.batcher import ClosedError, QueueFullError
from serve_app.engine.engine import Reading, Service, Wanted
from serve_app.engine.metrics import Telemetry

logger = logging.getLogger("ray.serve")

MAX_SHADOWED = 4  # requests that wait for the shadow; more are left out


class Traffic:
    """The versions of a replica. They share the thread of the model, and each has a queue of its own.

    Args:
        main: answers, unless the canary does.
        canary: answers a share of the callers: always the same ones, where they have keys.
        canary_share: of the callers, or of the requests of callers without a key.
        shadow: judges what the main version answered, afterwards, begun only while nobody waits for the model; what
            it says goes to the telemetry alone.
        telemetry: is told how often the shadow agrees.
    """

    def __init__(
        self,
        main: Service,
        canary: Service | None = None,
        canary_share: float = 0.0,
        shadow: Service | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.main, self.canary, self.canary_share, self.shadow = main, canary, canary_share, shadow
        self._telemetry = telemetry or Telemetry()
        self._comparing: set[asyncio.Task[None]] = set()
        if shadow is not None:
            main.on_answer = self._shadowed

    def of(self, caller: str) -> Service:
        """The version that answers a caller (the id of a key, or of a request without one)."""
        if self.canary is None:
            return self.main
        drawn = int.from_bytes(hashlib.blake2b(caller.encode(), digest_size=8).digest()) / 2**64
        return self.canary if drawn < self.canary_share else self.main

    @property
    def services(self) -> list[Service]:
        """All versions."""
        return [service for service in (self.main, self.canary, self.shadow) if service is not None]

    @property
    def alive(self) -> bool:
        """Whether texts handed in now will be judged, by whichever version."""
        return all(service.batcher.alive for service in self.services)

    def start(self) -> None:
        """Begin to work, on the running event loop."""
        for service in self.services:
            service.batcher.start()

    async def close(self) -> None:
        """Take no more work, finish what was taken."""
        for task in self._comparing:
            task.cancel()
        await asyncio.gather(*(service.batcher.close() for service in self.services))

    def _shadowed(self, reading: Reading, verdicts: list[Verdict]) -> None:
        busy = any(service.batcher.waiting_tokens for service in self.services)
        if busy or len(self._comparing) >= MAX_SHADOWED:
            return
        task = asyncio.get_running_loop().create_task(
            self._compare([document.text for document in reading.documents], verdicts)
        )
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _compare(self, texts: list[str], verdicts: list[Verdict]) -> None:
        shadow = self.shadow
        assert shadow is not None
        target = verdicts[0].target_fpr if verdicts and verdicts[0].target_fpr in shadow.detector.targets else None
        try:
            others = await shadow.judge(lambda: shadow.read(texts, Wanted(target)), list)
        except (QueueFullError, ClosedError):
            return
        except Exception as error:  # the shadow fails alone; its message may hold a part of a text
            logger.error("The version in the shadow failed: %s", type(error).__qualname__)
            return
        for mine, other in zip(verdicts, others, strict=True):
            self._telemetry.compared(mine, other)
