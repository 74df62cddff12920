"""Generators of mirrors, their errors, cost and pace; how Ray drives them is in tests/integration/test_retrain.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tenacity

from detect_ai.core.compose import load_config
from detect_ai.core.config import RetrainConfig, ScoreConfig
from detect_ai.core.errors import ConfigError
from detect_ai.core.ray_runtime import free_port
from detect_ai.core.storage import Storage
from detect_ai.monitoring import mirrors as module
from detect_ai.monitoring.mirrors import Generate, Pace, endpoint, local, mirrors
from tests.fixtures.endpoint import Endpoint, make_generator, running

HUMANS = [
    {"id": f"h{i}", "text": f"Report {i} of the council near the old bridge.", "group": f"g{i}", "domain": "news"}
    for i in range(3)
]
TEXT = HUMANS[0]["text"]


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with running() as endpoint:
        yield endpoint


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)


def config(url: str = "", **changes: Any) -> RetrainConfig:
    return RetrainConfig(**{"generator": "endpoint", "model": "small", "url": url} | changes)


def generate(url: str, key: str = "", waits: list[int] | None = None) -> Generate:
    return endpoint(config(url), key, lambda: None if waits is None else waits.append(1))


def test_the_prompt_has_the_text_and_its_length(server: Endpoint) -> None:
    assert generate(server.url)(TEXT, 9).startswith("1 robust")
    [request] = server.requests
    assert TEXT in request["messages"][0]["content"]
    assert "about 9 words" in request["messages"][0]["content"]
    assert (request["model"], request["max_tokens"], request["authorization"]) == ("small", 68, None)


def test_the_key_is_sent_as_bearer(server: Endpoint) -> None:
    generate(server.url, "secret")(TEXT, 9)
    assert server.requests[0]["authorization"] == "Bearer secret"


def test_a_busy_endpoint_is_asked_again_at_the_pace(server: Endpoint) -> None:
    server.statuses, waits = [429, 503], []
    assert generate(server.url, waits=waits)(TEXT, 9)
    assert len(waits) == 3


@pytest.mark.parametrize("body", [{}, {"choices": []}, [], {"choices": [{"text": "old"}]}, "text"])
def test_malformed_answers_are_errors(server: Endpoint, body: Any) -> None:
    server.bodies = [body]
    with pytest.raises(ConfigError, match=r"retrain\.url: 127\.0\.0\.1:\d+ sent no"):
        generate(server.url)(TEXT, 9)


def test_a_refusal_is_an_empty_text(server: Endpoint) -> None:
    server.bodies = [{"choices": [{"message": {"content": None}}]}]
    assert generate(server.url)(TEXT, 9) == ""


def test_an_endpoint_that_refuses_is_named(server: Endpoint) -> None:
    server.statuses = [401]
    with pytest.raises(ConfigError, match=r"retrain\.url: 127\.0\.0\.1:\d+ answered 401"):
        generate(server.url)(TEXT, 9)


def test_an_endpoint_that_is_down_is_named() -> None:
    with pytest.raises(ConfigError, match=r"retrain\.url: 127\.0\.0\.1:\d+ sent no"):
        generate(f"http://127.0.0.1:{free_port()}/v1")(TEXT, 9)


@pytest.mark.parametrize("url", ["http://user:SECRET@host/v1", "https://host/v1?key=SECRET", "SECRET", "ftp://SECRET/"])
def test_credentials_in_the_address_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=r"retrain\.url") as refused:
        load_config([f"retrain.url={url}"])
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/v1", "https://api.example.org/openai/v1/", "http://[::1]:80"])
def test_addresses_are_accepted(url: str) -> None:
    assert load_config([f"retrain.url={url}"]).retrain.url == url


@pytest.mark.parametrize(("changes", "named"), [({"model": ""}, r"retrain\.model"), ({"url": ""}, r"retrain\.url")])
def test_an_incomplete_generator_is_refused(storage: Storage, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        mirrors(HUMANS, config(**{"url": "http://host", **changes}), ScoreConfig(), storage, "mirrors")


@pytest.mark.parametrize(("max_words", "expected"), [(1000, 3), (27, 3), (26, 2), (8, 0)])
def test_the_cost_of_all_attempts_is_bounded(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, max_words: int, expected: int
) -> None:
    """The human texts have 9 words each."""
    asked: list[str] = []

    def write(rows: list[dict[str, str]], *_: object) -> None:
        asked.extend(row["text"] for row in rows)
        for row in rows:
            storage.write_json(row["file"], {"text": "robust " * 9})

    monkeypatch.setattr(module, "_generate", write)
    monkeypatch.setattr(module, "MIN_WORDS", 9)
    storage.write_bytes("mirrors/h0.json.4f2a.tmp", b"{")  # of a killed actor
    for _ in range(3):
        own = config("http://host", max_words=max_words)
        assert len(mirrors(HUMANS, own, ScoreConfig(), storage, "mirrors")) == expected
    assert len(asked) == expected
    mirrors(HUMANS, config("http://host", max_words=max_words, model="large"), ScoreConfig(), storage, "mirrors")
    assert len(asked) == min(6, max_words // 9)


def test_the_pace_is_that_of_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    pace = Pace(30)
    assert [pace.seconds() for _ in range(3)] == [0, 2, 4]
    now = 110.0
    assert [pace.seconds() for _ in range(2)] == [0, 2]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} journey vital{% endif %}"
    )
    return make_generator(tmp_path_factory.mktemp("chat"), encoder, template, tokens=600)


def test_a_long_text_is_shortened_and_the_chat_prompt_stays_whole(chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    prompts: list[Any] = []

    def answer(self: Any, input_ids: Any, max_new_tokens: int, **_: Any) -> Any:
        prompts.append((AutoTokenizer.from_pretrained(chat).decode(input_ids[0]), len(input_ids[0]) + max_new_tokens))
        return input_ids

    monkeypatch.setattr(GPT2LMHeadModel, "generate", answer)
    local(str(chat), ScoreConfig())("The old bridge. " * 400, 100)
    [(prompt, tokens)] = prompts
    assert prompt.endswith("journey vital")
    assert "old bridge" in prompt
    assert "[CLS]" not in prompt  # the template adds the special tokens
    assert 500 < tokens <= 600


def test_a_context_that_is_too_short_is_an_error(tmp_path: Path, encoder: Path) -> None:
    folder = make_generator(tmp_path, encoder, tokens=64)
    with pytest.raises(ConfigError, match="64 tokens"):
        local(str(folder), ScoreConfig())(TEXT, 100)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"retrain\.model"):
        local(str(tmp_path), ScoreConfig())
