"""The clients and the command line against the real service."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from detect_ai.cli.__main__ import main
from detect_ai.client import AsyncClient, Client
from detect_ai.core.errors import RejectedError
from detect_ai.detector.detector import Detector
from detect_ai.schemas import Verdict
from tests.fixtures import tiny_models

TEXTS = [tiny_models.text(("human", "ai")[i % 2], random.Random(i), 20 + 10 * i) for i in range(11)]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> list[Verdict]:
    return Detector.load(tiny_bundle).detect(TEXTS, 0.1, return_spans=True)


def test_long_list_gets_the_verdicts_of_the_library(url: str, expected: list[Verdict]) -> None:
    with Client(url) as client:
        copies = client.model().limits["max_texts"] // len(TEXTS) + 1
        verdicts = client.detect(TEXTS * copies, target_fpr=0.1, return_spans=True)
    assert_same(verdicts, expected * copies)


def test_async_client_gets_the_same_verdicts(url: str, expected: list[Verdict]) -> None:
    async def detect() -> list[Verdict]:
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(client.detect(text, target_fpr=0.1, return_spans=True) for text in TEXTS))

    assert_same(asyncio.run(detect()), expected)


def test_refusal_carries_the_explanation(url: str) -> None:
    with Client(url) as client, pytest.raises(RejectedError, match=r"target_fpr") as raised:
        client.detect(TEXTS[0], target_fpr=0.2)
    assert raised.value.status == 422
    assert raised.value.request_id


def test_files_get_the_verdict_of_their_text_or_a_problem(url: str, expected: list[Verdict], tmp_path: Path) -> None:
    texts = {f"{i}.md": text for i, text in enumerate(TEXTS)} | {"bad.pdf": "no PDF", "é.txt": TEXTS[0]}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    paths = [tmp_path / name for name in texts]
    with Client(url) as client:
        files = client.detect_files(paths, target_fpr=0.1, return_spans=True, return_text=True)
    assert [file.name for file in files] == list(texts)
    assert [file.name for file in files if file.problem] == ["bad.pdf"]
    assert [file.text for file in files if file.verdict] == [*TEXTS, TEXTS[0]]
    assert_same([file.verdict for file in files if file.verdict], [*expected, expected[0]])


def test_command_gives_the_verdict_of_the_library(
    url: str, expected: list[Verdict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXTS[-1])
    code = main(["check", "--url", url, "--target-fpr", "0.1", "--spans", "--json", str(path)])
    assert code == {"human": 0, "ai": 3, "uncertain": 4}[expected[-1].label]
    assert_same([Verdict.model_validate(json.loads(capsys.readouterr().out)["verdict"])], expected[-1:])


def assert_same(verdicts: list[Verdict], expected: list[Verdict]) -> None:
    assert [verdict.label for verdict in verdicts] == [verdict.label for verdict in expected]
    assert [v.probability for v in verdicts] == pytest.approx([v.probability for v in expected], abs=1e-4)
    assert [len(verdict.spans or []) for verdict in verdicts] == [len(verdict.spans or []) for verdict in expected]
