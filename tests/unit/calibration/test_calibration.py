"""Calibration by domain: groups, minimum lengths, the scaling of spans, and their JSON form."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from detect_ai.calibration.calibration import Calibration, GroupCalibration, UnknownDomain, calibrate
from detect_ai.calibration.conformal import Threshold, conformal_threshold, p_value
from detect_ai.calibration.domains import MIN_SCALED, calibrate_domains
from detect_ai.calibration.scaling import fit_scaling
from detect_ai.core.errors import CalibrationError
from tests.unit.calibration.test_scaling import sample

DOMAINS, LENGTHS = ("essays", "prose"), (32, 96, 300)


def scored_spans(rows):
    """From (document, label, score, tokens, domain); the longest of a document is the whole."""
    scored = pd.DataFrame(rows, columns=["document", "label", "score", "num_tokens", "domain"])
    return scored.assign(is_whole=scored["num_tokens"] == scored.groupby("document")["num_tokens"].transform("max"))


def group(domain, midpoint=-9.0, human=(), min_tokens=None, **scores):
    """Thresholds by target, as `at05=2.0`."""
    thresholds = {float(f"0.{name[2:]}"): Threshold(score, 0.2, 0.0) for name, score in scores.items()}
    return GroupCalibration(1.0, midpoint, tuple(map(float, human)), thresholds, domain, min_tokens or {})


def with_domains(*groups):
    return Calibration(1.0, 0.0, (), groups[0].thresholds, domains=groups)


# All texts


def test_calibrate_combines_scaling_and_thresholds():
    labels, logits = sample()
    human = logits[labels == 0]
    scaling = fit_scaling(labels, logits, 0.3)
    assert calibrate(labels, logits, [0.1, 0.01], 0.3) == Calibration(
        temperature=scaling.temperature,
        midpoint=scaling.midpoint,
        human_scores=tuple(sorted(human)),
        thresholds={target: conformal_threshold(human, target) for target in (0.01, 0.1)},
        prevalence=0.3,
        num_ai=400 - len(human),
    )


def test_without_domains_all_texts_are_one_group():
    calibration = calibrate(*sample(), [0.05])
    assert calibration.bounds(0.05) == (calibration.midpoint, calibration.thresholds[0.05].score)
    assert calibration.select_group("essays") is calibration.select_group("") is calibration


# By domain


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


# No known domain


def test_an_unknown_domain_has_the_widest_bounds():
    essays, prose = group("essays", at05=2.0, at1=2.0, midpoint=-1.0), group("prose", at05=3.0, at1=1.0, midpoint=0.5)
    unknown = with_domains(essays, prose).select_group("")
    assert unknown.bounds(0.05) == (-1.0, 3.0)
    assert unknown.bounds(0.1) == (-1.0, 2.0)
    assert with_domains(essays, prose).select_group("letters") == unknown == UnknownDomain((essays, prose))


def test_an_unknown_domain_is_cautious_in_every_metric():
    essays, prose = (
        group("essays", human=range(30), at05=2.0),
        group("prose", human=range(9, 29), midpoint=5.0, at05=3.0),
    )
    unknown = with_domains(essays, prose).select_group("")
    scores = np.asarray([-9.0, 0.0, 6.0])
    assert unknown.probability(scores).tolist() == prose.probability(scores).tolist()
    for score in (0.0, 25.0):
        assert unknown.p_value(score) == max(essays.p_value(score), prose.p_value(score))
    assert (unknown.num_human, unknown.domain) == (50, "")


def test_an_unknown_domain_needs_the_length_of_every_domain():
    calibration = with_domains(
        group("essays", min_tokens={0.05: 32}, at05=2.0), group("prose", min_tokens={0.05: 64}, at05=2.0)
    )
    lengths = {domain: calibration.select_group(domain).min_tokens[0.05] for domain in ("essays", "prose", "")}
    assert lengths == {"essays": 32, "prose": 64, "": 64}


# Minimum lengths


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


# Spans


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


# JSON


def full():
    rng = np.random.default_rng(2)
    rows = [
        (80 * number + 2 * i + label, label, rng.normal(label), length, domain)
        for number, domain in enumerate(DOMAINS)
        for i in range(40)
        for label in (0, 1)
        for length in LENGTHS
    ]
    return calibrate_domains(calibrate(*sample(), [np.float64(0.05), 1 / 3]), scored_spans(rows), [64, 128])


ADAPTER = TypeAdapter(Calibration)


def test_calibration_survives_json_exactly():
    calibration = full()
    assert [own.domain for own in calibration.domains] == list(DOMAINS)
    assert calibration.span_scaling is not None
    values = ADAPTER.dump_python(calibration, mode="json")
    assert ADAPTER.validate_python(json.loads(json.dumps(values, allow_nan=False))) == calibration
    assert list(values["thresholds"]) == ["0.05", "0.3333333333333333"]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("midpoint"),
        lambda values: values.update(colour=1),
        lambda values: values["human_scores"].reverse(),
        lambda values: values["thresholds"]["0.05"].update(colour=1),
        lambda values: values["domains"][1].pop("thresholds"),
        lambda values: values["domains"][1]["human_scores"].reverse(),
        lambda values: values["span_scaling"].update(temperature="hot"),
    ],
)
def test_malformed_calibrations_are_refused(change):
    values = ADAPTER.dump_python(full(), mode="json")
    change(values)
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(values)
