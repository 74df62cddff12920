"""Metrics by slice and under attack, false positives, and pairs of detectors, from verdicts made here."""

from types import SimpleNamespace

import numpy as np
import pytest

from detect_ai.core.config import Config
from detect_ai.detector.dataset import SLICES
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation import errors, robustness, slices

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
        num_tokens=np.arange(n) + 60,
        reasons=np.asarray([()] * n, object),
        predictions={TARGET: (scores > 1).astype(int) if predictions is None else np.asarray(predictions)},
        columns={**dict.fromkeys((*SLICES, "compared_with", "group"), empty), **columns},
        spans=np.full(n, None),
    )


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


def test_top_false_positives_are_human_texts_called_ai(monkeypatch):
    verdicts = verdicts_of(
        labels=[0, 0, 0, 0, 1],
        scores=[9.0, 5.0, 1.0, 2.0, 9.0],
        predictions=[-1, 1, 1, 1, 1],
        probabilities=[0.99, 0.6, 0.95, 0.9, 0.99],
    )

    def generated(rows, spans):
        return SimpleNamespace(ids=np.asarray([row for row, *_ in rows]), spans=np.full(len(rows), None))

    monkeypatch.setattr(errors, "texts_at", lambda data, config, rows: dict.fromkeys(rows, "A text."))
    monkeypatch.setattr(errors, "MAX_TEXTS", 2)
    task = SimpleNamespace(config=Config(), spec=SPEC, data="", score_generated=generated)
    rows = errors.top_false_positives(task, verdicts)
    assert [row["id"] for row in rows] == ["id2", "id3"]


@pytest.mark.parametrize(("flipped", "significant"), [(8, True), (1, False)])
def test_attacked_texts_are_paired_with_the_clean_ones(flipped, significant):
    labels = np.repeat([0, 1], 20)
    clean = verdicts_of(labels, np.zeros(40), predictions=labels)
    attacked = verdicts_of(labels, np.zeros(40), predictions=np.where(np.arange(40) < flipped, 1, labels))
    attacked.ids[:] = clean.rows
    shuffled = robustness.aligned(attacked[np.random.default_rng(0).permutation(40)], clean)
    assert shuffled.ids.tolist() == clean.rows.tolist()
    found = slices.differences(shuffled, clean, TARGET)
    assert found["fpr_difference"] == flipped / 20
    assert (found["fpr_difference_low"] > 0) is significant
    assert found["tpr_difference"] == 0
