"""Which kind of writing a text is, by its words: human texts of one kind are compared with their like. Pure.

A register gathers sources (`calibration.registers`). A linear model over the token counts of the training split tells
them apart; it reads a text, never its label, so thresholds that are set by what it says keep their guarantee within
each of its answers (Mondrian conformal prediction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detect_ai.core.errors import BundleError

Ids = NDArray[np.int32]
Floats = NDArray[np.float64]

FILE = "registers.safetensors"
SURE = 0.8  # a text is of a register from this probability on; below it is of none
MAX_TEXTS = 5_000  # learnt from, the first ones of each register


@dataclass(frozen=True)
class Registers:
    """Tells registers apart.

    Attributes:
        names: of the registers.
        weights: float32, shape (vocabulary, registers).
        bias: float32, shape (registers,).
    """

    names: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def of(self, documents: Sequence[Ids]) -> list[str]:
        """The register of each document of token ids; "" where no one is sure."""
        if not len(documents):
            return []
        read = map(_features, documents)
        logits = np.stack([values @ self.weights[tokens] for tokens, values in read]) + self.bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        best = shares.argmax(axis=1)
        sure = (shares[np.arange(len(best)), best] >= SURE) & [len(ids) > 0 for ids in documents]
        return [self.names[i] if is_sure else "" for i, is_sure in zip(best, sure, strict=True)]

    def save(self, folder: Path) -> None:
        """Write `registers.safetensors` into a folder."""
        from safetensors.numpy import save_file

        tensors = {"weights": np.ascontiguousarray(self.weights), "bias": np.ascontiguousarray(self.bias)}
        save_file(tensors, folder / FILE)

    @classmethod
    def load(cls, folder: Path, names: Sequence[str]) -> Registers:
        """Read what `save` wrote. Raises BundleError when it does not fit the names."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(folder / FILE)
            weights, bias = tensors["weights"], tensors["bias"]
        except (OSError, SafetensorError, KeyError) as error:
            raise BundleError(f"{folder / FILE}: expected weights and bias of registers: {error}") from error
        if weights.ndim != 2 or weights.shape[1] != len(names) or bias.shape != (len(names),):
            raise BundleError(f"{folder / FILE}: expected {len(names)} registers, found weights of {weights.shape}")
        return cls(tuple(names), weights, bias)


def _features(ids: Ids) -> tuple[Ids, NDArray[np.float32]]:
    """The distinct tokens of a text, and their damped counts, of length one."""
    tokens, counts = np.unique(ids, return_counts=True)
    damped = np.log1p(counts).astype(np.float32)
    return tokens, damped / np.float32(max(1e-12, float(np.linalg.norm(damped))))


def fit(documents: Sequence[Ids], registers: Sequence[str], vocabulary: int, seed: int = 0) -> Registers:
    """Learn to tell registers apart: logistic regression, every register as heavy as the others.

    Args:
        documents: token ids of training texts, or of spans of them.
        registers: the register of each.
        vocabulary: number of tokens of the tokenizer.
        seed: of the solver.
    """
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression

    names = tuple(sorted(set(registers)))
    assert len(names) >= 2, f"expected two registers at least, found {names}"
    distinct, values = zip(*map(_features, documents), strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in distinct])])
    matrix = csr_array((np.concatenate(values), np.concatenate(distinct), offsets), shape=(len(documents), vocabulary))
    model = LogisticRegression(C=10.0, class_weight="balanced", random_state=seed, max_iter=200)
    model.fit(matrix, np.asarray([names.index(name) for name in registers]))
    weights, bias = model.coef_.T, model.intercept_
    if len(names) == 2:  # one row tells the second from the first
        weights, bias = np.concatenate([-weights, weights], axis=1) / 2, np.concatenate([-bias, bias]) / 2
    return Registers(names, weights.astype(np.float32), bias.astype(np.float32))
