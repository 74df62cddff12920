"""Metrics of predictions: overall, by slice, by length, and as curves for plotting. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from detect_ai import metrics
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import SLICES
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.intervals import group_ids, paired_differences
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.metrics import Floats

LENGTHS = (64, 128, 256, 512)  # tokens: boundaries of the length ranges
MIN_SLICE = 20  # texts
MAX_SLICES = 40  # per column, the largest ones


def overall_metrics(verdicts: Verdicts, spec: DetectorSpec, score_intervals: bool = True) -> dict[str, Any]:
    """Metrics of labelled texts at every target of the bundle."""
    return compute_metrics(
        verdicts.labels,
        verdicts.scores,
        verdicts.probabilities,
        {target: verdicts.predictions[target] for target in spec.calibration.thresholds},
        default_target=spec.default_target_fpr,
        prevalence=spec.calibration.prevalence,
        groups=verdicts.columns["group"],
        score_intervals=score_intervals,
    )


def differences(one: Verdicts, other: Verdicts, target: float) -> dict[str, float | None]:
    """Differences of two detectors on the same texts at a target, see `intervals.paired_differences`."""
    predictions = one.predictions[target], other.predictions[target]
    ids = group_ids(one.columns["group"])
    return paired_differences(one.labels, (one.scores, other.scores), predictions, ids)


def slices(verdicts: Verdicts, spec: DetectorSpec) -> list[dict[str, Any]]:
    """Metrics for each value of a column, largest slices first; only columns with two or more values."""
    return [
        {"column": column, "value": value, **overall_metrics(verdicts[mask], spec, score_intervals=False)}
        for column in (*SLICES, "compared_with")
        for value, mask in verdicts.by_value(column, MAX_SLICES, MIN_SLICE)
    ]


def lengths(verdicts: Verdicts, spec: DetectorSpec) -> list[dict[str, Any]]:
    """Metrics by range of token counts from `low` to below `high` (None: no limit), without empty ranges."""
    rows = []
    for low, high in zip((0, *LENGTHS), (*LENGTHS, None), strict=True):
        inside = (verdicts.num_tokens >= low) & (verdicts.num_tokens < (np.inf if high is None else high))
        if inside.any():
            metrics_inside = overall_metrics(verdicts[inside], spec, score_intervals=False)
            rows.append({"low": low, "high": high, **metrics_inside})
    return rows


def curves(verdicts: Verdicts, baseline_scores: Floats | None, prevalence: float) -> dict[str, Any]:
    """ROC curves, reliability diagram at the given AI prevalence, and histogram of probabilities by class."""
    labels, p = verdicts.labels, verdicts.probabilities
    both = 0 < labels.sum() < len(labels)
    edges = np.linspace(0, 1, 41)
    return {
        "roc": metrics.roc(labels, verdicts.scores) if both else None,
        "baseline_roc": metrics.roc(labels, baseline_scores) if both and baseline_scores is not None else None,
        "reliability": metrics.reliability(labels, p, prevalence) if both else [],
        "histogram": {
            "edges": edges.tolist(),
            "human": np.histogram(p[labels == 0], edges)[0].tolist(),
            "ai": np.histogram(p[labels == 1], edges)[0].tolist(),
        },
    }
