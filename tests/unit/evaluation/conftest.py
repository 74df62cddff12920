"""Verdicts of given labels and scores, and the calibration that they come from."""

from types import SimpleNamespace

import numpy as np

from detect_ai.detector.dataset import SLICES
from detect_ai.detector.verdict_table import Verdicts

TARGET = 0.1
SPEC = SimpleNamespace(
    calibration=SimpleNamespace(thresholds={TARGET: None}, prevalence=0.5), default_target_fpr=TARGET
)


def verdicts_of(labels, scores, predictions=None, probabilities=None, **columns):
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    n, empty = len(labels), np.full(len(labels), "")
    return Verdicts(
        rows=np.asarray([f"0-{i}" for i in range(n)], object),
        ids=np.asarray([f"id{i}" for i in range(n)], object),
        digests=empty,
        labelled=np.ones(n, bool),
        labels=labels,
        scores=scores,
        probabilities=1 / (1 + np.exp(-scores)) if probabilities is None else np.asarray(probabilities),
        p_values=np.full(n, 0.5),
        fpr_bounds=np.full(n, TARGET),
        num_tokens=np.arange(n) + 60,
        reasons=np.asarray([()] * n, object),
        predictions={TARGET: (scores > 1).astype(int) if predictions is None else np.asarray(predictions)},
        columns={**dict.fromkeys((*SLICES, "compared_with", "group"), empty), **columns},
        spans=np.full(n, None),
    )
