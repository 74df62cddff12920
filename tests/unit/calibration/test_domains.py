"""Calibration by domain: groups, minimum lengths and the scaling of spans."""

from dataclasses import replace

import numpy as np
import pytest

from detect_ai.calibration.calibration import Calibration, calibrate
from detect_ai.calibration.conformal import Threshold, conformal_threshold, p_value
from detect_ai.calibration.domains import MIN_SCALED, calibrate_domains
from detect_ai.calibration.scaling import fit_scaling
from detect_ai.core.errors import CalibrationError
from tests.unit.calibration.conftest import DOMAINS, LENGTHS, sample, scored_spans


def test_a_group_is_calibrated_on_its_own_documents():
    rng = np.random.default_rng(3)
    rows = [(i, i % 2, rng.normal(3.0 * (i % 2)), 300, "essays") for i in range(2 * MIN_SCALED)]
    rows += [(100 + i, 0, 50.0, 300, "") for i in range(40)]  # of no domain: in no group
    rows += [(i, i % 2, 90.0, 32, "essays") for i in range(2 * MIN_SCALED)]  # spans set no threshold
    scored = scored_spans(rows)
    essays = scored[scored["is_whole"] & (scored["domain"] == "essays")]
    human = essays["score"][essays["label"] == 0]
    whole = replace(calibrate(*sample(), [0.05]), prevalence=0.1)
    (own,) = calibrate_domains(whole, scored).domains
    scaling = fit_scaling(essays["label"], essays["score"], 0.1)
    assert (own.domain, own.temperature, own.midpoint) == ("essays", scaling.temperature, scaling.midpoint)
    assert own.human_scores == tuple(sorted(human))
    assert own.bounds(0.05)[1] == max(conformal_threshold(human, 0.05).score, own.midpoint)
    assert own.p_value(0.5) == p_value(sorted(human), 0.5)


@pytest.mark.parametrize("few", [0, 1])
def test_few_texts_of_a_class_take_the_scaling_of_all(few):
    numbers = {few: MIN_SCALED - 1, 1 - few: MIN_SCALED}
    labels = [label for label, number in numbers.items() for _ in range(number)]
    rng = np.random.default_rng(3)
    scored = scored_spans([(i, label, rng.normal(3.0 * label), 32, "essays") for i, label in enumerate(labels)])
    whole = calibrate(*sample(), [0.05])
    (own,) = calibrate_domains(whole, scored).domains
    assert (own.temperature, own.midpoint, own.num_human) == (whole.temperature, whole.midpoint, numbers[0])


def test_a_domain_with_too_few_human_documents_is_refused():
    """Spans of one document are not independent: ten documents with two spans are ten texts."""
    rows = [(i, 0, float(i), length, "prose") for i in range(10) for length in (32, 300)]
    with pytest.raises(CalibrationError, match=r"domain 'prose': .* at least 19 human .* found 10"):
        calibrate_domains(calibrate(*sample(), [0.05]), scored_spans(rows))


def test_spans_have_a_scaling_of_their_own():
    rng = np.random.default_rng(1)
    rows = [
        (i, i % 2, rng.normal(distance * (2 * (i % 2) - 1)), length, "")
        for i in range(400)
        for length, distance in ((40, 0.5), (300, 4.0))
    ]
    scored = scored_spans(rows)
    spans, documents = scored[~scored["is_whole"]], scored[scored["is_whole"]]
    calibration = calibrate_domains(calibrate(documents["label"], documents["score"], [0.05]), scored, [64])
    assert calibration.span_scaling == fit_scaling(spans["label"], spans["score"])
    assert calibration.span_scaling.temperature > calibration.temperature


def ai_rows(domain, rates, first=0):
    """40 human texts, and AI texts with a span in every range that are detected at these rates."""
    rows = [(first + i, 0, float(i) / 40, LENGTHS[-1], domain) for i in range(40)]
    for i in range(40):
        spans = zip(rates, LENGTHS, strict=True)
        rows += [
            (first + 40 + i, 1, 9.0 if i < rate * 40 else -9.0, n, domain) for rate, n in spans if rate is not None
        ]
    return rows


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((0.6, 0.7, 0.9), 0),
        ((0.5, 0.5, 0.5), 0),
        ((0.4, 0.6, 0.9), 64),
        ((0.4, 0.4, 0.9), 128),
        ((0.6, 0.4, 0.9), 128),
        ((0.4, 0.4, 0.4), 0),
        ((0.4, None, 0.9), 64),
    ],
)
def test_minimum_length_is_where_detection_suffices(rates, expected):
    scored = scored_spans(ai_rows("", rates))
    human = scored["score"][scored["label"] == 0]
    whole = Calibration(1.0, 0.0, tuple(human), {0.05: Threshold(2.0, 0, 0)})
    assert calibrate_domains(whole, scored, [64, 128]).min_tokens == {0.05: expected}
    assert calibrate_domains(whole, scored).min_tokens == {}


def test_each_domain_has_its_own_minimum_length():
    scored = scored_spans([*ai_rows("essays", (0.6, 0.7, 0.9)), *ai_rows("prose", (0.1, 0.4, 0.9), first=80)])
    whole = Calibration(1.0, 0.0, (0.0,) * 40, {0.05: Threshold(2.0, 0, 0)})
    calibration = calibrate_domains(whole, scored, [64, 128])
    lengths = {domain: calibration.select_group(domain).min_tokens[0.05] for domain in (*DOMAINS, "")}
    assert lengths == {"essays": 0, "prose": 128, "": 128}


def test_minimum_length_depends_on_the_target():
    rng = np.random.default_rng(5)
    # AI texts: not detected below 64 tokens; from 64 at 20% and from 128 also at 5%.
    scored = scored_spans(
        [
            (i, i % 2, rng.normal(distance * (i % 2)), length, "")
            for i in range(400)
            for length, distance in zip(LENGTHS, (0.0, 1.45, 9.0), strict=True)
        ]
    )
    whole = calibrate(scored["label"], scored["score"], [0.05, 0.2])
    assert calibrate_domains(whole, scored, [64, 128]).min_tokens == {0.05: 128, 0.2: 64}
