"""Platt scaling against scikit-learn and on data with known scaling."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from detect_ai.calibration.scaling import MAX_TEMPERATURE, MIN_TEMPERATURE, Scaling, fit_scaling
from detect_ai.core.errors import InputError
from tests.unit.calibration.conftest import sample


def platt(labels, logits, prevalence=0.5):
    """Platt's fit by scikit-learn: every text occurs with both labels, weighted by its smoothed target."""
    truth = np.asarray(labels)
    num_ai = truth.sum()
    targets = np.where(truth == 1, (num_ai + 1) / (num_ai + 2), 1 / (len(truth) - num_ai + 2))
    weights = np.where(truth == 1, prevalence / num_ai, (1 - prevalence) / (len(truth) - num_ai)) * len(truth)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.concatenate((logits, logits))[:, None],
        np.repeat([1, 0], len(truth)),
        sample_weight=np.concatenate((weights * targets, weights * (1 - targets))),
    )
    return 1 / model.coef_[0, 0], -model.intercept_[0] / model.coef_[0, 0]


def as_pair(scaling):
    return scaling.temperature, scaling.midpoint


@pytest.mark.parametrize("shift", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("prevalence", [0.05, 0.5, 0.8])
def test_scaling_matches_logistic_regression(shift, prevalence):
    labels, logits = sample()
    kept = (labels == 1) | (np.arange(len(labels)) % 3 == 0)
    labels, logits = labels[kept], logits[kept] + shift
    expected = platt(labels, logits, prevalence)
    assert as_pair(fit_scaling(labels, logits, prevalence)) == pytest.approx(expected, rel=1e-2, abs=1e-2)


def test_probabilities_hold_at_the_assumed_prevalence():
    labels, logits = sample(n=60_000, temperature=1.0)  # P(AI) = sigmoid(logit) at one half
    kept = (labels == 1) | (np.arange(len(labels)) % 5 == 0)
    scaling = fit_scaling(labels[kept], logits[kept], prevalence=0.2)
    at = np.asarray([-1.0, 0.0, 1.0])
    assert scaling.probability(at) == pytest.approx(1 / (1 + 4 * np.exp(-at)), abs=0.05)


def test_separated_classes_have_a_finite_scaling():
    scaling = fit_scaling([0, 0, 1, 1], [-3.0, -1.0, 1.0, 2.0])
    assert MIN_TEMPERATURE < scaling.temperature < 10
    assert -1 < scaling.midpoint < 1


def test_reversed_logits_have_the_highest_temperature():
    assert fit_scaling([0, 0, 1, 1], [3.0, 1.0, -1.0, -2.0]).temperature == pytest.approx(MAX_TEMPERATURE)


@pytest.mark.parametrize(("label", "counts"), [(0, "3 human and 0 ai"), (1, "0 human and 3 ai")])
def test_one_class_is_refused(label, counts):
    with pytest.raises(InputError, match=counts):
        fit_scaling([label] * 3, [1.0, 2.0, 3.0])


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="finite"):
        fit_scaling([0, 1], [0.0, np.nan])


@pytest.mark.filterwarnings("error")
def test_probability_is_a_sigmoid_without_overflow():
    assert Scaling(0.05, 0.0).probability([-1e5, 0.0, 1e5]).tolist() == [0.0, 0.5, 1.0]
    assert Scaling(2.0, 1.0).probability(3.0) == pytest.approx(1 / (1 + np.exp(-1.0)))
