"""The least that a detector must beat: TF-IDF of words and logistic regression, learnt from the same training split.

It is learnt once for a corpus, calibrated like a detector on the same calibration split, and kept in storage.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.calibration import Calibration, calibrate
from detect_ai.corpus.baseline import HASHED_FEATURES
from detect_ai.corpus.manifest import Corpus
from detect_ai.text import normalise

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
MAX_TEXTS = 50_000  # learnt from: the leading rows, which are random ones
SCORED_AT_ONCE = 512


@dataclass(frozen=True)
class Baseline:
    """A bag of words with its calibration.

    Attributes:
        idf: float64, shape (HASHED_FEATURES,).
        weights: float64, shape (HASHED_FEATURES,).
        bias: log-odds of a text without words.
        calibration: on the calibration split of its corpus.
    """

    idf: Floats
    weights: Floats
    bias: float
    calibration: Calibration

    def score(self, texts: Iterable[str]) -> Floats:
        """Log-odds of AI of normalised texts, shape (texts,)."""
        scores = [_scores(batch, self.idf, self.weights, self.bias) for batch in _batches(texts)]
        return np.concatenate(scores) if scores else np.empty(0)


def baseline_of(corpus: Corpus, targets: Sequence[float], seed: int = 0) -> Baseline:
    """The baseline of a corpus, with thresholds for these targets; learnt now unless storage has it."""
    key = f"baselines/{corpus.manifest.fingerprint[:16]}"
    storage = corpus.storage
    if storage.exists(f"{key}.json"):
        from safetensors.numpy import load

        tensors = load(storage.read_bytes(f"{key}.safetensors"))
        kept = storage.read_json(f"{key}.json")
        labels, scores = tensors["labels"], tensors["scores"]
        return Baseline(tensors["idf"], tensors["weights"], kept["bias"], calibrate(labels, scores, targets))
    logger.info("learning the baseline of %s", corpus.key)
    idf, weights, bias = _learn(corpus, seed)
    rows = list(_rows(corpus, "calibration", corpus.num_rows("calibration")))
    labels = np.asarray([label for _, label, _ in rows])
    scores = np.concatenate([_scores(batch, idf, weights, bias) for batch in _batches(text for text, _, _ in rows)])
    from safetensors.numpy import save

    tensors = {"idf": idf, "weights": weights, "labels": labels, "scores": scores}
    storage.write_bytes(f"{key}.safetensors", save(tensors))
    storage.write_bytes(f"{key}.json", json.dumps({"bias": bias, "corpus": corpus.key}).encode())
    return Baseline(idf, weights, bias, calibrate(labels, scores, targets))


def _learn(corpus: Corpus, seed: int) -> tuple[Floats, Floats, float]:
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    rows = list(_rows(corpus, "train", MAX_TEXTS))
    hashed = vstack([_hashed(batch) for batch in _batches(text for text, _, _ in rows)]).tocsr()
    tfidf = TfidfTransformer(sublinear_tf=True).fit(hashed)
    model = LogisticRegression(C=10.0, solver="liblinear", random_state=seed)
    labels, weights = (np.asarray(values) for values in zip(*((row[1], row[2]) for row in rows), strict=True))
    model.fit(tfidf.transform(hashed), labels, sample_weight=weights)
    return np.asarray(tfidf.idf_), np.asarray(model.coef_[0]), float(model.intercept_[0])


def _rows(corpus: Corpus, split: str, most: int) -> Iterator[tuple[str, int, float]]:
    """Normalised text, label and weight of the leading originals: copies under attacks are the detector's alone."""
    for table in corpus.tables(split, ["text", "label", "weight", "attack"]):
        columns = (table[name].to_pylist() for name in ("text", "label", "weight", "attack"))
        for text, label, weight, attack in zip(*columns, strict=True):
            if attack != "none":
                continue
            if most <= 0:
                return
            most -= 1
            yield normalise(text).text, label, weight


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == SCORED_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _hashed(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(ngram_range=(1, 2), n_features=HASHED_FEATURES, alternate_sign=False, norm=None)
    return words.transform(texts)


def _scores(texts: Sequence[str], idf: Floats, weights: Floats, bias: float) -> Floats:
    """As scikit-learn's TfidfTransformer (sublinear, L2) and LogisticRegression: a test holds them together."""
    counts = _hashed(texts).astype(np.float64)
    counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    scores: Floats = np.asarray(counts @ weights, np.float64).ravel() / np.maximum(norms, 1e-12) + bias
    return scores
