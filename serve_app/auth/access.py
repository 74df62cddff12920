"""Authentication, authorization and rate limiting of requests, from method, path and headers alone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers

from detect_ai.core.errors import DetectAIError
from serve_app.auth.api_keys import KeyRing, Scope
from serve_app.auth.rate_limit import Limiter
from serve_app.errors import ProblemError

logger = logging.getLogger("ray.serve")

# Public: pages and their assets, the API description, liveness and readiness.
OPEN_PATHS = frozenset({"/", "/docs", "/card", "/openapi.json", "/healthz", "/readyz"})
OPEN_FOLDERS = ("/static/", "/swagger-ui/")
ADMIN, FEEDBACK = "/v1/admin/", "/v1/feedback"
ANYBODY = "anybody"
STALE_S = 60.0  # keys that could not be read for longer are reported by /readyz


@dataclass(frozen=True)
class Caller:
    """The sender of an admitted request."""

    name: str  # id of the API key, or `anybody` without keys
    limiter: Limiter | None = None  # None: nothing is counted
    tokens_per_minute: int = 0  # rate limit; 0: none
    slot: int = 0  # of the reservation
    scopes: frozenset[Scope] = frozenset()  # all of them where no keys are required

    def charge(self, tokens: int) -> None:
        """Count tokens that the model reads for this request against its rate; a negative number refunds them."""
        if self.limiter and self.tokens_per_minute:
            self.limiter.call("charge", self.name, tokens)

    def release(self) -> None:
        """Release the slot of the request."""
        if self.limiter and self.slot:
            self.limiter.call("release", self.name, self.slot)


class AccessControl:
    """Admits requests by API key, scope, rate limit and concurrency limit.

    `tokens_per_minute` limits each key without its own limit or, if no keys are required, all callers together; 0: no
    limit. `max_concurrent` limits the concurrent requests of one key; 0: no limit. `read_keys` returns the keys;
    `refresh` calls it in a thread; None: no keys are required.
    """

    def __init__(
        self,
        limiter: Limiter,
        tokens_per_minute: int = 0,
        max_concurrent: int = 0,
        read_keys: Callable[[], KeyRing] | None = None,
    ) -> None:
        self._limiter, self._read_keys = limiter, read_keys
        self._tokens_per_minute, self._max_concurrent = tokens_per_minute, max_concurrent
        self.ring = read_keys() if read_keys else KeyRing()
        self._read_at = time.monotonic()

    @property
    def requires_keys(self) -> bool:
        """Whether a request needs an API key."""
        return self._read_keys is not None

    @property
    def keys_age_s(self) -> float:
        """Seconds since the keys were last read; 0 without keys."""
        return time.monotonic() - self._read_at if self.requires_keys else 0.0

    async def authorize(self, method: str, path: str, headers: Headers) -> Caller:
        """Admit a request and return its caller, which must be released. Raises ProblemError: 401, 403 or 429."""
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return Caller(ANYBODY)
        key = None
        if self.requires_keys:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = self.ring.find(token.strip()) if scheme.lower() == "bearer" else None
            if key is None:
                detail = "Expected the header `Authorization: Bearer <key>` with a valid API key from the operator."
                reason = "wrong_key" if token else "no_key"
                raise ProblemError(401, detail, {"WWW-Authenticate": 'Bearer realm="detect_ai"'}, reason)
            labels = {Scope.FEEDBACK, Scope.AUDIT}
            needed = {Scope.ADMIN} if path.startswith(ADMIN) else labels if path == FEEDBACK else {Scope.DETECT}
            if not needed & key.scopes:
                scopes, either = ", ".join(sorted(key.scopes)), " or ".join(sorted(needed))
                raise ProblemError(403, f"This key has the scope {scopes}; this path needs the scope {either}.")
        name, max_concurrent = (key.id, self._max_concurrent) if key else (ANYBODY, 0)
        permitted = key.scopes if key else frozenset(Scope)
        rate = (key and key.tokens_per_minute) or self._tokens_per_minute
        if method != "POST" or not (rate or max_concurrent):
            return Caller(name, scopes=permitted)
        reservation = await self._limiter.reserve(name, rate, max_concurrent)
        if reservation.refused_by:
            seconds, by_rate = reservation.retry_after_s, reservation.refused_by == "rate"
            limit = f"{rate} tokens per minute" if by_rate else f"{max_concurrent} concurrent requests"
            detail = f"The limit of this {'key' if key else 'service'} is {limit}: try again in {seconds} seconds."
            raise ProblemError(429, detail, {"Retry-After": str(seconds)}, reservation.refused_by)
        return Caller(name, self._limiter, rate, reservation.slot, permitted)

    async def refresh(self, every_s: float) -> None:
        """Read the keys periodically."""
        while self._read_keys:
            await asyncio.sleep(every_s)
            try:
                self.ring = await asyncio.get_running_loop().run_in_executor(None, self._read_keys)
                self._read_at = time.monotonic()
            except Exception as error:  # storage is unavailable, or a file is being repaired: retry later
                # Other errors may quote what they read.
                reason = error if isinstance(error, DetectAIError | OSError) else type(error).__qualname__
                message = "API keys could not be read for %.0f s; the known keys stay valid: %s"
                logger.error(message, self.keys_age_s, reason)
