"""Both clients over HTTP on loopback: requests, responses, retries and refusals."""

import asyncio
import email.parser
import itertools
import json
import time

import httpx
import numpy as np
import pytest
import tenacity

from detect_ai import client as client_module
from detect_ai.client import AsyncClient, Client
from detect_ai.core.errors import InputError, RejectedError, ResponseError, ServiceError, UnavailableError
from detect_ai.core.ray_runtime import free_port
from detect_ai.schemas import Verdict
from tests.fixtures.fake_service import MODEL, RESPONSE, Reply, problem, service, serving, verdict

KEY = "dk_canary7f3a"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(client_module, "_BACKOFF", tenacity.wait_fixed(0.01))
    for name in ("DETECT_AI_URL", "DETECT_AI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["blocking", "asyncio"])
def call(request):
    """Call a method of a new client of either kind."""

    def blocking(url, method, *args, key=KEY, **options):
        with Client(url, key) as client:
            return getattr(client, method)(*args, **options)

    async def asynchronous(url, method, *args, key=KEY, **options):
        async with AsyncClient(url, key) as client:
            return await getattr(client, method)(*args, **options)

    return blocking if request.param == "blocking" else lambda *args, **kw: asyncio.run(asynchronous(*args, **kw))


def replies(*scripted):
    """Send these replies in order, then those of the service."""
    left = list(scripted)
    return lambda request: left.pop(0) if left else service(request)


def unlimited(request):
    return Reply({**MODEL, "limits": {}}) if request.method == "GET" else service(request)


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_temporary_failure_is_retried(call, status):
    with serving(replies(problem(status), None)) as server:
        assert call(server.url, "detect", "a text").label == "human"
    assert len({request.body for request in server.requests}) == 1
    assert len(server.requests) == 3


def test_retry_waits_as_long_as_asked(call):
    with serving(replies(problem(503, retry_after="1"))) as server:
        call(server.url, "detect", "a text")
    assert server.requests[1].at - server.requests[0].at >= 1


def test_dead_replica_is_retried_but_application_error_is_not(call):
    with serving(replies(Reply(b"Internal Server Error", 500, {"Content-Type": "text/plain"}))) as server:
        call(server.url, "detect", "a text")
    assert len(server.requests) == 2
    with serving(lambda _: problem(500)) as server, pytest.raises(ServiceError) as raised:
        call(server.url, "detect", "a text")
    assert (raised.value.status, len(server.requests)) == (500, 1)


def test_attempts_are_bounded(call):
    busy = problem(503, "Too many texts wait.", retry_after="0")
    with serving(lambda _: busy) as server, pytest.raises(UnavailableError) as raised:
        call(server.url, "detect", "a text")
    error = raised.value
    assert (error.status, error.detail, error.request_id, error.retry_after) == (503, "Too many texts wait.", "r1", 0)
    assert len(server.requests) == client_module.MAX_ATTEMPTS


def test_no_attempt_starts_after_the_time_budget(call):
    started = time.monotonic()
    with serving(replies(problem(429, retry_after="3600"))) as server, pytest.raises(UnavailableError) as raised:
        call(server.url, "detect", "a text")
    assert time.monotonic() - started < 10
    assert (raised.value.status, raised.value.retry_after, len(server.requests)) == (429, 3600, 1)


@pytest.mark.parametrize("status", [301, 401, 403, 404, 413, 422])
def test_permanent_failure_is_not_retried(call, status):
    with serving(lambda _: problem(status)) as server, pytest.raises(ServiceError, match="the reason") as raised:
        call(server.url, "detect", "a text")
    assert isinstance(raised.value, RejectedError) == isinstance(raised.value, InputError) == (status >= 400)
    assert (raised.value.status, raised.value.request_id, len(server.requests)) == (status, "r1", 1)


def test_errors_contain_no_key_password_or_page(call):
    with pytest.raises(UnavailableError) as raised:
        call(f"http://user:secret@127.0.0.1:{free_port()}", "detect", "canary")
    with serving(lambda _: Reply(b"<html>canary</html>", 404)) as server, pytest.raises(RejectedError) as page:
        call(server.url, "detect", "canary")
    assert raised.value.status is None
    for error in (raised.value, page.value):
        assert "http://127.0.0.1:" in str(error)
        assert not any(word in str(error) for word in (KEY, "secret", "canary"))


def test_one_text_is_one_request(call):
    with serving(service) as server:
        answer = call(server.url, "detect", "Grüße \ud800", target_fpr=np.float32(0.5), explain=np.bool_(True))
    [request] = server.requests
    assert isinstance(answer, Verdict)
    assert json.loads(request.body) == {"texts": ["Grüße \ufffd"], "target_fpr": 0.5, "explain": True}
    assert (request.method, request.path) == ("POST", "/v1/detect")
    assert request.headers["Authorization"] == f"Bearer {KEY}"


def test_long_list_is_chunked_within_the_limits_in_order(call):
    lengths = [400, 400, 400, 1, 2, 3, 4, 1500, 5]
    with serving(service) as server:
        verdicts = call(server.url, "detect", ("x" * n for n in lengths))
    assert [verdict.num_tokens for verdict in verdicts] == lengths
    sent = [[len(text) for text in json.loads(request.body)["texts"]] for request in server.requests[1:]]
    assert list(itertools.chain(*sent)) == lengths
    assert all(len(chunk) <= 3 and (sum(chunk) <= 1000 or chunk == [1500]) for chunk in sent)


def test_chunk_that_is_too_large_is_halved(call):
    with serving(unlimited) as server:
        verdicts = call(server.url, "detect", ["x" * n for n in range(1, 8)])
    assert [verdict.num_tokens for verdict in verdicts] == list(range(1, 8))
    assert len(server.requests) == 1 + 1 + 2 + 2


def test_empty_list_sends_nothing(call):
    with serving(service) as server:
        assert call(server.url, "detect", []) == []
    assert server.requests == []


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("detect", ["a", " \u200b\ufeff\u00ad"], r"texts\[1\] is empty"),
        ("detect", ["a", "b", float("nan")], r"texts\[2\]: .* found float"),
        ("detect", {"text": "a"}, "found dict"),
        ("detect_files", "a.txt", "found str"),
        ("detect_files", ["missing.txt"], "missing.txt: No such file"),
    ],
)
def test_invalid_input_is_located_before_sending(call, method, values, message):
    with serving(service) as server, pytest.raises(InputError, match=message):
        call(server.url, method, values)
    assert server.requests == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, 1])
@pytest.mark.parametrize("name", ["target_fpr", "prevalence"])
@pytest.mark.parametrize("method", ["detect", "detect_files"])
def test_impossible_rates_are_refused(method, name, value):
    with Client("http://127.0.0.1:1") as client, pytest.raises(InputError, match=f"{name}: .* above 0 and below 1"):
        getattr(client, method)(["missing.txt"], **{name: value})


@pytest.mark.parametrize(
    "content",
    [b"<html>canary</html>", {"canary": 1}, {**RESPONSE, "verdicts": []}, {**RESPONSE, "verdicts": [{"label": "x"}]}],
)
def test_unexpected_response_raises_response_error(call, content):
    with serving(lambda _: Reply(content)) as server, pytest.raises(ResponseError) as raised:
        call(server.url, "detect", "a text")
    assert "canary" not in str(raised.value)
    assert len(server.requests) == 1


def form(request):
    """The parts of a multipart body: field, file name, content."""
    message = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n{request.body.decode()}"
    return [
        (part.get_param("name", header="Content-Disposition"), part.get_filename(), part.get_payload())
        for part in email.parser.Parser().parsestr(message).get_payload()
    ]


def test_files_are_sent_as_forms_within_the_limits(call, tmp_path):
    paths = [tmp_path / name for name in ("one.txt", "two.pdf", "drei ß.md")]
    for path in paths:
        path.write_bytes(path.name.encode() * 2)

    def respond(request):
        if request.method == "GET":
            return service(request)
        files = [(name, data) for field, name, data in form(request) if field == "files"]
        return Reply({**RESPONSE, "files": [{"name": n, "num_chars": len(d), "verdict": verdict(d)} for n, d in files]})

    with serving(respond) as server:
        files = call(
            server.url, "detect_files", [*paths[:2], str(paths[2])], target_fpr=0.1, prevalence=0.05, return_text=True
        )
    assert [(file.name, file.verdict.num_tokens) for file in files] == [(p.name, 2 * len(p.name)) for p in paths]
    assert server.paths() == ["/v1/model", "/v1/detect/file", "/v1/detect/file"]
    fields = {field: data for field, name, data in form(server.requests[1]) if name is None}
    assert fields == {"target_fpr": "0.1", "prevalence": "0.05", "return_text": "true"}


def test_address_and_key_come_from_the_environment(call, monkeypatch):
    with serving(service) as server:
        monkeypatch.setenv("DETECT_AI_URL", f" {server.url}/\n")
        monkeypatch.setenv("DETECT_AI_API_KEY", "from_env\n")
        assert call(None, "model", key=None).model_version == "v1"
    assert server.requests[0].headers["Authorization"] == "Bearer from_env"


URLS = [
    "",
    "localhost:8000",
    "ftp://secret@host",
    "http://",
    "http://secret:port",
    "http://h:70000",
    "http://h/?secret=1",
]
KEYS = ["secret key", "secret\nkey", "sécret"]


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [*((url, KEY, "DETECT_AI_URL") for url in URLS), *(("https://host", key, "API key") for key in KEYS)],
)
def test_invalid_address_or_key_is_refused_without_repeating_it(url, key, message):
    with pytest.raises(InputError, match=message) as raised:
        Client(url, key)
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://detector.example", "http://192.168.1.2", "http://localhost.example", "http://127.0.0.1.example"]
)
def test_key_is_sent_over_https_or_to_this_machine_only(url):
    with pytest.raises(InputError, match="https"):
        Client(url, KEY)
    for allowed in (url.replace("http", "https"), "http://localhost:1", "http://127.0.0.2:1", "http://[::1]:1"):
        Client(allowed, KEY).close()


@pytest.mark.parametrize(("name", "value"), [("ALL_PROXY", "socks9://127.0.0.1:1"), ("SSL_CERT_FILE", "/no")])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_invalid_proxy_or_certificate_setting_is_an_input_error(kind, name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=name):
        kind("https://detector.example")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_loopback_uses_the_certificates_of_the_environment(kind, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/no")
    with pytest.raises(InputError, match="SSL_CERT_FILE"):
        kind("https://localhost:8443")


def test_loopback_is_not_asked_through_a_proxy(call, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    with serving(service) as server:
        assert call(server.url, "model").model_version == "v1"


def test_httpx_options_are_passed_on():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=MODEL))
    with Client("https://detector.example", KEY, transport=transport) as client:
        assert client.model().model_version == "v1"
