"""All metrics of one set of labelled texts with 95% confidence intervals, by name, ready for JSON. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.calibration.many_texts import precision
from detect_ai.evaluation import intervals
from detect_ai.evaluation.intervals import NONE, Interval
from detect_ai.metrics import RELIABILITY_BINS, Floats, Labels, bin_numbers, key_of_target, largest_count, log_losses

Metrics = dict[str, Any]
SCORE_METRICS = ("auroc", "tpr_at_fpr_0_1", "tpr_at_fpr_1", "tpr_at_fpr_5", "ece", "brier", "log_loss")
FIXED_FPRS = {"tpr_at_fpr_0_1": 0.001, "tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}
PPV_PREVALENCES = (0.05, 0.2)


def without_intervals(metrics: Metrics) -> Metrics:
    """The metrics without their bounds."""
    return {name: value for name, value in metrics.items() if not name.endswith(("_low", "_high"))}


def compute_metrics(
    labels: Labels,
    scores: Floats,
    probabilities: Floats,
    predictions: Mapping[float, Labels],
    default_target: float,
    groups: NDArray[np.str_],
    prevalence: float = 0.5,
    score_intervals: bool = True,
) -> Metrics:
    """Compute all metrics of one set of texts; docs/EVALUATION.md defines them.

    A metric is None if there are too few texts: a TPR at a fixed FPR needs enough human texts to allow at least one
    false positive. Names of 95% interval bounds end in `_low` and `_high`; see `detect_ai.evaluation.intervals`.

    Arrays have shape (n,). Labels are 0 human, 1 AI; predictions by target FPR are 0 human, 1 AI, -1 uncertain; groups
    are "" for none. The probabilities assume `prevalence`. `score_intervals` (of AUROC) take most of the time.
    """
    ids = intervals.group_ids(groups)
    human, ai = labels == 0, labels == 1
    metrics: Metrics = {"n_human": int(human.sum()), "n_ai": int(ai.sum()), "n_groups": int(ids.max()) + 1}
    values: dict[str, Floats] = {}
    bounds: dict[str, Interval] = {}
    if human.any() and ai.any():
        statistics = score_statistics(labels, scores, probabilities, prevalence)
        values = statistics(np.ones((1, labels.size)))
        if score_intervals and intervals.enough_groups(ids, human, ai):
            bounds = intervals.bootstrap(statistics, ids)
    for name in SCORE_METRICS:
        low, high = bounds.get(name, NONE)
        value = float(values[name][0]) if name in values else None
        metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    decisions = (
        ("fpr_at_target", human, 1),
        ("tpr_at_target", ai, 1),
        ("cleared_ai_fraction", ai, 0),
        ("abstained_fraction", human | ai, -1),
        ("abstained_human", human, -1),
        ("abstained_ai", ai, -1),
    )
    for target, predicted in predictions.items():
        key = key_of_target(target)
        rates: Metrics = {}
        for name, mask, decision in decisions:
            events = predicted[mask] == decision
            low, high = intervals.rate_interval(events, ids[mask]) if events.size else NONE
            rates |= {name: float(events.mean()) if events.size else None, f"{name}_low": low, f"{name}_high": high}
        for rate in ("fpr_at_target", "tpr_at_target"):
            metrics |= {f"{rate}_{key}{end}": rates[f"{rate}{end}"] for end in ("", "_low", "_high")}
        metrics |= {f"{rate}_at_{key}": rates[rate] for rate in ("cleared_ai_fraction", "abstained_fraction")}
        if target == default_target:
            metrics |= rates
    for prior in PPV_PREVALENCES:
        ppv = precision(prior, metrics["fpr_at_target"], metrics["tpr_at_target"])
        metrics[f"ppv_at_{100 * prior:g}"] = ppv
    human_ids = np.unique(ids[human], return_inverse=True)[1]
    metrics["fpr_by_group"] = intervals.group_spread(predictions[default_target][human] == 1, human_ids)
    return metrics


def score_statistics(
    labels: Labels, scores: Floats, p: Floats, prevalence: float
) -> Callable[[Floats], dict[str, Floats]]:
    """`SCORE_METRICS` of resamples, see `intervals.bootstrap`. The scores are sorted once for all resamples."""
    curves = intervals.weighted_roc(labels, scores)
    ai, bins = labels == 1, np.eye(RELIABILITY_BINS)[bin_numbers(p)]
    # Columns: signed error in each bin for the ECE, squared error, negative log-likelihood, number of texts.
    losses = np.column_stack([bins * (p - labels)[:, None], (p - labels) ** 2, log_losses(labels, p)])
    per_class = [np.column_stack([losses, np.ones(labels.size)]) * mask[:, None] for mask in (~ai, ai)]
    fprs = {name: fpr for name, fpr in FIXED_FPRS.items() if largest_count(fpr, int((~ai).sum()))}

    def statistics(drawn: Floats) -> dict[str, Floats]:
        false, true = curves(drawn)
        of_human, of_ai = (drawn @ columns for columns in per_class)
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may lack a class: NaN
            means = (1 - prevalence) * of_human[:, :-1] / of_human[:, -1:] + prevalence * of_ai[:, :-1] / of_ai[:, -1:]
            values = {"auroc": intervals.area(false, true)}
            for name, fpr in fprs.items():
                allowed = np.asarray([largest_count(fpr, max(1, int(total))) for total in false[:, -1]])
                place = (false <= allowed[:, None]).sum(axis=1) - 1
                values[name] = true[np.arange(len(true)), place] / true[:, -1]
        return {**values, "ece": np.abs(means[:, :-2]).sum(axis=1), "brier": means[:, -2], "log_loss": means[:, -1]}

    return statistics
