"""95% confidence intervals for grouped texts: one cluster bootstrap for rates, areas and differences.

Texts that share a prompt, a source document or an author are not independent. The bootstrap therefore resamples
groups, not texts (Field and Welsh 2007, "Bootstrapping clustered data"). With fewer than `MIN_GROUPS` groups the
variation between groups cannot be estimated, and there is no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.metrics import Floats, Labels, exact_rate_interval

ROUNDS = 1000
MIN_GROUPS = 10
Interval = tuple[float | None, float | None]
NONE: Interval = (None, None)
_CHUNK = 400_000  # weights in memory at once


def group_ids(groups: NDArray[np.str_]) -> Labels:
    """Number the groups of texts 0, 1, 2, …, shape (n,); each text without a group ("") is a group of its own."""
    names, numbers = np.unique(groups, return_inverse=True)
    numbers = np.where(groups == "", len(names) + np.arange(len(groups)), numbers)
    return np.asarray(np.unique(numbers, return_inverse=True)[1], np.int64)


def enough_groups(ids: Labels, *classes: NDArray[np.bool_]) -> bool:
    """Whether each of these sets of texts, given as masks, has at least `MIN_GROUPS` groups."""
    return all(len(np.unique(ids[mask])) >= MIN_GROUPS for mask in classes)


def bootstrap(statistics: Callable[[Floats], dict[str, Floats]], ids: Labels) -> dict[str, Interval]:
    """Percentile intervals of several statistics, by name, from the same resamples of groups (Efron 1979).

    `statistics` maps the number of times that each text is in each resample, float64 of shape (resamples, texts), to
    values by name, each of shape (resamples,), NaN where a resample lacks a class. Bounds are None where the resamples
    do not vary, because a bootstrap is uninformative then.
    """
    rng, groups = np.random.default_rng(0), int(ids.max()) + 1
    values: dict[str, list[Floats]] = {}
    size = max(1, _CHUNK // len(ids))
    for start in range(0, ROUNDS, size):
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=min(size, ROUNDS - start))
        for name, part in statistics(drawn[:, ids].astype(np.float64)).items():
            values.setdefault(name, []).append(part)
    bounds: dict[str, Interval] = {}
    for name, parts in values.items():
        known = np.concatenate(parts)
        known = known[~np.isnan(known)]
        bounds[name] = NONE
        if known.size and known.min() != known.max():
            low, high = np.quantile(known, [0.025, 0.975])
            bounds[name] = float(low), float(high)
    return bounds


def rate_interval(events: NDArray[np.bool_], ids: Labels) -> Interval:
    """The interval of the fraction of texts with an event; `events` (a mask) and the groups `ids` have shape (n,).

    Exact (Clopper and Pearson) if every text is a group of its own, else a bootstrap, widened to contain the exact
    interval, because it is too narrow with few events. If no text or every text has the event, groups are the trials.
    """
    groups, own = np.unique(ids, return_inverse=True)
    exact = exact_rate_interval(int(events.sum()), len(events))
    if len(groups) == len(events):
        return exact
    if len(groups) < MIN_GROUPS:
        return NONE
    if events.all() or not events.any():
        return exact_rate_interval(len(groups) if events.all() else 0, len(groups))
    count, texts = (np.bincount(own, weights=values) for values in (events, np.ones(len(events))))
    low, high = bootstrap(lambda drawn: {"rate": (drawn @ count) / (drawn @ texts)}, np.arange(len(groups)))["rate"]
    return exact if low is None or high is None else (min(low, exact[0]), max(high, exact[1]))


def group_spread(events: NDArray[np.bool_], ids: Labels) -> dict[str, Any] | None:
    """Number of groups with at least 20 texts, and their minimum, median and maximum rate. None below two groups."""
    texts = np.bincount(ids)
    large = texts >= 20
    rates = np.bincount(ids, weights=events)[large] / texts[large]
    if len(rates) < 2:
        return None
    low, median, high = float(rates.min()), float(np.median(rates)), float(rates.max())
    return {"groups": len(rates), "min": low, "median": median, "max": high}


def paired_differences(
    labels: Labels, scores: Sequence[Floats], predictions: Sequence[Labels], ids: Labels
) -> dict[str, float | None]:
    """Differences of AUROC, FPR and TPR of two detectors on the same texts, the first minus the second.

    Each resample has the same texts for both detectors, so the difficulty of the texts cancels. Scores and predictions
    (0, 1 or -1) have one array per detector; all arrays have shape (n,). Differences are None if a class is missing;
    their bounds `_low` and `_high` are also None if there are too few groups.
    """
    human, ai = labels == 0, labels == 1
    curves = [weighted_roc(labels, values) for values in scores]
    positive = [np.asarray(values == 1, np.float64) for values in predictions]

    def differences(drawn: Floats) -> dict[str, Floats]:
        by_name = {}
        for name, mask in (("fpr_difference", human), ("tpr_difference", ai)):
            if mask.any():
                chosen = drawn[:, mask]
                by_name[name] = _ratio(chosen @ (positive[0] - positive[1])[mask], chosen.sum(axis=1))
        if human.any() and ai.any():
            by_name["auroc_difference"] = area(*curves[0](drawn)) - area(*curves[1](drawn))
        return by_name

    values = differences(np.ones((1, len(labels))))
    bounds = bootstrap(differences, ids)
    report: dict[str, float | None] = {}
    for name, masks in {"auroc": (human, ai), "fpr": (human,), "tpr": (ai,)}.items():
        key = f"{name}_difference"
        low, high = bounds.get(key, NONE) if enough_groups(ids, *masks) else NONE
        report |= {key: float(values[key][0]) if key in values else None, f"{key}_low": low, f"{key}_high": high}
    return report


def weighted_roc(labels: Labels, scores: Floats) -> Callable[[Floats], tuple[Floats, Floats]]:
    """ROC curves of resamples as a function of their weights, shape (resamples, n); the scores are sorted once.

    The function returns the false and the true positives with each distinct score as threshold, highest first, each of
    shape (resamples, thresholds + 1) with a leading 0.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    ai = labels[order] == 1

    def curves(weights: Floats) -> tuple[Floats, Floats]:
        ordered = weights[:, order]
        true, false = (np.cumsum(ordered * mask, axis=1)[:, last] for mask in (ai, ~ai))
        return np.pad(false, ((0, 0), (1, 0))), np.pad(true, ((0, 0), (1, 0)))

    return curves


def area(false: Floats, true: Floats) -> Floats:
    """Areas under curves of `weighted_roc` (AUROC), shape (resamples,); NaN where a resample lacks a class."""
    twice = (np.diff(false) * (true[:, 1:] + true[:, :-1])).sum(axis=1)
    return _ratio(twice, 2 * false[:, -1] * true[:, -1])


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient; NaN where the denominator is zero."""
    quotient: Floats = np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator != 0)
    return quotient
