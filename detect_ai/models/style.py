"""Style of a text: its mean pretrained word embedding, projected on the directions of most variance in calibration.

It measures how similar two kinds of writing are (`calibration.new_domain`). It does not depend on the trained weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from detect_ai.metrics import Floats

if TYPE_CHECKING:
    from detect_ai.models.tokenizer import Ids

DIMENSIONS = 16
STYLE_FILE = "style.safetensors"


class Style:
    """A table with a row for each token of the vocabulary, shape (vocabulary, dimensions), float32."""

    def __init__(self, table: ArrayLike) -> None:
        self.table = np.asarray(table, np.float32)

    @classmethod
    def fit(cls, embeddings: ArrayLike, token_ids: Sequence[Ids], domains: ArrayLike) -> Style:
        """Fit the principal directions of texts, given as token ids, with equal weight for all domains.

        `embeddings` has shape (vocabulary, size) and `domains` (texts,); there are at most `DIMENSIONS` directions.
        """
        rows = np.asarray(embeddings, np.float32)
        codes = np.unique(np.asarray(domains), return_inverse=True)[1]
        weights = 1 / np.bincount(codes)[codes]
        means = _means(rows, token_ids)
        centre = np.average(means, axis=0, weights=weights)
        _, directions = np.linalg.eigh(np.cov(means.T, aweights=weights))
        return cls((rows - centre) @ directions[:, ::-1][:, :DIMENSIONS])

    @classmethod
    def load(cls, folder: Path) -> Style:
        """Read `STYLE_FILE` from a folder."""
        from safetensors.numpy import load_file

        return cls(load_file(folder / STYLE_FILE)["table"])

    def save(self, folder: Path) -> None:
        """Write `STYLE_FILE` into a folder."""
        from safetensors.numpy import save_file

        save_file({"table": np.ascontiguousarray(self.table)}, folder / STYLE_FILE)

    def vectors(self, token_ids: Sequence[Ids]) -> Floats:
        """Styles of texts, shape (texts, dimensions), each of length 1; zeros for a text without tokens."""
        means = _means(self.table, token_ids)
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        return np.asarray(means / np.maximum(lengths, np.finfo(np.float32).tiny))


def _means(rows: np.ndarray, token_ids: Sequence[Ids]) -> Floats:
    """Mean of the rows of each text, computed for one text at a time so that it does not depend on the others."""
    means = [rows[np.asarray(ids, np.int64)].sum(0, dtype=np.float64) / max(1, len(ids)) for ids in token_ids]
    return np.asarray(means, np.float64).reshape(len(token_ids), rows.shape[1])
