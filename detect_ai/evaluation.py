"""The stage `evaluate`: the figures of a candidate bundle on the test split."""

from __future__ import annotations

import logging
from typing import Any

from detect_ai import metrics
from detect_ai.bundle import read_spec
from detect_ai.config import Config
from detect_ai.corpus.manifest import Corpus
from detect_ai.scoring import bundle_loader, score_split
from detect_ai.stage import read_result
from detect_ai.storage import Storage

logger = logging.getLogger(__name__)


def evaluate(config: Config, storage: Storage) -> dict[str, Any]:
    """Judge the candidate bundle of this run on the test split.

    The thresholds are those of the bundle, fixed on the calibration split; the test split decides nothing.
    """
    calibrated = read_result(storage, config.run, "calibrate")
    corpus = Corpus.open(storage, calibrated["corpus"])
    with storage.local_folder(calibrated["bundle"]) as folder:
        spec = read_spec(folder)
    scored = score_split(corpus, "test", calibrated["bundle"], bundle_loader(config.score), config.score)
    figures = metrics.report(
        scored.labels,
        scored.scores,
        spec.calibration.probability(scored.scores),
        {target: spec.calibration.bounds(target)[1] for target in spec.calibration.thresholds},
    )
    logger.info("%s on the test split: %s", spec.version, describe(figures))
    return {
        **figures,
        "bundle": calibrated["bundle"],
        "version": spec.version,
        "test_fingerprint": fingerprint_of_test(corpus),
    }


def fingerprint_of_test(corpus: Corpus) -> str:
    """What names the test data: figures with another name cannot be compared."""
    return ",".join(shard.sha256 for shard in corpus.shards("test"))


def describe(figures: dict[str, Any]) -> str:
    """The main figures in one line."""
    names = ("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5", "accuracy", "f1", "ece")
    shown = [f"{name} {figures[name]:.3f}" for name in names if figures[name] is not None]
    return f"{', '.join(shown)} ({figures['n_human']} human, {figures['n_ai']} AI texts)"
