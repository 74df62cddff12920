"""The stage `calibrate` with domains, minimum lengths and the scaling of spans, on a real cluster without training."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai.calibration.new_domain import MIN_DOMAINS
from detect_ai.core.config import Config, SourceConfig
from detect_ai.core.job import run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.detector.detector import Detector
from detect_ai.release.calibrate import calibrate_checkpoint
from detect_ai.schemas import Reference
from tests.fixtures import tiny_models
from tests.integration.runs import changed, small_config, token_ids

TARGET, LENGTHS = 0.05, [24, 48]
DOMAINS = [f"d{i}" for i in range(MIN_DOMAINS)]
PAIRS = 60  # per domain


def rows(domain: str, pairs: int, seed: int) -> list[dict[str, object]]:
    return [
        {**row, "domain": domain, "group": f"{domain}-{row['group']}"} for row in tiny_models.rows(pairs, seed, low=30)
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
    texts = [row for seed, name in enumerate(DOMAINS) for row in rows(name, PAIRS, seed)]
    path = tiny_models.write_jsonl(folder / "texts.jsonl", texts)
    config.corpus.sources = [SourceConfig(kind="jsonl", path=str(path), name="made", group="group", domain="domain")]
    config.corpus.split = {"train": 0.04, "validation": 0.04, "calibration": 0.88, "test": 0.04}
    changes = {"target_fprs": [TARGET], "default_target_fpr": TARGET, "precision": "bf16", "verdict_lengths": LENGTHS}
    config = changed(config, calibration=changes)
    storage = Storage(config.storage.root)
    corpus = Corpus.open(storage, run_stage("prepare", prepare, config, storage)["corpus"])
    tiny_models.make_bundle(Path(storage.path("untrained")), encoder)
    run_stage("train", lambda *_: {"checkpoint": "untrained", "corpus": corpus.key, "from_sweep": {}}, config, storage)
    return Calibrated(config, storage, corpus, calibrate_checkpoint(config, storage))


@pytest.fixture(scope="module")
def detector(calibrated: Calibrated) -> Detector:
    with calibrated.storage.local_folder(calibrated.result["bundle"]) as folder:
        return Detector.load(folder)


def test_the_result_states_each_domain_and_the_precision(calibrated: Calibrated, detector: Detector) -> None:
    assert [*calibrated.result["domains"]] == DOMAINS
    assert sum(calibrated.result["domains"].values()) == calibrated.result["num_human"]
    assert calibrated.result["num_human"] == int((calibrated.corpus.labels("calibration") == 0).sum())
    assert calibrated.result["precision"] == detector.spec.precision == "bf16"


def test_each_domain_has_the_scores_of_its_own_texts(calibrated: Calibrated, detector: Detector) -> None:
    table = calibrated.corpus.read("calibration", ["label", "domain"])
    domains, labels = np.asarray(table["domain"].to_pylist()), table["label"].to_numpy()
    documents = token_ids(calibrated.corpus, "calibration")
    scores, num_tokens = detector.score(documents), np.asarray([len(ids) for ids in documents])
    calibration = detector.spec.calibration
    for domain in calibration.domains:
        for label, own in ((0, domain.human), (1, domain.ai)):
            chosen = (domains == domain.name) & (labels == label)
            np.testing.assert_allclose(own.scores, scores[chosen], atol=0.2)  # in bf16 a score depends on its batch
            assert list(own.num_tokens) == num_tokens[chosen].tolist()
            np.testing.assert_allclose(np.linalg.norm(own.styles, axis=1), 1, atol=1e-2)
    assert set(calibration.min_tokens) == {TARGET}
    assert calibration.span_scaling is not None
    assert calibration.human_length.variance[1] > 0


def test_a_verdict_states_what_holds_for_a_new_domain(calibrated: Calibrated, detector: Detector) -> None:
    verdict = detector.detect([tiny_models.text("human", random.Random(1), 120)])[0]
    assert (verdict.compared_with, verdict.num_compared) == (Reference.NEW_DOMAIN, calibrated.result["num_human"])
    assert verdict.nearest_domain in DOMAINS
    assert (verdict.fpr_upper_bound, verdict.confidence) == (
        TARGET,
        calibrated.config.calibration.new_domain_confidence,
    )
