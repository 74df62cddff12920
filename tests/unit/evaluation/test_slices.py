"""What is made of verdicts without a cluster: intervals by group, pairs of detectors, accusations, attacks."""

from __future__ import annotations

import numpy as np
import pytest

from detect_ai.core.config import Config, ScoreConfig
from detect_ai.core.errors import InputError
from detect_ai.detector.dataset import SLICES, Text
from detect_ai.detector.score import JudgePart
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation import robustness, slices
from detect_ai.evaluation.compare import _pair
from detect_ai.reports.evaluation import _attack

N = 400
TARGET = 0.1


def verdicts_of(labels, scores, calls=None, groups=None, probabilities=None):
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    n = len(labels)
    empty = np.full(n, "")
    return Verdicts(
        rows=np.asarray([f"0-{i}" for i in range(n)], object),
        ids=np.asarray([f"id{i}" for i in range(n)], object),
        digests=empty,
        labelled=np.ones(n, bool),
        labels=labels,
        scores=scores,
        probabilities=1 / (1 + np.exp(-scores)) if probabilities is None else np.asarray(probabilities),
        p_values=np.full(n, 0.5),
        num_tokens=np.full(n, 100),
        reasons=np.asarray([()] * n, object),
        by_target={TARGET: (scores > 1).astype(int) if calls is None else np.asarray(calls)},
        columns={**dict.fromkeys((*SLICES, "compared_with"), empty), "group": empty if groups is None else groups},
        spans=np.full(n, None),
    )


def grouped(rng):
    """Two detectors whose scores hang on forty groups, of ten texts each."""
    groups = np.asarray([f"g{i % 40}" for i in range(N)])
    labels = (np.arange(N) % 40) // 20
    shift = rng.normal(0, 1.5, (2, 40))
    return groups, [labels + shift[k][np.arange(N) % 40] + rng.normal(0, 0.3, N) for k in (0, 1)], labels


def width(pair, low="low", high="high"):
    return pair[high] - pair[low]


def test_a_text_without_a_group_is_a_group_of_its_own_and_few_groups_are_none():
    names = np.asarray(["a"] * 5 + [""] * 19)
    verdicts = verdicts_of([0, 1] * 12, np.arange(24), groups=names)
    assert slices.groups_of(verdicts).tolist() == ["a"] * 5 + [None] * 19
    assert slices.groups_of(verdicts[np.arange(1, 5 + 18)]) is None


def test_differences_of_two_detectors_are_resampled_by_group():
    groups, scores, labels = grouped(np.random.default_rng(0))
    config, named = Config(), list(zip("ab", scores, strict=True))
    by_group, by_text = (
        _pair(config, "a", "b", {n: verdicts_of(labels, s, groups=g) for n, s in named}, TARGET) for g in (groups, None)
    )
    assert by_group["auroc_difference"] == by_text["auroc_difference"]
    assert by_group["low"] < by_group["auroc_difference"] < by_group["high"]
    assert width(by_group) > 2 * width(by_text)
    assert width(by_group, "fpr_low", "fpr_high") > 2 * width(by_text, "fpr_low", "fpr_high")
    assert by_group["p_value"] is None
    assert 0 <= by_text["p_value"] <= 1


def test_without_rounds_a_difference_has_no_interval_that_is_resampled():
    groups, scores, labels = grouped(np.random.default_rng(0))
    config = Config()
    config.evaluation.bootstrap = 0
    pair = _pair(config, "a", "b", {n: verdicts_of(labels, s) for n, s in zip("ab", scores, strict=True)}, TARGET)
    called = [(s[labels == 0] > 1).mean() for s in scores]
    assert pair["fpr_difference"] == pytest.approx(called[0] - called[1])
    assert pair["fpr_low"] is pair["fpr_high"] is None
    assert pair["low"] < pair["high"], "DeLong's needs no rounds"
    by_group = {n: verdicts_of(labels, s, groups=groups) for n, s in zip("ab", scores, strict=True)}
    assert _pair(config, "a", "b", by_group, TARGET)["low"] is None


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [0, 0, 1], [0, 1, 1]])
def test_rates_are_compared_where_a_class_has_too_few_texts_for_areas(labels):
    verdicts = {"a": verdicts_of(labels, [0.0, 2.0, 3.0]), "b": verdicts_of(labels, [0.0, 0.5, 3.0])}
    pair = _pair(Config(), "a", "b", verdicts, TARGET)
    assert pair["auroc_difference"] is pair["low"] is pair["p_value"] is None
    humans = labels.count(0)
    assert pair["fpr_difference"] == (pytest.approx((humans > 1) / humans) if humans else None)


def test_the_worst_accusations_are_human_texts_that_were_called_ai():
    config = Config()
    config.evaluation.show_texts, config.evaluation.worst = False, 2
    verdicts = verdicts_of(
        labels=[0, 0, 0, 0, 1],
        scores=[9.0, 5.0, 1.0, 2.0, 9.0],
        calls=[-1, 1, 1, 1, 1],
        probabilities=[0.99, 0.6, 0.95, 0.9, 0.99],
    )
    found = robustness.worst(config, (None, ""), "", (None, ""), verdicts, TARGET)
    assert [each["id"] for each in found] == ["id2", "id3"]


def test_human_texts_that_an_attack_makes_the_detector_accuse_are_counted():
    labels = np.repeat([0, 1], 20)
    clean = verdicts_of(labels, np.zeros(40), calls=labels)
    attacked = verdicts_of(labels, np.zeros(40), calls=np.where(np.arange(40) < 8, 1, labels))
    attacked.ids[:] = clean.rows
    found = robustness._turned(clean, attacked[np.arange(40)[::-1]], TARGET)
    assert found == {"accused": 8, "cleared": 0, "accused_p": pytest.approx(2 / 2**8)}
    marked = _attack({"attack": "x", "tpr_ratio": 1.0, "fpr_ratio": None, **found}, [TARGET])
    assert marked["accuses"], "no clean text was accused, so that there is no ratio"
    same = {"accused": 0, "cleared": 9, "accused_p": 0.004}
    assert not _attack({"attack": "x", "tpr_ratio": 1.0, "fpr_ratio": None, **same}, [TARGET])["accuses"]
    nobody = robustness._turned(clean, attacked[labels == 1], TARGET)
    assert nobody == {"accused": None, "cleared": None, "accused_p": None}
    assert not _attack({"attack": "x", "tpr_ratio": 1.0, "fpr_ratio": None, **nobody}, [TARGET])["accuses"]


class Broken:
    """A detector with damaged weights."""

    version, targets = "abc123", [TARGET]

    def check_target(self, target):
        return TARGET

    def read(self, texts):
        return [type("Document", (), {"input_ids": [1]}) for _ in texts]

    def score(self, texts):
        return np.asarray([0.0, np.nan, np.inf])


def test_a_score_that_is_not_finite_names_the_bundle_the_row_and_the_way_out():
    part = JudgePart.__new__(JudgePart)
    part._detector, part._config = Broken(), ScoreConfig(precision="bf16")
    texts = [Text(f"0-{i}", f"id{i}", f"secret {i}", None, {}) for i in range(3)]
    with pytest.raises(InputError) as refused:
        part.judge(texts)
    assert str(refused.value) == (
        "bundle abc123: the score of 2 of 3 texts is not finite, first of row 0-1: its weights are damaged, or "
        "score.precision=bf16 overflows: try score.precision=fp32"
    )
