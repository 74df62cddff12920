import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given
from hypothesis import strategies as st

from detect_ai import metrics
from detect_ai.core.errors import InputError


@st.composite
def scored_texts(draw):
    """Labels of both classes and scores with many ties."""
    labels = draw(st.lists(st.integers(0, 1), min_size=2, max_size=60).filter(lambda values: len(set(values)) == 2))
    scores = draw(st.lists(st.integers(-5, 5), min_size=len(labels), max_size=len(labels)))
    return np.asarray(labels), np.asarray(scores) / 3


@given(scored_texts())
def test_auroc_matches_sklearn(texts):
    assert metrics.auroc(*texts) == pytest.approx(sk.roc_auc_score(*texts), abs=1e-12)


@given(scored_texts(), st.sampled_from([0.0, 0.01, 0.05, 0.29, 0.5, 1.0]))
def test_tpr_at_fpr_matches_the_best_threshold(texts, fpr):
    labels, scores = texts
    false, true, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    assert metrics.tpr_at_fpr(labels, scores, fpr) == pytest.approx(true[false <= fpr].max())


@given(scored_texts())
def test_log_loss_matches_sklearn(texts):
    labels, scores = texts
    p = np.where(scores > 1.5, 1.0, 1 / (1 + np.exp(-scores)))  # includes probability 1
    assert metrics.log_losses(labels, p).mean() == pytest.approx(sk.log_loss(labels, p))


@pytest.mark.parametrize(("rate", "trials", "count"), [(0.29, 100, 29), (0.05, 19, 0), (0.05, 20, 1), (1.0, 7, 7)])
def test_largest_count_compares_quotients(rate, trials, count):
    assert metrics.largest_count(rate, trials) == count


@pytest.mark.parametrize(("target", "key"), [(0.01, "1"), (0.05, "5"), (0.001, "0_1"), (0.025, "2_5")])
def test_key_of_target(target, key):
    assert metrics.key_of_target(target) == key


@pytest.mark.parametrize(("texts", "error"), [(100, 1e-9), (20_000, 0.005)])
def test_roc_has_at_most_200_points(texts, error):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, texts)
    scores = rng.normal(labels, 1)
    curve = metrics.roc(labels, scores)
    assert len(curve["fpr"]) <= 200
    assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(metrics.auroc(labels, scores), abs=error)


def test_reliability_at_the_data_s_prevalence_counts_texts():
    rows = metrics.reliability(np.asarray([0, 0, 1, 1]), np.asarray([0.1, 0.5, 0.5, 1.0]), 0.5)
    assert [(row["count"], row["mean_probability"], row["fraction_ai"]) for row in rows] == [
        (1, pytest.approx(0.1), 0.0),
        (2, pytest.approx(0.5), pytest.approx(0.5)),
        (1, 1.0, 1.0),
    ]


def test_reliability_weights_classes_to_the_prevalence():
    (row,) = metrics.reliability(np.repeat([0, 1], [30, 10]), np.full(40, 0.5), 0.2)
    assert row["fraction_ai"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("labels", "values"),
    [([0, 1], [0.1]), ([[0, 1]], [[0.1, 0.2]]), ([], []), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, float("nan")])],
)
def test_invalid_arrays_are_refused(labels, values):
    with pytest.raises(InputError):
        metrics.check_binary(labels, values)


@pytest.mark.parametrize("function", [metrics.auroc, metrics.roc, lambda y, s: metrics.tpr_at_fpr(y, s, 0.01)])
def test_a_missing_class_is_refused(function):
    with pytest.raises(InputError, match="both classes"):
        function([0, 0], [0.1, 0.2])
