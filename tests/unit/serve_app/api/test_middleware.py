"""The middleware's checks of host and origin, and the end of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from detect_ai.core.config import ServeConfig
from serve_app.api.middleware import Guard
from serve_app.auth.access import AccessControl, Caller
from serve_app.auth.api_keys import KeyRing, create_key
from serve_app.engine.metrics import discard
from tests.unit.serve_app.auth.test_rate_limit import Cluster

OWN = "http://127.0.0.1:8000"


def send(
    headers: dict[str, str],
    method: str = "POST",
    cors_origins: Sequence[str] = (),
    access: AccessControl | None = None,
    error: Exception | None = None,
) -> int:
    """The status of the answer; 200 if the request reached the application."""
    statuses: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if error:
            raise error
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def keep(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def main() -> None:
        config = ServeConfig(cors_origins=list(cors_origins))
        guard = Guard(app, access or AccessControl(Cluster().replica()), discard, config, "v1")
        all_headers = {"Host": "127.0.0.1:8000"} | headers
        sent = [(name.lower().encode(), value.encode()) for name, value in all_headers.items()]
        scope = {"type": "http", "method": method, "path": "/v1/detect/file", "query_string": b"", "headers": sent}
        await guard(scope, None, keep)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)  # lets calls run that are not awaited

    asyncio.run(main())
    (status,) = statuses
    return status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # not a browser
        ({"Origin": OWN}, 200),
        ({"Origin": OWN, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://behind.proxy", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_posts_of_foreign_pages_are_refused(headers: dict[str, str], status: int) -> None:
    assert send(headers) == status
    assert send(headers, method="GET") == 200  # a link from elsewhere may open a page


def test_listed_origins_are_admitted() -> None:
    listed = {"Origin": "https://good.example", "Sec-Fetch-Site": "cross-site"}
    assert send(listed, cors_origins=["https://good.example"]) == 200
    assert send(listed, cors_origins=["*"]) == 200
    assert send(listed | {"Origin": "https://good.example.evil"}, cors_origins=["https://good.example"]) == 403


@pytest.mark.parametrize("error", [None, ValueError("inside")])
def test_a_request_ends_its_reservation(error: Exception | None) -> None:
    token, key = create_key("one")
    control = AccessControl(Cluster().replica(), max_concurrent=1, read_keys=lambda: KeyRing([key]))
    statuses = [send({"Authorization": f"Bearer {token}"}, access=control, error=error) for _ in range(2)]
    assert statuses == [500 if error else 200] * 2
    assert Caller("anybody").release() is None
