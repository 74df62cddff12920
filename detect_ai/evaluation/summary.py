"""All figures of one set of texts with their intervals, by name, ready for JSON. Pure."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from detect_ai.core.errors import InputError
from detect_ai.evaluation.intervals import bootstrap, group_numbers, rate_interval
from detect_ai.metrics import (
    Floats,
    Labels,
    area,
    balanced_of,
    bins_of,
    c_at_1_of,
    check_binary,
    checked_calls,
    checked_probabilities,
    confusion,
    counted,
    f05u_of,
    f1_of,
    losses_of,
    roc_counts,
    tpr_of,
)

Figures = dict[str, float | int | None]

# What `report` gives a bootstrap interval; the last three where there are calls.
RESAMPLED = (
    *("auroc", "tpr_at_fpr_0_1", "tpr_at_fpr_1", "tpr_at_fpr_5"),
    *("balanced_accuracy", "f1", "ece", "brier", "brier_complement", "log_loss"),
    *("c_at_1", "f05u", "pan_mean"),
)
PAN = ("auroc", "brier_complement", "c_at_1", "f1", "f05u")
# A rate of 0.1% of fewer human texts is less than one text.
HUMANS_FOR_0_1_PERCENT = 1000


def key_of_target(target: float) -> str:
    """How the names of its figures end: "1" for 0.01, "0_1" for 0.001."""
    return f"{100 * target:g}".replace(".", "_")


def without_intervals(figures: Figures) -> Figures:
    """The figures alone."""
    return {name: value for name, value in figures.items() if not name.endswith(("_low", "_high"))}


def weighted_figures(
    labels: ArrayLike, scores: ArrayLike, probabilities: ArrayLike, calls: ArrayLike | None = None
) -> Callable[[Labels], dict[str, float]]:
    """The figures that `report` resamples, as one function of how often each text counts: sorted once for all rounds.

    Args:
        labels: 0 human, 1 AI, shape (n,).
        scores: higher = more AI, shape (n,).
        probabilities: P(AI), shape (n,).
        calls: 0 human, 1 AI, -1 uncertain, shape (n,); None: no figure of calls.

    Returns:
        A function of multiplicities (int64, shape (n,)) that gives the figures by name, each as of the texts so often
        repeated. Texts of one class have no figure that compares the classes, fewer than 1,000 human texts no
        `tpr_at_fpr_0_1`.
        Where the texts have both classes, so must the multiplicities.

    Raises:
        InputError: as `check_binary`, or a probability is outside [0, 1].
    """
    truth, s = check_binary(labels, scores)
    _, p = checked_probabilities(labels, probabilities)
    curve, outcome = roc_counts(truth, s), 2 * truth + (p >= 0.5)
    bin_of_text, errors, squares = bins_of(p, 15), p - truth, (p - truth) ** 2
    losses = losses_of(truth, p)
    made = None if calls is None else checked_calls(truth, calls)[1]
    targets = _fpr_targets(truth)

    def figures(counts: Labels) -> dict[str, float]:
        texts = int(counts.sum())
        found = {
            "ece": float(np.abs(np.bincount(bin_of_text, weights=counts * errors)).sum() / texts),
            "brier": float(counts @ squares / texts),
            "log_loss": float(counts @ losses / texts),
        }
        found["brier_complement"] = 1 - found["brier"]
        if made is not None:
            found["c_at_1"] = c_at_1_of(truth, made, counts)
        if targets:
            points, table = curve(counts), counted(outcome, counts)
            found |= {"auroc": area(*points), "f1": f1_of(table), "balanced_accuracy": balanced_of(table)}
            found |= {name: tpr_of(fpr, *points) for name, fpr in targets.items()}
            if made is not None:
                found["f05u"] = f05u_of(truth, made, counts)
                found["pan_mean"] = sum(found[name] for name in PAN) / len(PAN)
        return found

    return figures


def report(
    labels: ArrayLike,
    scores: ArrayLike,
    probabilities: ArrayLike,
    calls_by_target: Mapping[float, ArrayLike],
    default_target: float | None = None,
    groups: ArrayLike | None = None,
    rounds: int = 200,
    seed: int = 0,
) -> Figures:
    """All figures of one set of texts, ready for JSON.

    A set with one class (a slice by generator, say) is reported too: what needs the missing class is None. Accuracy,
    balanced accuracy, precision, recall and F1 call a text AI from probability 0.5 on.

    The figures named in `RESAMPLED` have percentile bootstrap bounds `_low` and `_high` (95%; None with the figure,
    without rounds, and for texts of one group), all rates have those of Clopper and Pearson, which take texts for
    independent. A rate of no texts is None, within 0.0 and 1.0.

    For a target of 5%, `fpr_at_target_5` is the share of all human texts called AI, `tpr_at_target_5` that of all AI
    texts (an uncertain one is missed), `uncertain_share_at_5` the share of all texts left open; for 0.1% they end in
    `_0_1`. `uncertain_share`, `c_at_1` and `f05u` are of the default target, None where no target is given, and
    `pan_mean` is the mean of AUROC, `brier_complement`, `c_at_1`, F1 and `f05u`. (PAN's own F1 leaves out uncertain
    texts; this one is of all texts.)

    Args:
        labels: 0 human, 1 AI, shape (n,).
        scores: higher = more AI, shape (n,).
        probabilities: P(AI), shape (n,).
        calls_by_target: by target FPR the calls, 0 human, 1 AI, -1 uncertain, shape (n,); see `calls_at`.
        default_target: one of these targets; None: the largest.
        groups: the group of each text, which go together into a resample; see `intervals.group_numbers`.
        rounds: number of bootstrap resamples; 0: no bootstrap.
        seed: of the resamples.

    Returns:
        Figures by name.

    Raises:
        InputError: as `check_binary`, a probability is outside [0, 1], a call is none of these, the default target is
            not among the targets, or the groups have another shape.
    """
    truth, s = check_binary(labels, scores)
    _, p = checked_probabilities(labels, probabilities)
    calls = {target: checked_calls(truth, made)[1] for target, made in calls_by_target.items()}
    if default_target is not None and default_target not in calls:
        raise InputError(f"the default target must be one of {sorted(calls)}, found {default_target}")
    num_ai = int(truth.sum())
    chosen = max(calls, default=None) if default_target is None else default_target
    of_default = None if chosen is None else calls[chosen]
    resampled = _resampled(truth, s, p, of_default, groups, rounds, seed)
    figures: Figures = {"n_human": truth.size - num_ai, "n_ai": num_ai, **resampled}
    figures |= _of_predictions(confusion(truth, (p >= 0.5).astype(np.int64)))
    for target, made in calls.items():
        figures |= _of_target(key_of_target(target), truth, made)
    return figures | _of_default(of_default)


def _resampled(
    truth: Labels,
    scores: Floats,
    p: Floats,
    calls: Labels | None,
    groups: ArrayLike | None,
    rounds: int,
    seed: int,
) -> Figures:
    """The figures of `RESAMPLED` with their bounds."""
    figures = weighted_figures(truth, scores, p, calls)
    found = figures(np.ones_like(truth))
    number = group_numbers(groups, truth.size)
    intervals = bootstrap(figures, truth, number, rounds, seed) if rounds and number.max() > 0 else {}
    made: Figures = {}
    for name in RESAMPLED:
        low, high = intervals.get(name, (None, None))
        made |= {name: found.get(name), f"{name}_low": low, f"{name}_high": high}
    return made


def _of_predictions(table: tuple[int, int, int, int]) -> Figures:
    tn, fp, fn, tp = table
    called_ai = tp + fp if (tn + fp) and (fn + tp) else 0
    return (
        _rate("accuracy", tn + tp, sum(table))
        | _rate("precision", tp if called_ai else 0, called_ai)
        | _rate("recall", tp, fn + tp)
    )


def _of_target(percent: str, truth: Labels, calls: Labels) -> Figures:
    rates: Figures = {}
    for name, label in (("fpr", 0), ("tpr", 1)):
        made = calls[truth == label]
        rates |= _rate(f"{name}_at_target_{percent}", int((made == 1).sum()), made.size)
    return rates | _rate(f"uncertain_share_at_{percent}", int((calls == -1).sum()), calls.size)


def _of_default(calls: Labels | None) -> Figures:
    if calls is None:
        return dict.fromkeys(("uncertain_share", "uncertain_share_low", "uncertain_share_high"))
    return _rate("uncertain_share", int((calls == -1).sum()), calls.size)


def _rate(name: str, successes: int, trials: int) -> Figures:
    low, high = rate_interval(successes, trials)
    return {name: successes / trials if trials else None, f"{name}_low": low, f"{name}_high": high}


def _fpr_targets(truth: Labels) -> dict[str, float]:
    """What `tpr_at_fpr` is reported at: nothing without both classes, 0.1% with enough human texts only."""
    num_human = int((truth == 0).sum())
    if not 0 < num_human < truth.size:
        return {}
    few = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}
    return {"tpr_at_fpr_0_1": 0.001, **few} if num_human >= HUMANS_FOR_0_1_PERCENT else few
