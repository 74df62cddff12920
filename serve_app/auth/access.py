"""Who may ask for what, and how much: keys, scopes and rates, checked before a body is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import Headers

from detect_ai.core.errors import ConfigError
from serve_app.api.errors import ProblemError
from serve_app.auth.api_keys import ApiKey, KeyRing, Scope
from serve_app.auth.rate_limit import Limiter, TooManyError

logger = logging.getLogger("ray.serve")

# What tells nothing of anybody: pages and their files, the API's description, whether the service lives.
OPEN_PATHS = frozenset({"/", "/docs", "/card", "/openapi.json", "/healthz", "/readyz"})
OPEN_FOLDERS = ("/static/", "/swagger-ui/")
ADMIN = "/v1/admin/"
ANYBODY = "anybody"
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="detect_ai"'}


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: the id of the key, or `anybody` without keys.
        spend: takes so many texts of the rate, beside the one that was taken when the request came.
        pace: takes one more text, and waits until the rate allows it.
    """

    name: str
    spend: Callable[[int], None]
    pace: Callable[[], Awaitable[None]]


class Gate:
    """Decides on a request by its head.

    Args:
        limiter: of the rates.
        rate_per_minute: texts of a key that has no rate of its own; 0: no limit.
        read_keys: reads the valid keys again, in a thread; None: everybody may ask.
    """

    def __init__(self, limiter: Limiter, rate_per_minute: int, read_keys: Callable[[], KeyRing] | None = None) -> None:
        self._limiter, self._rate, self._read_keys = limiter, rate_per_minute, read_keys
        self.ring = read_keys() if read_keys else KeyRing()
        self._task: asyncio.Task[None] | None = None

    @property
    def asks_for_keys(self) -> bool:
        """Whether a request needs a key."""
        return self._read_keys is not None

    async def admit(self, method: str, path: str, headers: Headers) -> Caller:
        """Let a request in. Raises ProblemError: 401, 403 or 429."""
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return Caller(ANYBODY, _free, _at_once)
        key = self._key(path, headers) if self._read_keys else None
        name, rate = (key.id, key.rate_per_minute or self._rate) if key else (ANYBODY, self._rate)
        if not rate or method != "POST":
            return Caller(name, _free, _at_once)
        try:
            await self._limiter.admit(name, rate)
        except TooManyError as error:
            detail = f"At most {rate} texts a minute are read for this key: try again in {error.retry_after_s} seconds."
            raise ProblemError(429, detail, {"Retry-After": str(error.retry_after_s)}) from None
        return Caller(name, partial(self._limiter.spend, name, rate), partial(self._limiter.wait, name, rate))

    def _key(self, path: str, headers: Headers) -> ApiKey:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = self.ring.find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            detail = "Expected the header `Authorization: Bearer <key>` with a valid API key; the operator makes one."
            raise ProblemError(401, detail, CHALLENGE)
        needed = Scope.ADMIN if path.startswith(ADMIN) else Scope.DETECT
        if needed not in key.scopes:
            scopes = ", ".join(sorted(key.scopes))
            raise ProblemError(403, f"This key has the scope {scopes}; the scope {needed} is needed here.")
        return key

    def start(self, refresh_s: float) -> None:
        """Read the keys again and settle the rates from time to time, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep_up(refresh_s))

    async def stop(self) -> None:
        """End what `start` began."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _keep_up(self, refresh_s: float) -> None:
        while True:
            await asyncio.sleep(refresh_s)
            await self._refresh()
            await self._limiter.settle()

    async def _refresh(self) -> None:
        if self._read_keys is None:
            return
        try:
            self.ring = await asyncio.get_running_loop().run_in_executor(None, self._read_keys)
        except Exception as error:  # a file being mended, a bucket away: the next time may succeed
            known = error if isinstance(error, ConfigError | OSError) else type(error).__qualname__
            logger.error("The API keys could not be read, those known stay valid: %s", known)


def _free(_: int) -> None:
    """Where no rate is counted."""


async def _at_once() -> None:
    """Where no rate is counted."""
