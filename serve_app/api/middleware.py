"""ASGI middleware for every request: request id, body size limit, host and origin checks, access control, headers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
import uuid
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detect_ai.core.config import LOOPBACK, ServeConfig
from serve_app.auth.access import ANYBODY, AccessControl, Caller
from serve_app.engine.metrics import Record
from serve_app.errors import ProblemError

logger = logging.getLogger("ray.serve")

DISCONNECTED = 499  # status of a request whose client disconnected before the response
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_PORT = re.compile(r":\d*$")
_SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
]


class Guard:
    """ASGI middleware around the whole application.

    Serve's proxy adds `X-Request-ID` (the client's or a new one) to every request and response, including its own
    errors; the middleware stores it as `request.state.request_id`. Without that proxy, `stamp_request_id` adds it to
    responses. Every response gets `X-Model-Version` and `Server-Timing`. HEAD is handled like GET. A service on
    loopback without keys accepts only loopback host names, which prevents DNS rebinding. `model_version` is reported
    unless a route has chosen another version.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: AccessControl,
        record: Record,
        config: ServeConfig,
        model_version: str,
        stamp_request_id: bool = False,
    ) -> None:
        self.app, self.access, self.record = app, access, record
        self.config, self.model_version, self.stamp_request_id = config, model_version, stamp_request_id
        self.hosts = LOOPBACK if config.is_local and not access.requires_keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, is_head, status = time.perf_counter(), scope["method"] == "HEAD", 0
        if is_head:  # FastAPI's routes do not handle it
            scope = {**scope, "method": "GET"}
        headers, state, caller = Headers(scope=scope), scope.setdefault("state", {}), Caller(ANYBODY)
        request_id = headers.get("x-request-id", "")
        state["request_id"] = request_id = request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        is_upload = scope["path"] == "/v1/detect/file"
        max_bytes = self.config.max_upload_bytes if is_upload else self.config.max_body_bytes

        async def send_stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = self.own_headers(state, time.perf_counter() - began)
                message = {**message, "headers": [*message["headers"], *_SECURITY_HEADERS, *own]}
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            self.check_head(scope["method"], headers, max_bytes)
            state["caller"] = caller = await self.access.authorize(scope["method"], scope["path"], headers)
            await self.app(scope, bounded(receive, max_bytes), send_stamped)
        except ClientDisconnect:
            status = DISCONNECTED
        except asyncio.CancelledError:  # Serve cancels a request whose client has disconnected
            status = DISCONNECTED
            raise
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else internal(error, request_id)
            self.record("problems", reason=problem.reason)
            if not status:
                await problem.response(request_id)(scope, receive, send_stamped)
        finally:
            caller.release()
            self.report(scope, status or DISCONNECTED, caller.name, time.perf_counter() - began)

    def own_headers(self, state: dict[str, Any], seconds: float) -> list[tuple[bytes, bytes]]:
        """Headers of every response: the version that answers, the time it took and, if stamped, the request id."""
        version, timing = state.get("model_version", self.model_version), f"replica;dur={1000 * seconds:.1f}"
        headers = [(b"x-model-version", version.encode()), (b"server-timing", timing.encode())]
        return [*headers, (b"x-request-id", state["request_id"].encode())] if self.stamp_request_id else headers

    def report(self, scope: Scope, status: int, key: str, seconds: float) -> None:
        """Count a request and write it to the access log. Neither includes its path, which could contain text."""
        route, state = getattr(scope.get("route"), "path", "other"), scope["state"]
        self.record("requests", route=route, status=str(status))
        fields = {"key": key, "model_version": state.get("model_version", self.model_version)}
        fields["tokens"] = state.get("tokens", 0)
        logger.info("%s %s %d %.1fms", scope["method"], route, status, 1000 * seconds, extra=fields)

    def check_head(self, method: str, headers: Headers, max_bytes: int) -> None:
        """Reject an invalid request id (400), an oversized body (413), another host (421) or a cross-origin POST (403).

        A form or a `no-cors` fetch needs no CORS preflight: the page cannot read the response, but its request would be
        processed (CSRF). Same-site pages of another origin are rejected too, because all ports of localhost are one
        site. Clients that are not browsers send neither `Origin` nor `Sec-Fetch-Site`.
        """
        if not _REQUEST_ID.fullmatch(headers.get("x-request-id", "-")):
            raise ProblemError(400, "X-Request-ID: expected 1 to 128 printable ASCII characters without spaces.")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > max_bytes:
            raise too_large(f"{length} bytes", max_bytes)
        host = headers.get("host", "")
        if self.hosts is not None and _PORT.sub("", host).strip("[]").lower() not in self.hosts:
            names = " or ".join(self.hosts)
            raise ProblemError(421, f"Host: expected {names}: under other names the service needs API keys.")
        origin, site, listed = headers.get("origin"), headers.get("sec-fetch-site"), self.config.cors_origins
        if method != "POST" or "*" in listed or origin in listed:
            return
        # A proxy may change `Host`, so `Sec-Fetch-Site` takes precedence; browsers send it to secure URLs only.
        own = (None, f"http://{host}", f"https://{host}")
        if not (site in ("same-origin", "none") if site else origin in own):
            detail = "Origin: pages of other origins may not use this service: see serve.cors_origins."
            raise ProblemError(403, detail, reason="origin")


def bounded(receive: Receive, max_bytes: int) -> Receive:
    """Wrap `receive` so that a body of more than `max_bytes` raises ProblemError."""
    num_bytes = 0

    async def receive_within_bound() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise too_large(f"more than {max_bytes} bytes", max_bytes)
        return message

    return receive_within_bound


def too_large(size: str, max_bytes: int) -> ProblemError:
    """The problem for a body that is too long."""
    return ProblemError(413, f"The body has {size}; the limit is {max_bytes}: send the texts in several requests.")


def internal(error: Exception, request_id: str) -> ProblemError:
    """Log where an error was raised, without its message, which may contain a part of a text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("Request %s failed: %s\n%s", request_id, type(error).__qualname__, frames)
    return ProblemError(500, "The detector failed on this request; its log names the cause under this request_id.")
