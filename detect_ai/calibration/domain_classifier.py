"""Linear domain classifier over token counts: which kind of writing a text is.

A domain groups sources (`calibration.domains`). The classifier is fitted on the training split; it reads a text,
never its label, so thresholds set within each predicted domain keep their guarantee (Mondrian conformal prediction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detect_ai.core.errors import BundleError

Ids = NDArray[np.int32]

FILE = "domains.safetensors"
MIN_PROBABILITY = 0.8  # below it the domain of a text is not known
MAX_TEXTS = 5_000  # training texts of each domain


@dataclass(frozen=True)
class DomainClassifier:
    """Multinomial logistic regression on the damped token counts of a text.

    Attributes:
        names: of the domains.
        weights: float32, shape (vocabulary, domains).
        bias: float32, shape (domains,).
    """

    names: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def predict(self, documents: Sequence[Ids]) -> list[str]:
        """The domain of each document of token ids; "" where none is probable enough, and for an empty one."""
        if not len(documents):
            return []
        features = map(_features, documents)
        logits = np.stack([values @ self.weights[tokens] for tokens, values in features]) + self.bias
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        best = probabilities.argmax(axis=1)
        is_known = (probabilities.max(axis=1) >= MIN_PROBABILITY) & [len(ids) > 0 for ids in documents]
        return [self.names[i] if known else "" for i, known in zip(best, is_known, strict=True)]

    def save(self, folder: Path) -> None:
        """Write `domains.safetensors` into a folder."""
        from safetensors.numpy import save_file

        tensors = {"weights": np.ascontiguousarray(self.weights), "bias": np.ascontiguousarray(self.bias)}
        save_file(tensors, folder / FILE)

    @classmethod
    def load(cls, folder: Path, names: Sequence[str]) -> DomainClassifier | None:
        """Read what `save` wrote; None without domains. Raises BundleError when it is damaged or has other domains."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        if not names:
            return None
        try:
            tensors = load_file(folder / FILE)
            weights, bias = tensors["weights"], tensors["bias"]
        except (OSError, SafetensorError, KeyError) as error:
            raise BundleError(f"{folder / FILE}: expected weights and bias of a domain classifier: {error}") from error
        if weights.ndim != 2 or weights.shape[1] != len(names) or bias.shape != (len(names),):
            raise BundleError(f"{folder / FILE}: expected {len(names)} domains, found weights of {weights.shape}")
        return cls(tuple(names), weights, bias)


def _features(ids: Ids) -> tuple[Ids, NDArray[np.float32]]:
    """The distinct tokens of a text and their damped counts, scaled to length one."""
    tokens, counts = np.unique(ids, return_counts=True)
    damped = np.log1p(counts).astype(np.float32)
    return tokens, damped / np.float32(max(1e-12, float(np.linalg.norm(damped))))


def fit(documents: Sequence[Ids], domains: Sequence[str], vocabulary: int, seed: int = 0) -> DomainClassifier:
    """Fit the classifier, with balanced class weights, to token ids of training texts (or spans) and their domains."""
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression

    names = tuple(sorted(set(domains)))
    assert len(names) >= 2, f"expected at least two domains, found {names}"
    distinct, values = zip(*map(_features, documents), strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in distinct])])
    matrix = csr_array((np.concatenate(values), np.concatenate(distinct), offsets), shape=(len(documents), vocabulary))
    model = LogisticRegression(C=10.0, class_weight="balanced", random_state=seed, max_iter=200)
    model.fit(matrix, np.asarray([names.index(name) for name in domains]))
    weights, bias = model.coef_.T, model.intercept_
    if len(names) == 2:  # scikit-learn has one row, which separates the second from the first
        weights, bias = np.concatenate([-weights, weights], axis=1) / 2, np.concatenate([-bias, bias]) / 2
    return DomainClassifier(names, weights.astype(np.float32), bias.astype(np.float32))
