"""The clients and the command against the real service."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from detect_ai.cli import main
from detect_ai.client import AsyncClient, Client, RejectedError
from detect_ai.detector import Detector
from detect_ai.schemas import Verdict
from detect_ai.storage import Storage
from tests import tiny
from tests.e2e.conftest import foreground

TEXTS = [tiny.text(("human", "ai")[i % 2], random.Random(i), 20 + 10 * i) for i in range(11)]


@pytest.fixture(scope="module")
def url(store: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that takes four texts at once."""
    with foreground(store, tmp_path_factory.mktemp("log") / "log", "serve.max_texts=4") as (_, address):
        yield address


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
