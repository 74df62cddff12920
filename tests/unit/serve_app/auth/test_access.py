"""Access control: keys, scopes, limits, and keys that change while the service runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest
from starlette.datastructures import Headers

from detect_ai.core.errors import ConfigError
from serve_app.auth import access
from serve_app.auth.access import ANYBODY, AccessControl, Caller
from serve_app.auth.api_keys import KeyRing, Scope, create_key
from serve_app.auth.rate_limit import Limiter
from serve_app.errors import ProblemError
from tests.unit.serve_app.auth.test_rate_limit import Cluster


def control(read_keys: Callable[[], KeyRing] | None = None, tokens_per_minute: int = 0) -> AccessControl:
    return AccessControl(Cluster().replica(), tokens_per_minute, 2, read_keys)


def authorize(
    controlled: AccessControl, path: str = "/v1/detect", token: str | None = None, method: str = "POST"
) -> Caller:
    headers = Headers({"Authorization": f"Bearer {token}"} if token else {})
    return asyncio.run(controlled.authorize(method, path, headers))


def refusal(controlled: AccessControl, *arguments: str, **named: str | None) -> ProblemError:
    with pytest.raises(ProblemError) as error:
        authorize(controlled, *arguments, **named)  # type: ignore[arg-type]
    return error.value


def test_only_a_valid_key_is_admitted() -> None:
    token, key = create_key("one")
    closed = control(lambda: KeyRing([key]))
    assert authorize(closed, token=token).name == key.id
    for wrong in (None, "dai_", create_key("two")[0], token.upper()):
        problem = refusal(closed, token=wrong)
        assert (problem.status, problem.headers) == (401, {"WWW-Authenticate": 'Bearer realm="detect_ai"'})
        assert token not in problem.detail


def test_only_pages_and_health_are_open() -> None:
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/app.js"):
        assert authorize(control(KeyRing), path, method="GET").name == ANYBODY
    for path in ("/v1/model", "/predict", "/v1/detect/file", "/anything", "//", "/docs/x"):
        assert refusal(control(KeyRing), path, method="GET").status == 401


def test_scopes_are_separate() -> None:
    (user, one), (chief, two) = create_key("user"), create_key("chief", [Scope.ADMIN])
    closed = control(lambda: KeyRing([one, two]))
    assert refusal(closed, "/v1/admin/status", user).status == 403
    assert refusal(closed, "/v1/detect", chief).status == 403
    assert authorize(closed, "/v1/admin/status", chief).name == two.id


@pytest.mark.parametrize("scope", [Scope.FEEDBACK, Scope.AUDIT])
def test_either_scope_of_labels_may_label(scope: Scope) -> None:
    token, key = create_key("dean", [scope])
    closed = control(lambda: KeyRing([key]))
    assert [authorize(closed, "/v1/feedback", token, method).scopes for method in ("GET", "POST")] == [{scope}] * 2
    assert refusal(closed, "/v1/detect", token).status == 403


def test_without_keys_everybody_has_all_scopes() -> None:
    assert authorize(control()).scopes == set(Scope)


def test_without_keys_everybody_shares_one_rate() -> None:
    opened = control(tokens_per_minute=1)
    assert authorize(opened).name == ANYBODY
    refused = refusal(opened)
    assert (refused.status, "key" in refused.detail) == (429, False)


def test_tokens_count_against_the_rate_of_the_key() -> None:
    token, key = create_key("slow", tokens_per_minute=60)
    closed = control(lambda: KeyRing([key]), tokens_per_minute=10_000)

    async def scenario() -> None:
        headers = Headers({"Authorization": f"Bearer {token}"})
        caller = await closed.authorize("POST", "/v1/detect", headers)
        caller.charge(89)
        caller.release()
        with pytest.raises(ProblemError) as refused:
            await closed.authorize("POST", "/v1/detect", headers)
        assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "31"})
        assert (await closed.authorize("GET", "/v1/model", headers)).name == key.id

    asyncio.run(scenario())


def test_concurrent_requests_of_a_key_are_limited() -> None:
    token, key = create_key("one")
    closed = control(lambda: KeyRing([key]))

    async def scenario() -> None:
        headers = Headers({"Authorization": f"Bearer {token}"})
        callers = [await closed.authorize("POST", "/v1/detect", headers) for _ in range(2)]
        with pytest.raises(ProblemError) as refused:
            await closed.authorize("POST", "/v1/detect", headers)
        assert refused.value.status == 429
        callers[0].release()
        await closed.authorize("POST", "/v1/detect", headers)

    asyncio.run(scenario())


def test_keys_are_read_again_and_survive_errors(serve_log: pytest.LogCaptureFixture) -> None:
    token, key = create_key("one")
    errors = [ConfigError("auth/keys/x: expected {"), ValueError("secret")]
    read = Mock(side_effect=[KeyRing([key]), *errors, *[KeyRing()] * 99])

    async def scenario() -> list[bool]:
        closed = control(read)
        refreshing = asyncio.create_task(closed.refresh(0.02))
        valid = []
        for calls in (2, 3, 4):
            while read.call_count < calls:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.01)
            valid.append(closed.ring.find(token) is not None)
        refreshing.cancel()
        return valid

    assert asyncio.run(asyncio.wait_for(scenario(), 10)) == [True, True, False]
    assert "the known keys stay valid: auth/keys/x" in serve_log.text
    assert "secret" not in serve_log.text


def test_the_age_of_the_keys_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    closed, opened = (AccessControl(Limiter(Cluster().call), read_keys=read) for read in (KeyRing, None))
    now += 7
    assert (closed.keys_age_s, opened.keys_age_s) == (7, 0)
