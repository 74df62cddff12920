"""What holds for every request and response: an id, a bound on the body, headers, and silence about internals."""

from __future__ import annotations

import logging
import re
import traceback
import uuid
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import ProblemError
from serve_app.auth.access import Gate
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

    Serve's proxy gives every request an `X-Request-ID` (the client's, or one it makes) and puts it on every
    response, its own errors included. The guard passes it on as `request.state.request_id`.

    Args:
        app: what it guards.
        gate: says who may ask, before a body is read.
        telemetry: counts what is refused.
        max_body_bytes: a longer body is refused: by its announced length before it is read, else while it streams.
        other_bounds: of paths with a bound of their own; None for a route that bounds by itself what it reads.
        hosts: names by which the service may be asked for; None: any. A page elsewhere, whose name was made to mean
            this machine, could ask a service without keys otherwise.
    """

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        telemetry: Telemetry,
        max_body_bytes: int,
        other_bounds: Mapping[str, int | None] | None = None,
        hosts: Sequence[str] | None = None,
    ) -> None:
        self.app = app
        self.gate = gate
        self.telemetry = telemetry
        self.max_body_bytes = max_body_bytes
        self.other_bounds = other_bounds or {}
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                add_security_headers(message)
            await send(message)

        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        is_sane = _REQUEST_ID.fullmatch(request_id) is not None
        scope.setdefault("state", {})["request_id"] = request_id if is_sane else uuid.uuid4().hex
        try:
            bound = self.other_bounds.get(scope["path"], self.max_body_bytes)
            check_head(headers, bound)
            check_host(headers, self.hosts)
            scope["state"]["caller"] = await self.gate.admit(scope["method"], scope["path"], headers)
            await self.app(scope, receive if bound is None else _bounded(receive, bound), send_with_headers)
        except ClientDisconnect:
            return  # nobody waits for the answer
        except Exception as error:
            problem = error if isinstance(error, ProblemError) else internal(error, scope["state"]["request_id"])
            self.telemetry.refused(problem.status)
            if not started:
                await problem.response(scope["state"]["request_id"])(scope, receive, send_with_headers)


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


def check_head(headers: Headers, max_body_bytes: int | None) -> None:
    """Refuse a request by its headers. Raises ProblemError."""
    request_id, length = headers.get("x-request-id", "-"), headers.get("content-length", "0")
    if not _REQUEST_ID.fullmatch(request_id):
        raise ProblemError(400, "X-Request-ID: expected 1 to 128 printable ASCII characters without spaces.")
    if max_body_bytes is not None and length.isdigit() and int(length) > max_body_bytes:
        raise too_large(f"{length} bytes", max_body_bytes)


def check_host(headers: Headers, hosts: Sequence[str] | None) -> None:
    """Refuse a request for another name. Raises ProblemError."""
    name = _PORT.sub("", headers.get("host", "")).strip("[]").lower()
    if hosts is not None and name not in hosts:
        raise ProblemError(
            421,
            f"Host: expected {' or '.join(hosts)}: without API keys only this machine may ask. Under another name the "
            f"service needs keys.",
        )


def too_large(found: str, max_body_bytes: int) -> ProblemError:
    """The refusal of a body that is too long."""
    return ProblemError(
        413, f"The body has {found}, at most {max_body_bytes} are read: send the texts in several requests."
    )


def internal(error: Exception, request_id: str) -> ProblemError:
    """Log where an error came from, without its message (which may hold a part of a text), and say nothing else."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("Request %s failed: %s\n%s", request_id, type(error).__qualname__, frames)
    return ProblemError(500, "The detector failed on this request; its log names the cause under this request_id.")


def add_security_headers(message: Message) -> None:
    """Put the headers on the start of a response, unless it has its own."""
    headers = MutableHeaders(scope=message)
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
