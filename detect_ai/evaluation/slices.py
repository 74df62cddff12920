"""Figures of verdicts: of all, by slice, by length, and as curves. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai import metrics
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import SLICES
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation import summary

LENGTHS = (64, 128, 256, 512)  # tokens that part the ranges of the report
MIN_SLICE = 20  # texts
MAX_SLICES = 40  # of a column, the largest ones
MIN_GROUPS = 20


def groups_of(verdicts: Verdicts) -> NDArray[Any] | None:
    """The group of each text, None where it has none of its own, shape (texts,); None where there are too few groups.

    Few groups say nothing of how figures vary with them: intervals then take texts for independent.
    """
    names = verdicts.columns["group"].tolist()
    if len(set(names) - {""}) + names.count("") < MIN_GROUPS:
        return None
    return np.asarray([name or None for name in names], object)


def figures_of(verdicts: Verdicts, spec: DetectorSpec, rounds: int, seed: int = 0) -> dict[str, Any]:
    """All figures of labelled texts, by the calls at every target of the bundle."""
    calls = {target: verdicts.calls(target) for target in spec.calibration.thresholds}
    return summary.report(
        verdicts.labels,
        verdicts.scores,
        verdicts.probabilities,
        calls,
        default_target=spec.default_target_fpr,
        groups=groups_of(verdicts),
        rounds=rounds,
        seed=seed,
    )


def slices(verdicts: Verdicts, spec: DetectorSpec) -> list[dict[str, Any]]:
    """Figures of the values of each column that has two or more, largest first."""
    few_groups = len(set(verdicts.columns["group"].tolist()) - {""}) <= MAX_SLICES
    columns = (*SLICES, *(["group"] if few_groups else []), "compared_with")
    return [
        {"column": column, "value": value, **figures_of(verdicts[chosen], spec, rounds=0)}
        for column in columns
        for value, chosen in verdicts.by_value(column, MAX_SLICES, MIN_SLICE)
    ]


def lengths(verdicts: Verdicts, spec: DetectorSpec) -> list[dict[str, Any]]:
    """Figures by ranges of tokens, those that have texts."""
    found = []
    for low, high in zip((0, *LENGTHS), (*LENGTHS, None), strict=True):
        inside = (verdicts.num_tokens >= low) & (verdicts.num_tokens < (np.inf if high is None else high))
        if inside.any():
            found.append({"low": low, "high": high, **figures_of(verdicts[inside], spec, rounds=0)})
    return found


def curves(verdicts: Verdicts, baseline_scores: Any) -> dict[str, Any]:
    """ROC curves, reliability and histogram, for drawing."""
    labels, p = verdicts.labels, verdicts.probabilities
    both = 0 < labels.sum() < len(labels)
    edges = np.linspace(0, 1, 41)
    return {
        "roc": metrics.roc(labels, verdicts.scores) if both else None,
        "baseline_roc": metrics.roc(labels, baseline_scores) if both and baseline_scores is not None else None,
        "reliability": metrics.reliability(labels, p),
        "histogram": {
            "edges": edges.tolist(),
            "human": np.histogram(p[labels == 0], edges)[0].tolist(),
            "ai": np.histogram(p[labels == 1], edges)[0].tolist(),
        },
    }
