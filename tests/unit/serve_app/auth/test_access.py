"""Who is let in, by key, scope and rate; and what everybody may see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest
from starlette.datastructures import Headers

from detect_ai.core.errors import ConfigError
from serve_app.api.errors import ProblemError
from serve_app.auth.access import ANYBODY, Gate
from serve_app.auth.api_keys import KeyRing, Scope, made
from serve_app.auth.rate_limit import Ledger, Limiter


def gate(read_keys: Callable[[], KeyRing] | None = None, rate: int = 0) -> Gate:
    ledger = Ledger()

    async def lease(key: str, rate: int, want: float) -> float:
        return ledger.lease(key, rate, want)

    return Gate(Limiter(lease), rate, read_keys)


def ask(made_gate: Gate, path: str = "/v1/detect", token: str | None = None, method: str = "POST") -> str:
    """The name of who was let in. Raises ProblemError."""
    headers = Headers({"Authorization": f"Bearer {token}"} if token else {})
    return asyncio.run(made_gate.admit(method, path, headers)).name


def refusal(*arguments: object, **named: object) -> ProblemError:
    with pytest.raises(ProblemError) as error:
        ask(*arguments, **named)  # type: ignore[arg-type]
    return error.value


def test_a_valid_key_is_let_in_and_no_other() -> None:
    token, key = made("one")
    closed = gate(lambda: KeyRing([key]))
    assert ask(closed, token=token) == key.id
    for wrong in (None, "dai_", made("two")[0], token.upper()):
        problem = refusal(closed, token=wrong)
        assert problem.status == 401
        assert problem.headers == {"WWW-Authenticate": 'Bearer realm="detect_ai"'}
        assert token not in problem.detail


@pytest.mark.parametrize(
    "path", ["/v1/detect", "/v1/model", "/predict", "/v1/detect/file", "/anything", "//", "/docs/x"]
)
def test_every_path_but_the_open_ones_wants_a_key(path: str) -> None:
    assert refusal(gate(KeyRing), path, method="GET").status == 401


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/app.js"])
def test_pages_and_health_are_open(path: str) -> None:
    assert ask(gate(KeyRing), path, method="GET") == ANYBODY


def test_scopes_are_kept_apart() -> None:
    (user, one), (chief, two) = made("user"), made("chief", [Scope.ADMIN])
    closed = gate(lambda: KeyRing([one, two]))
    assert refusal(closed, "/v1/admin/status", user).detail == (
        "This key has the scope detect; the scope admin is needed here."
    )
    assert refusal(closed, "/v1/detect", chief).status == 403
    assert ask(closed, "/v1/admin/status", chief) == two.id


def test_without_keys_everybody_may_ask() -> None:
    assert ask(gate()) == ANYBODY


def test_a_key_over_its_rate_is_told_when_to_come_back() -> None:
    token, key = made("slow", rate_per_minute=2)
    closed = gate(lambda: KeyRing([key]), rate=100)
    for _ in range(2):
        ask(closed, token=token)
    problem = refusal(closed, token=token)
    assert (problem.status, problem.headers) == (429, {"Retry-After": "30"})
    assert problem.detail == "At most 2 texts a minute are read for this key: try again in 30 seconds."
    assert ask(closed, "/v1/model", token, "GET") == key.id  # reading costs nothing


def test_without_keys_the_rate_is_that_of_all() -> None:
    opened = gate(rate=1)
    ask(opened)
    assert refusal(opened).status == 429


def test_a_revoked_key_is_refused_after_the_next_reading_and_a_broken_file_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    token, key = made("one")
    answers: list[object] = [KeyRing([key]), ConfigError("auth/keys.json: expected {"), ValueError("secret"), KeyRing()]

    def read() -> KeyRing:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, KeyRing)
        return answer

    closed = gate(read)
    logging.getLogger("ray.serve").addHandler(caplog.handler)

    async def scenario() -> list[bool]:
        closed.start(0.02)
        found = []
        while answers:
            left = len(answers)
            while len(answers) == left:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.01)
            found.append(closed.ring.find(token) is not None)
        await closed.stop()
        return found

    try:
        assert asyncio.run(asyncio.wait_for(scenario(), 10)) == [True, True, False]
    finally:
        logging.getLogger("ray.serve").removeHandler(caplog.handler)
    assert "could not be read, those known stay valid: auth/keys.json" in caplog.text
    assert "secret" not in caplog.text
