"""Retries as a plan: what is sent and slept, without a connection."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.exchange import (
    RateLimitedError,
    RejectedError,
    Retry,
    Send,
    ServiceError,
    Sleep,
    UnavailableError,
    UnreachableError,
    exchange,
    failure,
    retry_after,
)

URL = "http://user:secret@service:8000/v1/detect"
SEND = Send("GET", "/v1/model", 30)
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def response(status, headers=None, content=b""):
    return httpx.Response(status, headers=headers, content=content, request=httpx.Request("GET", URL))


def steps(retry, answers):
    """What a plan does with the answers, and what it ends with."""
    plan, taken, answer, left = exchange(SEND, retry), [], None, iter(answers)
    while True:
        try:
            taken.append(plan.send(answer))
        except StopIteration as end:
            return taken, end.value
        except ServiceError as error:
            return taken, error
        answer = next(left) if isinstance(taken[-1], Send) else None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": format_datetime(NOW + timedelta(seconds=9), True), "Date": format_datetime(NOW, True)}, 9),
        ({"Retry-After": format_datetime(NOW - timedelta(days=1), True)}, 0),
        ({"Retry-After": "Fri, 01 May 2026 12:00:09 -0000", "Date": format_datetime(NOW, True)}, 9),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_is_a_number_or_a_date_by_the_clock_of_the_service(headers, seconds):
    assert retry_after(httpx.Headers(headers)) == seconds


def test_a_date_without_the_clock_of_the_service_is_compared_with_our_own():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), True)
    assert 57 < retry_after(httpx.Headers({"Retry-After": soon})) <= 60


def test_pauses_double_up_to_a_bound_and_differ_between_clients():
    retry = Retry(backoff_s=1, max_backoff_s=4)
    for failures, longest in ((1, 1), (2, 2), (3, 4), (4, 4), (2000, 4)):
        pauses = {retry.pause(failures) for _ in range(50)}
        assert len(pauses) > 10
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest


def test_a_pause_is_never_shorter_than_the_service_asked_for():
    assert all(7 <= Retry(backoff_s=0.5).pause(1, 7) <= 7.5 for _ in range(50))


def test_what_may_succeed_later_is_sent_again_after_a_pause():
    lost = httpx.ReadError("", request=httpx.Request("GET", URL))
    answers = [response(503), response(429), response(502), response(500), lost, response(200)]
    taken, end = steps(Retry(attempts=6), answers)
    assert [type(step) for step in taken] == [Send, Sleep] * 5 + [Send]
    assert end is answers[-1]


@pytest.mark.parametrize(("status", "kind"), [(400, RejectedError), (404, RejectedError), (301, ServiceError)])
def test_what_will_not_change_is_sent_once(status, kind):
    taken, end = steps(Retry(), [response(status)])
    assert len(taken) == 1
    assert type(end) is kind
    assert end.status == status


def test_a_failure_that_the_application_itself_tells_of_is_no_dead_replica():
    content = b'{"title":"t","status":500,"detail":"The detector failed.","request_id":"r1"}'
    taken, end = steps(Retry(), [response(500, {"Content-Type": "application/problem+json; charset=utf-8"}, content)])
    assert len(taken) == 1
    assert (end.detail, end.status, end.request_id) == ("The detector failed.", 500, "r1")
    assert str(end) == "The detector failed. (request r1)"


def test_attempts_are_bounded():
    taken, end = steps(Retry(attempts=3), [response(503)] * 9)
    assert sum(isinstance(step, Send) for step in taken) == 3
    assert isinstance(end, UnavailableError)


def test_nobody_waits_beyond_the_bound_of_time():
    taken, end = steps(Retry(total_s=5), [response(429, {"Retry-After": "6"})])
    assert len(taken) == 1
    assert isinstance(end, RateLimitedError)
    assert end.retry_after == 6


def test_an_attempt_waits_no_longer_than_is_left():
    plan = exchange(SEND, Retry(total_s=0.4, backoff_s=0))
    assert 0.3 < next(plan).timeout_s <= 0.4
    time.sleep(0.2)
    assert isinstance(plan.send(response(503)), Sleep)
    assert plan.send(None).timeout_s <= 0.2


def test_an_error_repeats_nothing_of_a_page_or_a_password():
    for answer in (response(404, content=b"<html>canary</html>"), httpx.ReadError("canary", request=SECRET)):
        error = failure(answer)
        assert isinstance(error, DetectAIError)
        assert "canary" not in str(error)
        assert "secret" not in str(error)
        assert "http://service:8000" in str(error)


def test_a_lost_connection_says_why():
    error = failure(httpx.ConnectError("[Errno 111] Connection refused", request=SECRET))
    assert isinstance(error, UnreachableError)
    assert error.status is None
    assert str(error) == (
        "http://service:8000 cannot be reached (ConnectError: [Errno 111] Connection refused): does the service run, "
        "is the address right?"
    )


def test_the_request_id_is_known_also_where_the_proxy_answers():
    assert failure(response(503, {"X-Request-ID": "r9"}, b"busy")).request_id == "r9"


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"backoff_s": -1}, {"total_s": 0}])
def test_an_impossible_retry_is_refused(wrong):
    with pytest.raises(InputError):
        Retry(**wrong)


SECRET = httpx.Request("GET", URL)
