"""Metrics by slice and by length, and curves."""

import numpy as np

from detect_ai.evaluation import slices
from tests.unit.evaluation.conftest import SPEC, verdicts_of


def drawn(n=400, seed=0, **columns):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return verdicts_of(labels, rng.normal(2 * labels, 1), **columns)


def test_slices_hold_the_metrics_of_their_texts():
    domains = np.resize(["a", "a", "b", "b", "b", "b"], 400)
    verdicts = drawn(domain=domains)
    rows = {row["value"]: row for row in slices.slices(verdicts, SPEC)}
    assert list(rows) == ["b", "a"]
    human = (domains == "a") & (verdicts.labels == 0)
    assert rows["a"]["fpr_at_target"] == (verdicts.scores[human] > 1).mean()
    assert rows["a"]["fpr_at_target_low"] is not None
    assert rows["a"]["auroc_low"] is None


def test_lengths_cover_all_texts():
    rows = slices.lengths(drawn(), SPEC)
    assert [(row["low"], row["high"]) for row in rows] == [(0, 64), (64, 128), (128, 256), (256, 512)]
    assert sum(row["n_human"] + row["n_ai"] for row in rows) == 400


def test_curves_need_both_classes():
    both, human = drawn(), drawn()[np.arange(0, 400, 2)]
    assert slices.curves(both, both.scores, 0.5)["roc"] == slices.curves(both, both.scores, 0.5)["baseline_roc"]
    assert (slices.curves(human, None, 0.5)["roc"], slices.curves(human, None, 0.5)["reliability"]) == (None, [])
