"""TF-IDF baseline: words and pairs of words with logistic regression, the model that a detector must beat. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

HASHED_FEATURES = 2**18  # hashed, so that memory is bounded whatever the vocabulary
TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class TfidfModel:
    """A fitted baseline.

    Attributes:
        idf: shape (HASHED_FEATURES,).
        weights: shape (HASHED_FEATURES,).
        bias: log-odds of a text without words.
    """

    idf: Floats
    weights: Floats
    bias: float

    @classmethod
    def fit(cls, texts: Iterable[str], labels: ArrayLike, weights: ArrayLike, seed: int = 0) -> TfidfModel:
        """Fit to normalised texts with labels (0 human, 1 AI) and weights in the loss, both of shape (texts,)."""
        from scipy.sparse import vstack
        from sklearn.feature_extraction.text import TfidfTransformer
        from sklearn.linear_model import LogisticRegression

        counts = vstack([_hashed(batch) for batch in _batches(texts)]).tocsr()
        tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
        model = LogisticRegression(C=10.0, solver="liblinear", random_state=seed)
        model.fit(tfidf.transform(counts), np.asarray(labels), sample_weight=np.asarray(weights))
        return cls(np.asarray(tfidf.idf_), np.asarray(model.coef_[0]), float(model.intercept_[0]))

    def score(self, texts: Iterable[str]) -> Floats:
        """Log-odds of AI of normalised texts, shape (texts,)."""
        scores = [self._score(batch) for batch in _batches(texts)]
        return np.concatenate(scores) if scores else np.empty(0)

    def _score(self, texts: list[str]) -> Floats:
        # TfidfTransformer (sublinear, L2) and LogisticRegression of scikit-learn; a test compares them.
        counts = _hashed(texts).astype(np.float64)
        counts.data = (1 + np.log(counts.data)) * self.idf[counts.indices]
        norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
        scores: Floats = np.asarray(counts @ self.weights, np.float64).ravel() / np.maximum(norms, 1e-12) + self.bias
        return scores


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == TEXTS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _hashed(texts: list[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(ngram_range=(1, 2), n_features=HASHED_FEATURES, alternate_sign=False, norm=None)
    return words.transform(texts)
