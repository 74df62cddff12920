"""The TF-IDF baseline of an evaluation: fitted once for a corpus, cached, calibrated like the detector.

Where the detector has thresholds by domain, so has the baseline. Both use the domain that the detector's classifier
predicts, in calibration as in evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detect_ai.calibration.calibration import Calibration, calibrate
from detect_ai.calibration.domain_classifier import DomainClassifier
from detect_ai.calibration.domains import calibrate_domains
from detect_ai.core.errors import CalibrationError
from detect_ai.corpus.baseline import TfidfModel, word_counts
from detect_ai.corpus.manifest import ORIGINAL, Corpus
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.score import predict_domains
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.evaluation.task import EvalTask
from detect_ai.metrics import Floats, Labels, predictions_at
from detect_ai.text.normalize import normalise

logger = logging.getLogger(__name__)

MAX_TEXTS = 50_000  # of training: the leading rows, which are in random order
SCORED_AT_ONCE = 512


def evaluate_baseline(task: EvalTask, verdicts: Verdicts) -> tuple[Floats, dict[str, Any]] | tuple[None, None]:
    """Scores and metrics of the baseline on the same texts; None if the detector's corpus is not in this storage."""
    spec, calibration = task.spec, task.spec.calibration
    if task.corpus is None:
        logger.warning(
            "no baseline: the corpus that %s was trained on is not in this storage, run jobs/evaluate.py where it is",
            spec.version,
        )
        return None, None
    with task.bundle[0].local_folder(task.bundle[1]) as folder:
        classifier = DomainClassifier.load(folder, spec.domains)
    domains = predict_domains(task.corpus, "calibration", classifier) if classifier else None
    targets = sorted(calibration.thresholds)
    model, fitted = fit_baseline(task.corpus, targets, calibration.prevalence, domains, task.config.seed)
    place = {row: i for i, row in enumerate(verdicts.rows.tolist())}
    scores = np.empty(len(place))
    texts = (text for text in texts_of(task.data, task.config.score) if text.row in place)
    while batch := list(islice(texts, SCORED_AT_ONCE)):
        rows = [place[text.row] for text in batch]
        scores[rows] = score_normalised(model, (normalise(text.text).text for text in batch))
    probabilities, predictions = decide(fitted, scores, verdicts.columns["compared_with"])
    return scores, compute_metrics(
        verdicts.labels,
        scores,
        probabilities,
        predictions,
        default_target=spec.default_target_fpr,
        groups=verdicts.columns["group"],
        prevalence=calibration.prevalence,
    )


def fit_baseline(
    corpus: Corpus,
    targets: Sequence[float],
    prevalence: float = 0.5,
    domains: NDArray[np.str_] | None = None,
    seed: int = 0,
) -> tuple[TfidfModel, Calibration]:
    """Fit the baseline on the originals of the training split, calibrate it on the calibration split; cache the model.

    `domains` are those predicted for the calibration split ("": unknown); without any, all texts have one threshold.
    """
    from safetensors.numpy import load, save
    from scipy.sparse import vstack

    storage, key = corpus.storage, f"baselines/{corpus.manifest.fingerprint[:16]}.safetensors"
    if storage.exists(key):
        tensors = load(storage.read_bytes(key))
        model = TfidfModel(tensors["idf"], tensors["weights"], float(tensors["bias"][0]))
    else:
        logger.info("fitting the TF-IDF baseline of %s", corpus.key)
        rows = list(islice((row for row in _rows(corpus, "train") if row["attack"] == ORIGINAL), MAX_TEXTS))
        labels, weights = (np.asarray([row[name] for row in rows]) for name in ("label", "weight"))
        counts = vstack(list(_word_counts(normalise(row["text"]).text for row in rows))).tocsr()
        model = TfidfModel.fit(counts, labels, weights, seed)
        tensors = {"idf": model.idf, "weights": model.weights, "bias": np.asarray([model.bias])}
        storage.write_bytes(key, save(tensors))
    rows = list(_rows(corpus, "calibration"))
    labels = np.asarray([row["label"] for row in rows])
    scores = score_normalised(model, (normalise(row["text"]).text for row in rows))
    calibration = calibrate(labels, scores, targets, prevalence=prevalence)
    if domains is not None:
        whole = pd.DataFrame({"label": labels, "score": scores, "domain": domains, "is_whole": True})
        try:
            calibration = calibrate_domains(calibration, whole)
        except CalibrationError as error:
            logger.warning("the baseline has one threshold for all domains: %s", error)
    return model, calibration


def decide(calibration: Calibration, scores: Floats, domains: NDArray[np.str_]) -> tuple[Floats, dict[float, Labels]]:
    """P(AI), and 0 human, 1 ai, -1 uncertain by target, of texts of these domains ("": unknown), shape (texts,)."""
    probabilities = np.empty(len(scores))
    predictions = {target: np.empty(len(scores), np.int64) for target in sorted(calibration.thresholds)}
    for domain in np.unique(domains).tolist():
        own, group = domains == domain, calibration.select_group(domain)
        probabilities[own] = group.probability(scores[own])
        for target, predicted in predictions.items():
            predicted[own] = predictions_at(scores[own], *group.bounds(target))
    return probabilities, predictions


def score_normalised(model: TfidfModel, texts: Iterable[str]) -> Floats:
    """Log-odds of AI of normalised texts, shape (texts,)."""
    return np.concatenate([model.score(counts) for counts in _word_counts(texts)])


def _rows(corpus: Corpus, split: str) -> Iterator[dict[str, Any]]:
    for table in corpus.tables(split, ["text", "label", "weight", "attack"]):
        yield from table.to_pylist()


def _word_counts(texts: Iterable[str]) -> Iterator[Any]:
    texts = iter(texts)
    while batch := list(islice(texts, SCORED_AT_ONCE)):
        yield word_counts(batch)
