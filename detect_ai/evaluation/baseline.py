"""The TF-IDF baseline of an evaluation: fitted once per corpus, cached, and calibrated like the detector."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from detect_ai.calibration.calibration import Calibration
from detect_ai.calibration.domains import calibrate, whole_documents
from detect_ai.core.config import CalibrationConfig
from detect_ai.corpus.baseline import TfidfModel, word_counts
from detect_ai.corpus.manifest import ORIGINAL, Corpus
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.evaluation.task import EvalTask
from detect_ai.metrics import Floats
from detect_ai.text.normalize import normalise

logger = logging.getLogger(__name__)

MAX_TEXTS = 50_000  # of the training split: its leading rows, which are in random order
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
    model, fitted = fit_baseline(
        task.corpus, spec.calibration_config, calibration.human_length.window, task.config.seed
    )
    place = {row: i for i, row in enumerate(verdicts.rows.tolist())}
    scores = np.empty(len(place))
    texts = (text for text in texts_of(task.data, task.config.score) if text.row in place)
    while batch := list(islice(texts, SCORED_AT_ONCE)):
        rows = [place[text.row] for text in batch]
        scores[rows] = score_normalised(model, (normalise(text.text).text for text in batch))
    required = fitted.required_scores(np.empty((len(scores), 0)))  # the same for all styles
    return scores, compute_metrics(
        verdicts.labels,
        scores,
        fitted.probability(scores),
        {target: fitted.predictions(scores, verdicts.num_tokens, required, target) for target in fitted.thresholds},
        default_target=spec.default_target_fpr,
        groups=verdicts.columns["group"],
        prevalence=calibration.prevalence,
    )


def fit_baseline(
    corpus: Corpus, config: CalibrationConfig, window: int, seed: int = 0
) -> tuple[TfidfModel, Calibration]:
    """Fit the baseline on the originals of the training split, calibrate it on the calibration split; cache the model.

    `window` and CalibrationError are as in `calibrate`.
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
    scores = score_normalised(model, (normalise(row["text"]).text for row in rows))
    known, num_tokens = [row["label"] for row in rows], [row["num_tokens"] for row in rows]
    scored = whole_documents(known, scores, num_tokens, [row["domain"] or row["source"] for row in rows])
    return model, calibrate(scored, config, window)


def score_normalised(model: TfidfModel, texts: Iterable[str]) -> Floats:
    """Log-odds that normalised texts are AI, shape (texts,)."""
    return np.concatenate([model.score(counts) for counts in _word_counts(texts)])


def _rows(corpus: Corpus, split: str) -> Iterator[dict[str, Any]]:
    for table in corpus.tables(split, ["text", "label", "weight", "attack", "domain", "source", "num_tokens"]):
        yield from table.to_pylist()


def _word_counts(texts: Iterable[str]) -> Iterator[Any]:
    texts = iter(texts)
    while batch := list(islice(texts, SCORED_AT_ONCE)):
        yield word_counts(batch)
