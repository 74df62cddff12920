"""Decisions and p-values of a calibration, and its JSON form."""

import json

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from detect_ai.calibration.calibration import AI, BOTH, HUMAN, NEITHER, Calibration, Domain, Scores
from detect_ai.calibration.conformal import Threshold, p_value
from detect_ai.calibration.domains import calibrate
from detect_ai.calibration.length import LengthModel
from detect_ai.schemas import Reference
from tests.unit.calibration.conftest import WINDOW, config, domains


def calibration(threshold=2.0, cleared=0.0, unlike=-9.0, midpoint=-9.0, human=(0.0,), length=None):
    length = length or LengthModel(WINDOW)
    own = Domain("news", Scores(tuple(human), (WINDOW,) * len(human)), Scores((), ()))
    rest = ({0.05: Threshold(threshold, 0.05, 0.9)}, cleared, unlike, length, LengthModel(WINDOW), (own,), None)
    return Calibration(1.0, midpoint, *rest, 0.5)


def required(fitted, texts=1):
    return fitted.required_scores(np.empty((texts, 0)))


@pytest.mark.parametrize(
    ("values", "scores", "expected"),
    [
        ({}, [-0.1, 0.0, 1.9, 2.0], [HUMAN, BOTH, BOTH, AI]),
        ({"cleared": 4.0, "unlike": 3.0}, [1.9, 2.0, 2.9, 3.0], [HUMAN, NEITHER, NEITHER, AI]),
        ({"midpoint": 3.0}, [-0.1, 0.0, 2.9, 3.0], [HUMAN, BOTH, BOTH, AI]),  # no `ai` below a probability of one half
    ],
)
def test_a_text_that_both_or_neither_may_have_written_is_uncertain(values, scores, expected):
    fitted = calibration(**values)
    assert fitted.decide(scores, [WINDOW] * 4, required(fitted, 4), 0.05).tolist() == expected
    assert fitted.predictions(scores, [WINDOW] * 4, required(fitted, 4), 0.05).tolist() == [0, -1, -1, 1]
    assert fitted.ai_from(WINDOW, required(fitted)[0], 0.05) == fitted.ai_from_unlike(0.05) == scores[3]


def test_the_threshold_depends_on_the_length():
    fitted = calibration(length=LengthModel(WINDOW, (0.0, 1.0), (1.0, 1.0)))
    short, long = (fitted.ai_from(tokens, required(fitted)[0], 0.05) for tokens in (WINDOW // 4, 100 * WINDOW))
    assert short == pytest.approx(4 + 2 * np.sqrt(5))
    assert long < short
    assert fitted.predictions([short, short - 0.01], [WINDOW // 4] * 2, required(fitted, 2), 0.05).tolist() == [1, -1]


def test_the_p_value_of_a_new_domain_is_the_smallest_rate_that_it_reaches():
    fitted, rates = full(), full().domain_effects.rates
    needed = required(fitted)[0]
    scores = [fitted.human_length.score(value, WINDOW) for value in needed]
    assert [fitted.p_value(score + 1e-9, WINDOW, needed) for score in scores] == list(rates)
    assert [fitted.p_value(score - 1e-9, WINDOW, needed) for score in scores] == [*rates[1:], 1.0]
    assert fitted.compared_with is Reference.NEW_DOMAIN


def test_without_domain_effects_the_p_value_is_conformal():
    fitted = calibration(human=(3.0, 1.0, 2.0))
    found = [fitted.p_value(score, WINDOW, required(fitted)[0]) for score in (0.0, 2.0, 9.0)]
    assert found == p_value([1, 2, 3], [0, 2, 9]).tolist()
    assert (fitted.compared_with, fitted.num_human, fitted.num_ai) == (Reference.CALIBRATION_TEXTS, 3, 0)


ADAPTER = TypeAdapter(Calibration)


def full():
    return calibrate(domains(6), config(target_fprs=[np.float64(0.05), 1 / 3]), WINDOW)


def test_calibration_survives_json_exactly():
    values = ADAPTER.dump_python(full(), mode="json")
    assert ADAPTER.validate_python(json.loads(json.dumps(values, allow_nan=False))) == full()
    assert list(values["thresholds"]) == ["0.05", "0.3333333333333333"]
    assert values["domain_effects"]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("midpoint"),
        lambda values: values.update(colour=1),
        lambda values: values["thresholds"]["0.05"].update(colour=1),
        lambda values: values["domains"][1].pop("ai"),
        lambda values: values["domains"][1]["human"].update(scores="high"),
        lambda values: values["human_length"].update(window="wide"),
    ],
)
def test_malformed_calibrations_are_refused(change):
    values = ADAPTER.dump_python(full(), mode="json")
    change(values)
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(values)
