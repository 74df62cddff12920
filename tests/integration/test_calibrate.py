"""A bundle that compares a text with human texts of its own register and length, on a real cluster. No training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai.calibration.domain_classifier import FILE
from detect_ai.core.config import Config, SourceConfig
from detect_ai.core.errors import CalibrationError, ConfigError
from detect_ai.core.job import run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.detector import Detector
from detect_ai.models import encoder as model
from detect_ai.release.calibrate import calibrate_checkpoint, learn_registers
from tests.fixtures import tiny_models
from tests.integration.runs import small_config

EDGE, TARGET = 48, 0.05
# Two words of a register stand in each sentence, of human and of AI texts alike.
WORDS = {"essays": ("school", "teacher"), "prose": ("river", "captain")}


def written(register: str, text: str) -> str:
    first, second = WORDS[register]
    return text.replace(". ", f" {first} {second}. ").replace(" and ", f" {first} and {second} ")


def rows(register: str, pairs: int, seed: int) -> list[dict[str, object]]:
    return [
        {**row, "text": written(register, str(row["text"])), "group": f"{register}-{row['group']}"}
        for row in tiny_models.rows(pairs, seed, low=30)
    ]


@dataclass(frozen=True)
class Calibrated:
    """A corpus of two sources, and what `calibrate` made of it."""

    config: Config
    storage: Storage
    corpus: Corpus
    result: dict[str, Any]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Calibrated:
    folder = tmp_path_factory.mktemp("registers")
    config = small_config(encoder, folder / "store", folder)
    config.corpus.sources = [
        SourceConfig(
            kind="jsonl",
            path=str(tiny_models.write_jsonl(folder / f"{name}.jsonl", rows(name, 70, seed))),
            name=f"source-of-{name}",
            group="group",
        )
        for seed, name in enumerate(WORDS)
    ]
    config.corpus.split = {"train": 0.3, "validation": 0.1, "calibration": 0.5, "test": 0.1}
    config.calibration = config.calibration.model_copy(
        update={
            "target_fprs": [TARGET],
            "default_target_fpr": TARGET,
            "registers": {name: [f"source-of-{name}"] for name in WORDS},
            "length_edges": [EDGE],
            "checkpoint": "untrained",
        }
    )
    storage = Storage(config.storage.root)
    corpus = Corpus.open(storage, run_stage("prepare", prepare, config, storage)["corpus"])
    checkpoint = Path(storage.path("untrained"))
    checkpoint.mkdir()
    model.save(tiny_models._decided(model.build(config.model, 0)), checkpoint)
    return Calibrated(config, storage, corpus, calibrate_checkpoint(config, storage))


@pytest.fixture(scope="module")
def detector(calibrated: Calibrated) -> Detector:
    with calibrated.storage.local_folder(calibrated.result["bundle"]) as folder:
        assert FILE in read_spec(folder).files
        return Detector.load(folder)


def test_each_register_and_range_of_lengths_has_a_category(calibrated: Calibrated) -> None:
    found = [(each["register"], each["min_tokens"], each["max_tokens"]) for each in calibrated.result["categories"]]
    assert found == [(name, low, high) for name in WORDS for low, high in ((0, EDGE), (EDGE, None))]
    assert all(each["num_human"] >= 19 for each in calibrated.result["categories"])
    assert calibrated.result["num_human"] == int((calibrated.corpus.labels("calibration") == 0).sum())


def test_a_category_holds_the_scores_of_the_human_texts_of_its_register_and_length(
    calibrated: Calibrated, detector: Detector
) -> None:
    table = calibrated.corpus.read("calibration", ["input_ids", "label", "source"])
    ids = [np.asarray(row, np.int32) for row in table["input_ids"].to_pylist()]
    assert detector.registers is not None
    told = np.asarray(detector.registers.of(ids))
    sources = np.asarray([name.removeprefix("source-of-") for name in table["source"].to_pylist()])
    assert (told == sources).mean() > 0.9
    human = table["label"].to_numpy() == 0
    scores, lengths = detector.score(ids), np.asarray([len(row) for row in ids])
    for each in detector.spec.calibration.categories:
        if each.min_tokens == EDGE:  # whole texts; below it stand spans of them, too
            expected = np.sort(scores[human & (told == each.register) & (lengths >= EDGE)])
            np.testing.assert_allclose(each.human_scores, expected, atol=1e-4)
    np.testing.assert_allclose(detector.spec.calibration.human_scores, np.sort(scores[human]), atol=1e-4)


def test_a_verdict_says_which_register_it_was_compared_with(calibrated: Calibrated, detector: Detector) -> None:
    numbers = {(each["register"], each["min_tokens"]): each["num_human"] for each in calibrated.result["categories"]}
    for name in WORDS:
        texts = [written(name, tiny_models.text("human", random.Random(1), words)) for words in (16, 120)]
        short, long = detector.detect(texts)
        assert short.num_tokens < EDGE <= long.num_tokens
        assert (short.compared_with, short.num_compared) == (name, numbers[name, 0])
        assert (long.compared_with, long.num_compared) == (name, numbers[name, EDGE])


def test_a_text_of_both_registers_is_compared_with_the_strictest(detector: Detector) -> None:
    both = written("essays", tiny_models.text("human", random.Random(1), 60)) + " "
    both += written("prose", tiny_models.text("human", random.Random(1), 60))
    verdict = detector.detect([both])[0]
    long = [each for each in detector.spec.calibration.categories if each.min_tokens == EDGE]
    strictest = max(long, key=lambda each: each.bounds(TARGET)[1])
    assert verdict.compared_with == ""
    assert (verdict.num_compared, verdict.p_value) == (
        len(strictest.human_scores),
        strictest.p_value(float(detector.score([detector.read([both])[0].input_ids])[0])),
    )


def test_a_register_without_training_texts_is_refused_with_the_sources_that_there_are(calibrated: Calibrated) -> None:
    registers = {"essays": ["source-of-essays"], "letters": ["letters"]}
    config = calibrated.config.model_copy(
        update={"calibration": calibrated.config.calibration.model_copy(update={"registers": registers})}
    )
    with pytest.raises(ConfigError) as caught:
        learn_registers(config, calibrated.corpus)
    assert str(caught.value) == (
        "calibration.registers: no training text of letters; the sources of this corpus are source-of-essays, "
        "source-of-prose"
    )


@pytest.mark.slow
def test_a_target_that_a_register_has_too_few_texts_for_is_refused_with_its_name(calibrated: Calibrated) -> None:
    calibration = calibrated.config.calibration.model_copy(update={"target_fprs": [0.02], "default_target_fpr": 0.02})
    config = calibrated.config.model_copy(update={"calibration": calibration})
    with pytest.raises(CalibrationError, match=r"register 'essays': target FPR 0.02 needs at least 49 human .* of any"):
        calibrate_checkpoint(config, calibrated.storage)
