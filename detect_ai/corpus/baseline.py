"""The least that a detector must beat: TF-IDF of words and logistic regression, by slice. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.corpus.folds import Fit, Floats, Ints, Rows, predict
from detect_ai.metrics import auroc, largest_count, tpr_at_fpr

COLUMNS = ("domain", "generator", "source")
MIN_TEXTS = 20  # of one class: smaller slices say nothing
MAX_SLICES = 40  # of a column, the largest ones
HASHED_FEATURES = 2**18


@dataclass(frozen=True)
class SliceScore:
    """The bag of words on a slice of the held-out texts.

    Attributes:
        column: the slice is by this, or "all".
        value: of the column.
        n_human: human texts of the slice.
        n_ai: AI texts of the slice.
        own_humans: whether its AI texts are set against the human ones of the slice, or against all held-out ones.
        auroc: None without AI texts.
        tpr_at_fpr_1: None without AI texts, or with too few human ones for such a rate.
        tpr_at_fpr_5: likewise.
        called_ai: share of the slice's human texts that are called AI where 5% of all human texts are; None without.
    """

    column: str
    value: str
    n_human: int
    n_ai: int
    own_humans: bool
    auroc: float | None
    tpr_at_fpr_1: float | None
    tpr_at_fpr_5: float | None
    called_ai: float | None


def bag_of_words(rows: Rows, texts: Sequence[str]) -> tuple[SliceScore, list[SliceScore]]:
    """Learn and judge the baseline.

    Args:
        rows: what to learn from and what to judge on.
        texts: normalised, as the detector reads them.

    Returns:
        The score over all texts judged, and those of the slices by `COLUMNS`.
    """
    judged, scores = predict(rows, rows.across, _regression(rows, texts))
    labels = rows.labels[judged]
    everything = np.ones(len(judged), bool)
    slices = []
    for column in COLUMNS:
        if column in rows.slices:
            slices += _by_value(labels, scores, column, rows.slices[column][judged])
    return _score("all", "", labels, scores, everything), slices


def _regression(rows: Rows, texts: Sequence[str]) -> Fit:
    """TF-IDF of words and pairs of words, hashed so that memory is bounded whatever the vocabulary."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    words = HashingVectorizer(ngram_range=(1, 2), n_features=HASHED_FEATURES, alternate_sign=False, norm=None)
    hashed = words.transform(texts)

    def fit(learn: Ints, judge: Ints) -> Floats:
        tfidf = TfidfTransformer(sublinear_tf=True).fit(hashed[learn])
        model = LogisticRegression(C=10.0, solver="liblinear", random_state=0)
        model.fit(tfidf.transform(hashed[learn]), rows.labels[learn], sample_weight=rows.weights[learn])
        return np.asarray(model.decision_function(tfidf.transform(hashed[judge])), np.float64)

    return fit


def _by_value(labels: Ints, scores: Floats, column: str, values: NDArray[Any]) -> list[SliceScore]:
    """One score a value that is not empty, largest first. Generators have AI texts: what they call a human is none."""
    kept = (values != "") & ((labels == 1) | (column != "generator"))
    names, counts = np.unique(values[kept], return_counts=True)
    largest = [names[i] for i in np.argsort(-counts, kind="stable")[:MAX_SLICES]]
    found = [_score(column, str(name), labels, scores, kept & (values == name)) for name in largest]
    return [each for each in found if max(each.n_human, each.n_ai) >= MIN_TEXTS]


def _score(column: str, value: str, labels: Ints, scores: Floats, mask: NDArray[np.bool_]) -> SliceScore:
    human, ai = mask & (labels == 0), mask & (labels == 1)
    own = int(human.sum()) >= MIN_TEXTS or column == "all"
    against = human if own else labels == 0
    truth, values = labels[against | ai], scores[against | ai]
    tprs = [
        tpr_at_fpr(truth, values, fpr) if ai.any() and largest_count(fpr, int(against.sum())) else None
        for fpr in (0.01, 0.05)
    ]
    return SliceScore(
        column=column,
        value=value,
        n_human=int(human.sum()),
        n_ai=int(ai.sum()),
        own_humans=own,
        auroc=auroc(truth, values) if ai.any() else None,
        tpr_at_fpr_1=tprs[0],
        tpr_at_fpr_5=tprs[1],
        called_ai=float((scores[human] > _threshold(scores[labels == 0])).mean()) if human.any() else None,
    )


def _threshold(human: Floats, fpr: float = 0.05) -> float:
    """Texts with higher scores than this are called AI: at most `fpr` of the human ones."""
    return float(np.sort(human)[-1 - largest_count(fpr, len(human))])
