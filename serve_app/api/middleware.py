"""ASGI middleware of every request: request id, body size limit, host and origin checks, access control, headers."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
import uuid
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import ProblemError
from serve_app.auth.access import ANYBODY, AccessControl, Caller
from serve_app.engine.metrics import Telemetry

logger = logging.getLogger("ray.serve")

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_PORT = re.compile(r":\d*$")
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware around the whole application.

    Serve's proxy puts an `X-Request-ID` (the client's, or a new one) on every request and response, its own errors
    included. The middleware passes it on as `request.state.request_id`.

    Args:
        app: the application.
        access: admits requests, before a body is read.
        telemetry: counts refusals.
        max_body_bytes: a longer body is refused: by its announced length before it is read, else while it streams.
        other_bounds: bounds of single paths.
        hosts: host names that the service answers to; None: any. Protects a service without keys from DNS rebinding.
        cors_origins: foreign origins whose pages may use the service; `*`: any.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: AccessControl,
        telemetry: Telemetry,
        max_body_bytes: int,
        other_bounds: Mapping[str, int],
        hosts: Sequence[str] | None,
        cors_origins: Sequence[str],
    ) -> None:
        self.app, self.access, self.telemetry = app, access, telemetry
        self.max_body_bytes, self.other_bounds = max_body_bytes, other_bounds
        self.hosts, self.cors_origins = hosts, cors_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers, caller = Headers(scope=scope), Caller(ANYBODY)
        request_id = headers.get("x-request-id", "")
        request_id = request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        try:
            bound = self.other_bounds.get(scope["path"], self.max_body_bytes)
            check_head(headers, bound)
            check_host(headers, self.hosts)
            check_origin(scope["method"], headers, self.cors_origins)
            caller = await self.access.authorize(scope["method"], scope["path"], headers)
            scope["state"]["caller"] = caller
            await self.app(scope, _bounded(receive, bound), send_with_headers)
        except ClientDisconnect:
            self.telemetry.refused(499)
        except asyncio.CancelledError:  # Serve cancels a request whose client has disconnected
            self.telemetry.refused(499)
            raise
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else internal(error, request_id)
            self.telemetry.refused(problem.status)
            if not started:
                await problem.response(request_id)(scope, receive, send_with_headers)
        finally:
            caller.release()


def _bounded(receive: Receive, max_body_bytes: int) -> Receive:
    seen = 0

    async def receive_within_bound() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > max_body_bytes:
            raise too_large(f"more than {max_body_bytes} bytes", max_body_bytes)
        return message

    return receive_within_bound


def check_head(headers: Headers, max_body_bytes: int) -> None:
    """Refuse an invalid request id, or a body that is announced as too long. Raises ProblemError."""
    request_id, length = headers.get("x-request-id", "-"), headers.get("content-length", "0")
    if not _REQUEST_ID.fullmatch(request_id):
        raise ProblemError(400, "X-Request-ID: expected 1 to 128 printable ASCII characters without spaces.")
    if length.isdigit() and int(length) > max_body_bytes:
        raise too_large(f"{length} bytes", max_body_bytes)


def check_host(headers: Headers, hosts: Sequence[str] | None) -> None:
    """Refuse a request for another host name. Raises ProblemError."""
    name = _PORT.sub("", headers.get("host", "")).strip("[]").lower()
    if hosts is not None and name not in hosts:
        names = " or ".join(hosts)
        raise ProblemError(421, f"Host: expected {names}: under other names the service needs API keys.")


def check_origin(method: str, headers: Headers, cors_origins: Sequence[str]) -> None:
    """Refuse a POST that a page of another origin sends (CSRF). Raises ProblemError.

    A form or a `no-cors` fetch needs no CORS preflight: the page cannot read the answer, but its request would be
    processed. Pages of the same site are foreign too, because all ports of localhost are one site. Clients that are no
    browsers send neither header.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if method != "POST" or "*" in cors_origins or origin in cors_origins:
        return
    # A proxy may change `Host`, so what the browser itself compared comes first; it sends that to secure URLs only.
    own = (None, f"http://{headers.get('host')}", f"https://{headers.get('host')}")
    is_own = site in ("same-origin", "none") if site else origin in own
    if not is_own:
        raise ProblemError(403, "Origin: pages of other origins may not use this service: see serve.cors_origins.")


def too_large(found: str, max_body_bytes: int) -> ProblemError:
    """A refusal of a body that is too long."""
    detail = f"The body has {found}; the limit is {max_body_bytes}: send the texts in several requests."
    return ProblemError(413, detail)


def internal(error: Exception, request_id: str) -> ProblemError:
    """Log where an error was raised, without its message, which may contain a part of a text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("Request %s failed: %s\n%s", request_id, type(error).__qualname__, frames)
    return ProblemError(500, "The detector failed on this request; its log names the cause under this request_id.")
