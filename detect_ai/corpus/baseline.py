"""TF-IDF baseline: logistic regression on words and word pairs, the model that a detector must beat. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from detect_ai.metrics import Floats, Labels

HASHED_FEATURES = 2**18  # hashing bounds the memory for any vocabulary


@dataclass(frozen=True)
class TfidfModel:
    """Logistic regression over TF-IDF (sublinear counts, L2) of hashed words and word pairs."""

    idf: Floats  # float64, shape (HASHED_FEATURES,)
    weights: Floats  # float64, shape (HASHED_FEATURES,)
    bias: float  # log-odds of a text without words

    @classmethod
    def fit(cls, counts: Any, labels: Labels, sample_weights: Floats, seed: int = 0) -> Self:
        """Fit on the `word_counts` of texts, with labels (0 human, 1 AI) and loss weights of shape (texts,)."""
        from sklearn.feature_extraction.text import TfidfTransformer
        from sklearn.linear_model import LogisticRegression

        tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
        model = LogisticRegression(C=10.0, solver="liblinear", random_state=seed)
        model.fit(tfidf.transform(counts), labels, sample_weight=sample_weights)
        return cls(np.asarray(tfidf.idf_), np.asarray(model.coef_[0]), float(model.intercept_[0]))

    def score(self, counts: Any) -> Floats:
        """Log-odds that texts are AI, shape (texts,), from their `word_counts`."""
        weighted = counts.astype(np.float64)
        weighted.data = (1 + np.log(weighted.data)) * self.idf[weighted.indices]
        norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        projected = np.asarray(weighted @ self.weights, np.float64).ravel()
        return np.asarray(projected / np.maximum(norms, 1e-12) + self.bias, np.float64)


def word_counts(texts: Sequence[str]) -> Any:
    """Counts of hashed words and word pairs in normalised texts: sparse, shape (texts, HASHED_FEATURES)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(ngram_range=(1, 2), n_features=HASHED_FEATURES, alternate_sign=False, norm=None)
    return words.transform(texts)
