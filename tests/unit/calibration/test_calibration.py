"""Calibration of all texts, of a group and of an unknown domain, and its JSON form."""

import json

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from detect_ai.calibration.calibration import Calibration, GroupCalibration, UnknownDomain, calibrate
from detect_ai.calibration.conformal import Threshold, conformal_threshold
from detect_ai.calibration.domains import calibrate_domains
from detect_ai.calibration.scaling import fit_scaling
from tests.unit.calibration.conftest import DOMAINS, LENGTHS, sample, scored_spans


def group(domain, midpoint=-9.0, human=(), min_tokens=None, **scores):
    """Thresholds by target, as `at05=2.0`."""
    thresholds = {float(f"0.{name[2:]}"): Threshold(score, 0.2, 0.0) for name, score in scores.items()}
    return GroupCalibration(1.0, midpoint, tuple(map(float, human)), thresholds, domain, min_tokens or {})


def with_domains(*groups):
    return Calibration(1.0, 0.0, (), groups[0].thresholds, domains=groups)


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
