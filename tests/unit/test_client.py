"""Both clients over real HTTP on loopback: what they send, what they make of answers, and when they ask again."""

import asyncio
import email.parser
import json
import time
from email.utils import formatdate

import pytest

from detect_ai.client import (
    AnswerError,
    AsyncClient,
    Client,
    ForbiddenError,
    RateLimitedError,
    RejectedError,
    Retry,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
)
from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.core.ray_runtime import free_port
from detect_ai.schemas import Problem, Verdict
from tests.fixtures.fake_service import ANSWER, MODEL, Reply, lines_of, problem, service, serving, streamed, verdict

KEY = "dk_canary7f3a"
QUICK = Retry(attempts=3, backoff_s=0.01)


@pytest.fixture(params=["blocking", "asyncio"])
def call(request):
    """Call a method of a new client of either kind; a stream comes as a list."""
    return blocking if request.param == "blocking" else asynchronous


def blocking(url, method, *given, key=KEY, retry=QUICK, **options):
    with Client(url, key, retry=retry) as client:
        found = getattr(client, method)(*given, **options)
        return list(found) if method == "detect_stream" else found


def asynchronous(url, method, *given, key=KEY, retry=QUICK, **options):
    async def main():
        async with AsyncClient(url, key, retry=retry) as client:
            found = getattr(client, method)(*given, **options)
            return [each async for each in found] if method == "detect_stream" else await found

    return asyncio.run(main())


def in_turn(*replies):
    """Answers one after another; after the last the service's own."""
    left = list(replies)
    return lambda asked: left.pop(0) if left else service(asked)


def lengths(verdicts):
    return [each.num_tokens for each in verdicts]


# Retries


@pytest.mark.parametrize("status", [503, 429])
def test_a_busy_service_is_asked_again_no_sooner_than_it_wants(call, status):
    with serving(in_turn(problem(status, retry_after="1"))) as server:
        assert call(server.url, "detect", "a text").label == "human"
    first, second = server.asked
    assert 1 <= second.at - first.at < 1.5
    assert first.body == second.body


def test_a_date_in_retry_after_is_kept(call):
    with serving(lambda asked: service(asked) if len(server.asked) > 1 else busy_for_a_second()) as server:
        call(server.url, "detect", "a text")
    assert server.asked[1].at - server.asked[0].at > 0.9


def busy_for_a_second():
    """A second by the header `Date`, which the server adds in whole seconds."""
    return problem(503, retry_after=formatdate(int(time.time()) + 1, usegmt=True))


def test_a_connection_closed_without_a_word_is_opened_again(call):
    with serving(in_turn(None, None)) as server:
        assert call(server.url, "detect", "a text").label == "human"
    assert len(server.asked) == 3


def test_a_service_that_stays_busy_is_named_after_the_last_attempt(call):
    busy = [problem(503, "Too many texts wait.", retry_after="0")] * 9
    with serving(in_turn(*busy)) as server, pytest.raises(UnavailableError) as raised:
        call(server.url, "detect", "a text")
    assert len(server.asked) == 3
    assert (raised.value.status, raised.value.detail) == (503, "Too many texts wait.")
    assert (raised.value.request_id, raised.value.retry_after) == ("r1", 0)


def test_nobody_sleeps_beyond_the_bound_of_time(call):
    began = time.monotonic()
    with serving(in_turn(problem(429, retry_after="3600"))) as server, pytest.raises(RateLimitedError) as raised:
        call(server.url, "detect", "a text")
    assert time.monotonic() - began < 2
    assert raised.value.retry_after == 3600


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, UnauthorizedError), (403, ForbiddenError), (413, TooLargeError), (422, RejectedError)],
)
def test_a_refusal_is_an_input_error_of_its_own_kind_and_is_not_repeated(call, status, kind):
    words = r"^the reason \(request r1\)$"
    with serving(in_turn(problem(status))) as server, pytest.raises(kind, match=words) as raised:
        call(server.url, "detect", "a text")
    assert isinstance(raised.value, InputError)
    assert len(server.asked) == 1


def test_nobody_there_is_named_without_the_key_or_a_password(call):
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:\d+ cannot be reached \(ConnectError: ") as raised:
        call(f"http://user:secret@127.0.0.1:{free_port()}", "detect", "a text")
    assert not any(word in str(raised.value) for word in (KEY, "secret"))
    assert not isinstance(raised.value, InputError)


# Requests


def test_a_text_is_one_request_with_what_was_asked_for_and_no_more(call):
    with serving(service) as server:
        assert isinstance(call(server.url, "detect", "Grüße – “so”", 0.1, explain=True), Verdict)
    [asked] = server.asked
    assert json.loads(asked.body) == {"texts": ["Grüße – “so”"], "target_fpr": 0.1, "explain": True}
    assert (asked.method, asked.path) == ("POST", "/v1/detect")
    assert asked.headers["Authorization"] == f"Bearer {KEY}"


def test_many_texts_are_several_requests_within_the_limits_and_come_back_in_order(call):
    texts = ["x" * n for n in (400, 400, 400, 1, 2, 3, 4, 1500, 5)]
    with serving(service) as server:
        assert lengths(call(server.url, "detect", texts)) == [len(text) for text in texts]
    assert server.paths() == ["/v1/model"] + ["/v1/detect"] * 5
    sent = [[len(text) for text in json.loads(asked.body)["texts"]] for asked in server.asked[1:]]
    assert sent == [[400, 400], [400, 1, 2], [3, 4], [1500], [5]]


def test_a_body_stays_within_its_bytes(call):
    def answer(asked):
        return Reply({**MODEL, "limits": {"max_body_bytes": 10_000}}) if asked.method == "GET" else service(asked)

    with serving(answer) as server:
        call(server.url, "detect", ["😀" * 1500] * 3)
    assert len(server.asked) == 4
    assert all(len(asked.body) <= 10_000 for asked in server.asked)


def test_no_text_is_no_request(call):
    with serving(service) as server:
        assert call(server.url, "detect", []) == []
    assert server.asked == []


def test_what_the_service_finds_too_large_goes_in_halves(call):
    def answer(asked):
        return Reply({**MODEL, "limits": {}}) if asked.method == "GET" else service(asked)

    with serving(answer) as server:
        assert lengths(call(server.url, "detect", ["x" * n for n in range(1, 8)])) == list(range(1, 8))
    assert len(server.asked) == 1 + 1 + 2 + 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", " \n"], "text 1 is empty: expected at least one character that is not white space"),
        (["a", "canary\ud800"], "text 1 is no valid Unicode: half a surrogate pair at character 6"),
    ],
)
def test_a_bad_text_is_named_by_its_place_before_anything_is_sent(call, texts, message):
    with serving(service) as server, pytest.raises(InputError) as raised:
        call(server.url, "detect", texts)
    assert str(raised.value) == message
    assert server.asked == []


@pytest.mark.parametrize(
    "content",
    [b"<html>canary</html>", {"canary": 1}, {**ANSWER, "verdicts": []}, {**ANSWER, "verdicts": [{"label": "canary"}]}],
)
def test_an_answer_of_another_form_is_named_and_not_repeated(call, content):
    with serving(lambda _: Reply(content)) as server, pytest.raises(AnswerError) as raised:
        call(server.url, "detect", "a text")
    assert "canary" not in str(raised.value)


# Address and key


def test_address_and_key_come_from_the_environment_too(call, monkeypatch):
    with serving(service) as server:
        monkeypatch.setenv("DETECT_AI_URL", f"{server.url}/")
        monkeypatch.setenv("DETECT_AI_API_KEY", "from_env\n")
        assert call(None, "model", key=None).model_version == "v1"
        monkeypatch.delenv("DETECT_AI_API_KEY")
        call(None, "model", key=None)
    assert server.paths() == ["/v1/model"] * 2
    assert [asked.headers.get("Authorization") for asked in server.asked] == ["Bearer from_env", None]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://secret@host",
        "http://",
        "http://host?secret",
        "http://secret:port",
        "http://host:70000",
    ],
)
def test_an_impossible_address_is_refused_without_repeating_it(kind, url, monkeypatch):
    monkeypatch.delenv("DETECT_AI_URL", raising=False)
    with pytest.raises(InputError, match=r"expected one such as http://127\.0\.0\.1:8000$") as raised:
        kind(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("key", ["secret key", "secret\nkey", "sécret"])
def test_an_impossible_key_is_refused_without_repeating_it(key):
    with pytest.raises(InputError, match="the API key holds characters") as raised:
        Client("http://host", key)
    assert "cret" not in str(raised.value)


# Other methods


@pytest.mark.parametrize(("reply", "is_ready"), [(None, True), (problem(503), False), (Reply(status=502), False)])
def test_ready_asks_once(call, reply, is_ready):
    with serving(in_turn(reply) if reply else service) as server:
        assert call(server.url, "ready") is is_ready
    assert server.paths() == ["/readyz"]


def test_a_service_that_is_not_there_is_not_ready_and_another_site_is_an_error(call):
    assert call(f"http://127.0.0.1:{free_port()}", "ready") is False
    with serving(lambda _: Reply(status=404)) as server, pytest.raises(RejectedError, match="is it the right address"):
        call(server.url, "ready")


def form(asked):
    """The fields of a multipart body: name, file name, content."""
    message = f"Content-Type: {asked.headers['Content-Type']}\r\n\r\n{asked.body.decode()}"
    parts = email.parser.Parser().parsestr(message).get_payload()
    return [
        (part.get_param("name", header="Content-Disposition"), part.get_filename(), part.get_payload())
        for part in parts
    ]


def test_files_are_sent_as_a_form_within_the_limits_and_come_back_in_order(call, tmp_path):
    paths = [tmp_path / name for name in ("one.txt", "two.pdf", "drei ß.md")]
    for path in paths:
        path.write_bytes(path.name.encode() * 2)

    def answer(asked):
        if asked.method == "GET":
            return service(asked)
        files = [(name, data) for field, name, data in form(asked) if field == "files"]
        found = [{"name": n, "num_chars": len(d), "text": None, "verdict": verdict(d)} for n, d in files]
        return Reply({**ANSWER, "files": found})

    with serving(answer) as server:
        found = call(server.url, "detect_files", [*paths[:2], str(paths[2])], 0.1, return_text=True)
    assert [(each.name, each.verdict.num_tokens) for each in found] == [
        (path.name, 2 * len(path.name)) for path in paths
    ]
    assert server.paths() == ["/v1/model", "/v1/detect/file", "/v1/detect/file"]  # LIMITS: two files at once
    fields = {name: data for name, file, data in form(server.asked[1]) if file is None}
    assert fields == {"target_fpr": "0.1", "return_text": "true"}


def test_a_file_that_cannot_be_read_is_named_before_anything_is_sent(call, tmp_path):
    with serving(service) as server, pytest.raises(InputError, match=r"missing\.txt: No such file or directory"):
        call(server.url, "detect_files", [tmp_path / "missing.txt"])
    assert server.asked == []


def test_a_stream_is_read_as_its_verdicts_are_taken():
    texts = iter(["x" * n for n in range(1, 100)])
    with serving(service) as server, Client(server.url, KEY) as client:
        verdicts = client.detect_stream(texts, return_spans=True, texts_per_request=2)
        assert server.asked == []
        assert lengths(next(verdicts) for _ in range(3)) == [1, 2, 3]
        assert len(next(texts)) == 5
    assert server.paths() == ["/v1/model"] + ["/v1/detect/stream?return_spans=true"] * 2


def test_an_asynchronous_source_is_streamed_too():
    async def texts():
        for n in range(1, 6):
            await asyncio.sleep(0)
            yield "x" * n

    with serving(service) as server:
        assert lengths(asynchronous(server.url, "detect_stream", texts())) == [1, 2, 3, 4, 5]


def test_a_text_of_a_stream_that_cannot_be_judged_is_a_problem_in_its_place(call):
    def answer(asked):
        if asked.method == "GET":
            return service(asked)
        texts = [json.loads(line)["text"] for line in lines_of(asked)]
        empty = {"problem": problem(422, "empty").content}
        return streamed({"verdict": verdict(text)} if text.strip() else empty for text in texts)

    with serving(answer) as server:
        found = call(server.url, "detect_stream", ["a", " ", "ccc", "dd\ud800"])
    assert [type(each) for each in found] == [Verdict, Problem, Verdict, Verdict]
    assert found[1].detail == "empty"


def test_texts_that_a_stream_was_too_busy_for_are_sent_again(call):
    seen = []

    def answer(asked):
        if asked.method == "GET":
            return service(asked)
        seen.append([json.loads(line)["text"] for line in lines_of(asked)])
        is_first = len(seen) == 1
        return streamed(
            {"problem": problem(503).content} if is_first and text != "b" else {"verdict": verdict(text * (i + 1))}
            for i, text in enumerate(seen[-1])
        )

    with serving(answer) as server:
        found = call(server.url, "detect_stream", ["a", "b", "c"])
    assert seen == [["a", "b", "c"], ["a", "c"]]
    assert lengths(found) == [1, 2, 2]


def test_a_stream_that_the_service_ends_goes_on_from_there(call):
    seen = []

    def answer(asked):
        if asked.method == "GET":
            return service(asked)
        texts = [json.loads(line)["text"] for line in lines_of(asked)]
        seen.append(texts)
        answers = [{"verdict": verdict(text)} for text in texts[:1]]
        ended = [{"problem": problem(503, "out of time").content}] if len(texts) > 1 else []
        return streamed(answers + ended)

    with serving(answer) as server:
        found = call(server.url, "detect_stream", list("abcdef"), retry=Retry(attempts=2, backoff_s=0))
    assert lengths(found) == [1] * 6
    assert [len(each) for each in seen] == [3, 2, 1, 3, 2, 1]


def test_a_stream_that_is_ended_before_its_first_answer_is_given_up_after_the_attempts(call):
    asked_for = []

    def answer(asked):
        if asked.method == "GET":
            return service(asked)
        asked_for.append(asked)
        return streamed([{"problem": problem(503, "out of time").content}])

    with serving(answer) as server:
        found = call(server.url, "detect_stream", ["a", "b"], retry=Retry(attempts=3, backoff_s=0))
    assert [each.status for each in found] == [503, 503]
    assert len(asked_for) == 3


def test_a_text_too_long_for_a_stream_is_a_problem_and_the_others_go_on(call):
    def answer(asked):
        is_long = asked.method == "POST" and any(len(line) > 1000 for line in lines_of(asked))
        return problem(413, "too long") if is_long else service(asked)

    with serving(answer) as server:
        found = call(server.url, "detect_stream", ["a", "x" * 5000, "ccc"])
    assert [getattr(each, "status", 200) for each in found] == [200, 413, 200]


def test_all_errors_are_ours():
    assert all(issubclass(kind, DetectAIError) for kind in (AnswerError, UnreachableError, RejectedError))
