"""The shortcut audit: how well trivial features, and a bag of words, tell the classes of a corpus apart. Pure.

What a feature alone can do, a detector will learn to do. All that is learnt here (categories, families of features,
the bag of words) is learnt on the training split and judged on the others; without splits it is judged out of fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detect_ai.corpus.baseline import SliceScore, bag_of_words
from detect_ai.corpus.features import CATEGORIES, END, FEATURES, categories, measure
from detect_ai.corpus.folds import Fit, Floats, Ints, Rows, folds, plan, predict
from detect_ai.metrics import auroc, rate_interval
from detect_ai.text.normalize import normalise

PROVENANCE = ("source", "domain")
ALL_FEATURES = "all of these"
PRIOR = 2.0  # texts: how many it takes before a category is believed
MIN_OPENING = 20  # texts that begin with a word, before it is shown
MAX_OPENINGS, MAX_WORD = 12, 24  # words, characters
_Z95 = 1.959964


@dataclass(frozen=True)
class FeatureScore:
    """What one feature alone can do.

    Attributes:
        name: of the feature.
        family: what it belongs to.
        higher_in: the class with the higher values, "ai" or "human"; "" for neither, and for categories.
        auroc: in the training split, weighted as the loss is; never below 0.5 for numbers. Categories: out of fold.
        low: lower end of its 95% interval, texts taken as independent.
        high: upper end.
        normalised: the same after the normaliser, with the same class on top; None for where a text comes from.
        held_out: the same in the other splits, so far below 0.5 if it points the other way there; None without splits.
    """

    name: str
    family: str
    higher_in: str
    auroc: float
    low: float
    high: float
    normalised: float | None
    held_out: float | None


@dataclass(frozen=True)
class FamilyScore:
    """What the features of a family do together: AUROC of boosted trees on texts as read, and on normalised ones."""

    family: str
    auroc: float
    normalised: float


@dataclass(frozen=True)
class Opening:
    """How many training texts of each class begin with a word."""

    word: str
    human: int
    ai: int


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        n_human: human texts read.
        n_ai: AI texts read.
        features: by what they can do, best first.
        families: of features.
        baseline: the bag of words.
        slices: the bag of words by slice.
        openings: first words whose share differs most between the classes.
        largest_groups: by split the number of groups, and the share of the texts that the largest holds.
    """

    n_human: int
    n_ai: int
    features: list[FeatureScore]
    families: list[FamilyScore]
    baseline: SliceScore
    slices: list[SliceScore]
    openings: list[Opening]
    largest_groups: dict[str, tuple[int, float]]


def audit(
    texts: Sequence[str],
    labels: ArrayLike,
    slices: Mapping[str, Sequence[str]],
    weights: ArrayLike | None = None,
) -> Audit:
    """Measure what gives the classes of a corpus away.

    Args:
        texts: as read, not normalised.
        labels: 0 human, 1 ai, shape (texts,).
        slices: columns of one value a text: `split`, `group`, `domain`, `generator`, `source`, as far as there are
            any. With `split`, everything is learnt on "train" and judged on the rest; without, out of fold by `group`.
        weights: of the texts in the loss, above 0, shape (texts,); all 1 when not given.

    Raises:
        CorpusError: one class is missing among the texts to learn from, or among those to judge on.
    """
    rows = plan(labels, slices, weights)
    clean = [normalise(text).text for text in texts]
    raw, normalised = measure(texts), measure(clean)
    raw_heads, heads = categories(texts), categories(clean)
    features = [
        _score_number(rows, feature.name, feature.family, raw[:, i], normalised[:, i])
        for i, feature in enumerate(FEATURES)
    ]
    features += [_score_category(rows, name, family, raw_heads[name], heads[name]) for name, family in CATEGORIES]
    features += [_score_provenance(rows, name) for name in PROVENANCE if name in rows.slices]
    baseline, by_slice = bag_of_words(rows, clean)
    return Audit(
        n_human=int((rows.labels == 0).sum()),
        n_ai=int(rows.labels.sum()),
        features=sorted(features, key=lambda feature: -feature.auroc),
        families=list(_families(rows, raw, normalised)),
        baseline=baseline,
        slices=by_slice,
        openings=_openings(rows, raw_heads["first word"]),
        largest_groups=_largest_groups(rows.slices),
    )


def weighted_auroc(labels: Ints, scores: Floats, weights: Floats) -> tuple[float, float, float]:
    """AUROC with its 95% interval, ties counted as one half.

    The variance is that of DeLong et al. (1988), written as the sum of squared influences of the texts, so that weights
    enter it; the interval is symmetric in log-odds. Where the classes stand apart it is the exact binomial one of the
    smaller class.

    Args:
        labels: 0 human, 1 ai, both present; shape (n,).
        scores: higher = more AI, shape (n,).
        weights: above 0, shape (n,).

    Returns:
        The area and the ends of its interval, in [0, 1].
    """
    _, code = np.unique(scores, return_inverse=True)
    influence = np.empty(len(labels))
    area = 0.0
    for label in (0, 1):
        mine, others = labels == label, labels != label
        mass = np.bincount(code[others], weights[others], minlength=int(code.max()) + 1) / weights[others].sum()
        below = (np.cumsum(mass) - mass / 2)[code[mine]]
        placement = below if label == 1 else 1 - below
        share = weights[mine] / weights[mine].sum()
        area = float(share @ placement)
        influence[mine] = share * (placement - area)
    if not 1e-12 < area < 1 - 1e-12:
        smaller = int(min(labels.sum(), len(labels) - labels.sum()))
        low, _ = rate_interval(smaller, smaller)
        return (1.0, low, 1.0) if area > 0.5 else (0.0, 0.0, 1 - low)
    spread = _Z95 * float(np.sqrt(influence @ influence)) / (area * (1 - area))
    logit = np.log(area / (1 - area))
    low, high = (float(1 / (1 + np.exp(-end))) for end in (logit - spread, logit + spread))
    return area, low, high


def _score_number(rows: Rows, name: str, family: str, raw: Floats, normalised: Floats) -> FeatureScore:
    labels, weights = rows.labels[rows.train], rows.weights[rows.train]
    area, low, high = weighted_auroc(labels, raw[rows.train], weights)
    sign = 1 if area >= 0.5 else -1
    if sign < 0:
        area, low, high = 1 - area, 1 - high, 1 - low
    after, _, _ = weighted_auroc(labels, sign * normalised[rows.train], weights)
    held = auroc(rows.labels[rows.held], sign * raw[rows.held]) if len(rows.held) else None
    side = "ai" if sign > 0 else "human"
    return FeatureScore(name, family, "" if isclose(area, 0.5) else side, area, low, high, after, held)


def _score_category(rows: Rows, name: str, family: str, raw: list[str], normalised: list[str]) -> FeatureScore:
    fit = _log_odds(rows, raw)
    area, low, high = _judge(rows, *predict(rows, rows.within, fit))
    after, _, _ = _judge(rows, *predict(rows, rows.within, _log_odds(rows, normalised)))
    return FeatureScore(name, family, "", area, low, high, after, _held_out(rows, fit))


def _score_provenance(rows: Rows, name: str) -> FeatureScore:
    """How well the place that a text comes from tells its label: folds by row, as groups lie within sources."""
    fit = _log_odds(rows, rows.slices[name])
    area, low, high = _judge(rows, *predict(rows, folds(rows.labels, rows.train), fit))
    return FeatureScore(name, "provenance", "", area, low, high, None, _held_out(rows, fit))


def _held_out(rows: Rows, fit: Fit) -> float | None:
    return auroc(rows.labels[rows.held], fit(rows.train, rows.held)) if len(rows.held) else None


def _judge(rows: Rows, judged: Ints, scores: Floats) -> tuple[float, float, float]:
    return weighted_auroc(rows.labels[judged], scores, rows.weights[judged])


def _log_odds(rows: Rows, values: Sequence[str] | NDArray[Any]) -> Fit:
    """Score a category by the log-odds of AI among the texts learnt from, less those of all of them."""
    names, codes = np.unique(np.asarray(values, object).astype(str), return_inverse=True)

    def fit(learn: Ints, judge: Ints) -> Floats:
        weights, labels = rows.weights[learn], rows.labels[learn]
        prior = np.average(labels, weights=weights)
        total = np.bincount(codes[learn], weights, minlength=len(names))
        ai = np.bincount(codes[learn], weights * labels, minlength=len(names))
        rate = (ai + PRIOR * prior) / (total + PRIOR)
        log_odds: Floats = np.log(rate / (1 - rate)) - np.log(prior / (1 - prior))
        return log_odds[codes[judge]]

    return fit


def _families(rows: Rows, raw: Floats, normalised: Floats) -> Iterator[FamilyScore]:
    """Families of several features, and all features: what a sum of weak tells comes to.

    Not of lengths: characters and words together would measure the length of the words.
    """
    for name in (ALL_FEATURES, *dict.fromkeys(feature.family for feature in FEATURES if feature.family != "length")):
        columns = [i for i, feature in enumerate(FEATURES) if name in (ALL_FEATURES, feature.family)]
        if len(columns) > 1:
            fits = [_trees(rows, values[:, columns]) for values in (raw, normalised)]
            before, after = (_judge(rows, *predict(rows, rows.across, fit))[0] for fit in fits)
            yield FamilyScore(name, before, after)


def _trees(rows: Rows, values: Floats) -> Fit:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    def fit(learn: Ints, judge: Ints) -> Floats:
        trees = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, early_stopping=False, random_state=0)
        with threadpool_limits(1, "openmp"):  # many threads wait for each other far longer where cores are shared
            trees.fit(values[learn], rows.labels[learn], sample_weight=rows.weights[learn])
            return np.asarray(trees.decision_function(values[judge]), np.float64)

    return fit


def _openings(rows: Rows, words: list[str]) -> list[Opening]:
    labels = rows.labels[rows.train]
    names, codes = np.unique(np.asarray(words, object)[rows.train].astype(str), return_inverse=True)
    counts = np.stack([np.bincount(codes[labels == label], minlength=len(names)) for label in (0, 1)])
    differs = np.abs(np.diff(counts / counts.sum(axis=1, keepdims=True), axis=0)[0])
    often = (counts.sum(axis=0) >= MIN_OPENING) & (names != END)
    order = [i for i in np.argsort(-differs, kind="stable") if often[i]]
    return [Opening(str(names[i])[:MAX_WORD], int(counts[0, i]), int(counts[1, i])) for i in order[:MAX_OPENINGS]]


def _largest_groups(slices: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, float]]:
    if "group" not in slices:
        return {}
    splits = slices.get("split", np.full(len(slices["group"]), "all"))
    found = {}
    for split in dict.fromkeys(splits.tolist()):
        _, counts = np.unique(slices["group"][splits == split], return_counts=True)
        found[split] = (len(counts), float(counts.max() / counts.sum()))
    return found
