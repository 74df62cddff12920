"""The clients and the command against the real service."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from detect_ai.cli import main
from detect_ai.client import AsyncClient, Client, RejectedError, UnauthorizedError
from detect_ai.core.config import Config
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.schemas import Problem, Verdict
from serve_app.auth import api_keys
from tests.fixtures import tiny_models

TEXTS = [tiny_models.text(("human", "ai")[i % 2], random.Random(i), 20 + 10 * i) for i in range(11)]


@pytest.fixture(scope="module")
def config(config: Config) -> Config:
    """A service that takes four texts or five files at once, from whoever has a key."""
    config.serve.max_texts, config.serve.max_files = 4, 5
    return config


@pytest.fixture(scope="module", autouse=True)
def key(config: Config, store: Storage) -> Iterator[str]:
    """A key, where the clients look for it."""
    token, kept = api_keys.create_key("test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(api_keys.ENVIRONMENT, json.dumps({"keys": [kept.model_dump(mode="json", exclude_none=True)]}))
        patch.setenv("DETECT_AI_API_KEY", token)
        yield token


@pytest.fixture(scope="module")
def url(key: str, url: str) -> str:
    """The service, deployed when there is a key."""
    return url


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> list[Verdict]:
    return Detector.load(tiny_bundle).detect(TEXTS, 0.1, return_spans=True)


def test_more_texts_than_a_request_takes_get_the_verdicts_of_the_library_in_order(
    url: str, expected: list[Verdict]
) -> None:
    with Client(url) as client:
        assert client.ready()
        assert client.model().limits["max_texts"] == 4
        assert_same(client.detect(TEXTS, 0.1, return_spans=True), expected)


def test_asyncio_gives_the_same(url: str, expected: list[Verdict]) -> None:
    async def ask() -> list[Verdict]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(client.detect(text, 0.1, return_spans=True) for text in TEXTS))

    assert_same(asyncio.run(ask()), expected)


def test_a_refusal_carries_what_the_service_says(url: str) -> None:
    with Client(url) as client, pytest.raises(RejectedError, match=r"target_fpr=0\.2: this model has") as raised:
        client.detect(TEXTS[0], 0.2)
    assert raised.value.status == 422
    assert raised.value.request_id


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_stream_gives_the_same_in_order_and_a_problem_in_the_place_of_what_is_no_text(
    url: str, expected: list[Verdict], kind: str
) -> None:
    async def ask() -> list[Verdict | Problem]:
        async with AsyncClient(url) as client:
            return [each async for each in client.detect_stream([*TEXTS, " ", TEXTS[0]], 0.1, return_spans=True)]

    with Client(url) as client:
        stream = client.detect_stream([*TEXTS, " ", TEXTS[0]], 0.1, return_spans=True)
        *found, problem, last = asyncio.run(ask()) if kind == "asyncio" else stream
    assert_same([each for each in [*found, last] if isinstance(each, Verdict)], [*expected, expected[0]])
    assert isinstance(problem, Problem)
    assert problem.status == 422


def test_files_get_the_verdict_of_their_text_or_a_problem_of_their_own(
    url: str, expected: list[Verdict], tmp_path: Path
) -> None:
    texts = {f"{i}.md": text for i, text in enumerate(TEXTS)} | {"bad.pdf": "no PDF", "é.txt": TEXTS[0]}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with Client(url) as client:
        found = client.detect_files([tmp_path / name for name in texts], 0.1, return_spans=True, return_text=True)
    assert [each.name for each in found] == list(texts)
    assert found[len(TEXTS)].problem is not None
    judged = [each for each in found if each.verdict]
    assert [each.text for each in judged] == [*TEXTS, TEXTS[0]]
    assert_same([each.verdict for each in judged if each.verdict], [*expected, expected[0]])


def test_explanations_come_with_spans(url: str) -> None:
    with Client(url) as client:
        verdict = client.detect(TEXTS[-1], explain=True)
    assert verdict.spans
    assert all(span.effect is not None for span in verdict.spans)


def test_without_the_right_key_nobody_is_answered(url: str, key: str) -> None:
    for wrong in (f"{key}x", "another"):
        with Client(url, wrong) as client, pytest.raises(UnauthorizedError) as raised:
            client.detect(TEXTS[0])
        assert wrong not in str(raised.value)


def test_the_command_says_what_the_library_says(
    url: str, expected: list[Verdict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXTS[-1])
    code = main(["check", "--url", url, "--target-fpr", "0.1", "--spans", "--json", str(path)])
    assert code == {"human": 0, "ai": 3, "uncertain": 4}[expected[-1].label]
    assert_same([Verdict.model_validate(json.loads(capsys.readouterr().out)["verdict"])], expected[-1:])


def assert_same(found: list[Verdict], expected: list[Verdict]) -> None:
    assert [each.label for each in found] == [each.label for each in expected]
    assert [each.probability for each in found] == pytest.approx([each.probability for each in expected], abs=1e-4)
    assert [len(each.spans or []) for each in found] == [len(each.spans or []) for each in expected]
