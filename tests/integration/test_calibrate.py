"""The stage `calibrate` with domains, minimum lengths and the scaling of spans, on a real cluster without training."""

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
from detect_ai.detector.score import predict_domains
from detect_ai.release.calibrate import calibrate_checkpoint, fit_domain_classifier
from tests.fixtures import tiny_models
from tests.integration.runs import changed, small_config, token_ids

TARGET, LENGTHS = 0.05, [24, 48]
# Two words of a domain occur in each sentence, of human and of AI texts alike.
WORDS = {"essays": ("school", "teacher"), "prose": ("river", "captain")}


def in_domain(domain: str, text: str) -> str:
    first, second = WORDS[domain]
    return text.replace(". ", f" {first} {second}. ").replace(" and ", f" {first} and {second} ")


def rows(domain: str, pairs: int, seed: int) -> list[dict[str, object]]:
    return [
        {**row, "text": in_domain(domain, str(row["text"])), "group": f"{domain}-{row['group']}"}
        for row in tiny_models.rows(pairs, seed, low=30)
    ]


@dataclass(frozen=True)
class Calibrated:
    """A corpus of two sources, and the result of `calibrate` on it."""

    config: Config
    storage: Storage
    corpus: Corpus
    result: dict[str, Any]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Calibrated:
    folder = tmp_path_factory.mktemp("domains")
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
    changes = {
        "target_fprs": [TARGET],
        "default_target_fpr": TARGET,
        "precision": "bf16",
        "domains": {name: [f"source-of-{name}"] for name in WORDS},
        "verdict_lengths": LENGTHS,
    }
    config = changed(config, calibration=changes)
    storage = Storage(config.storage.root)
    corpus = Corpus.open(storage, run_stage("prepare", prepare, config, storage)["corpus"])
    tiny_models.make_bundle(Path(storage.path("untrained")), encoder)
    run_stage("train", lambda *_: {"checkpoint": "untrained", "corpus": corpus.key, "from_sweep": {}}, config, storage)
    return Calibrated(config, storage, corpus, calibrate_checkpoint(config, storage))


@pytest.fixture(scope="module")
def detector(calibrated: Calibrated) -> Detector:
    with calibrated.storage.local_folder(calibrated.result["bundle"]) as folder:
        assert FILE in read_spec(folder).files
        return Detector.load(folder)


def test_the_result_states_each_domain_and_the_precision(calibrated: Calibrated, detector: Detector) -> None:
    assert [*calibrated.result["domains"]] == [*WORDS]
    assert all(number >= 19 for number in calibrated.result["domains"].values())
    assert calibrated.result["num_human"] == int((calibrated.corpus.labels("calibration") == 0).sum())
    assert calibrated.result["precision"] == detector.spec.precision == "bf16"


def test_each_domain_has_the_scores_of_its_own_human_texts(calibrated: Calibrated, detector: Detector) -> None:
    table = calibrated.corpus.read("calibration", ["label", "source"])
    assert detector.domain_classifier is not None
    domains = predict_domains(calibrated.corpus, "calibration", detector.domain_classifier)
    sources = np.asarray([name.removeprefix("source-of-") for name in table["source"].to_pylist()])
    assert (domains == sources).mean() > 0.9
    human = table["label"].to_numpy() == 0
    scores = detector.score(token_ids(calibrated.corpus, "calibration"))
    calibration = detector.spec.calibration
    # In bf16 a score depends on its batch.
    for group in calibration.domains:
        np.testing.assert_allclose(group.human_scores, np.sort(scores[human & (domains == group.domain)]), atol=0.2)
        assert set(group.min_tokens) == {TARGET}
    np.testing.assert_allclose(calibration.human_scores, np.sort(scores[human]), atol=0.2)
    assert calibration.span_scaling is not None


def test_a_verdict_names_the_domain_it_was_compared_with(calibrated: Calibrated, detector: Detector) -> None:
    for name, number in calibrated.result["domains"].items():
        text = in_domain(name, tiny_models.text("human", random.Random(1), 120))
        verdict = detector.detect([text])[0]
        assert (verdict.compared_with, verdict.num_compared) == (name, number)
        assert verdict.fpr_upper_bound is not None


def test_a_text_of_both_domains_has_no_bound(detector: Detector) -> None:
    both = " ".join(in_domain(name, tiny_models.text("human", random.Random(1), 60)) for name in WORDS)
    verdict = detector.detect([both])[0]
    assert (verdict.compared_with, verdict.fpr_upper_bound) == ("", None)
    assert verdict.p_value == max(
        group.p_value(float(detector.score([detector.read([both])[0].input_ids])[0]))
        for group in detector.spec.calibration.domains
    )


def test_a_domain_without_training_texts_is_refused(calibrated: Calibrated) -> None:
    domains = {"essays": ["source-of-essays"], "letters": ["letters"]}
    config = changed(calibrated.config, calibration={"domains": domains})
    with pytest.raises(ConfigError, match=r"letters.*source-of-essays, source-of-prose"):
        fit_domain_classifier(config, calibrated.corpus)


@pytest.mark.slow
def test_a_domain_with_too_few_texts_is_refused(calibrated: Calibrated) -> None:
    config = changed(calibrated.config, calibration={"target_fprs": [0.02], "default_target_fpr": 0.02})
    with pytest.raises(CalibrationError, match=r"domain 'essays': target FPR 0.02 needs at least 49 human"):
        calibrate_checkpoint(config, calibrated.storage)
