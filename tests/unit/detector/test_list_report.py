"""The report on a list of texts, from verdicts of simulated scores."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from detect_ai.calibration.calibration import Population
from detect_ai.calibration.domains import calibrate
from detect_ai.calibration.leave_one_out import detection_rate
from detect_ai.detector.list_report import list_report
from detect_ai.reports.render import percent, render
from tests.unit.calibration.conftest import WINDOW, config, domains
from tests.unit.evaluation.conftest import verdicts_of
from tests.unit.reports.test_evaluation import EVIL, page_of

TARGET = 0.05
CONFIG = config(target_fprs=[TARGET], default_target_fpr=TARGET)
CALIBRATION = calibrate(domains(12, humans=300, ai=100), CONFIG, WINDOW)
SPEC = SimpleNamespace(
    calibration=CALIBRATION,
    calibration_config=CONFIG,
    detection_rates={TARGET: detection_rate(CALIBRATION, CONFIG, TARGET)},
    default_target_fpr=TARGET,
    version="4f2a",
    targets=[TARGET],
)


def verdicts(humans, ai, reasons=(), shift=0.0):
    """Verdicts of human texts and AI texts like those of calibration; the last ones have reasons."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(shift, 1.4, humans), rng.normal(8, 1.4, ai)])
    count = humans + ai
    tokens = np.full(count, 300)
    given = [()] * (count - len(reasons)) + list(reasons)
    base = verdicts_of(np.zeros(count, int), scores)
    own = np.empty(count, object)
    own[:] = given
    required = CALIBRATION.required_scores(np.empty((count, 0)))
    predictions = np.where([bool(r) for r in given], -1, CALIBRATION.predictions(scores, tokens, required, TARGET))
    return replace(
        base,
        p_values=np.asarray([CALIBRATION.p_value(score, 300, required[0]) for score in scores]),
        num_tokens=tokens,
        reasons=own,
        predictions={TARGET: predictions},
    )


def test_a_list_with_ai_texts():
    report = list_report(verdicts(70, 30), SPEC, 0.1)
    assert (report["texts"], report["scored"]) == (100, 100)
    assert report["flagged"] == len(report["listed"]) >= 25
    numbers = {int(row["row"].removeprefix("0-")) for row in report["listed"]}
    assert len(numbers & set(range(70))) <= 3
    assert report["listed"][0]["label"] == "ai"
    low, high = report["prevalence"]
    assert 0 < low < 0.3 < high < 0.6
    assert report["warnings"] == []
    assert [row["ppv"] for row in report["precision"]] == sorted(row["ppv"] for row in report["precision"])


def test_texts_out_of_scope_are_counted_and_never_flagged():
    report = list_report(verdicts(6, 4, reasons=[("mostly_code",)] * 4), SPEC, 0.1)
    assert (report["scored"], report["flagged"], report["reasons"]) == (6, 0, {"mostly_code": 4})
    assert "4 of 10 texts are too short or out of scope" in report["warnings"][0]


def test_texts_unlike_the_population_are_out_of_scope():
    """Texts that are unlike calibration only by their score count: their p-value is that of the score."""
    own = replace(CALIBRATION, population=Population("our students", (), -1.0))
    spec = SimpleNamespace(**{**vars(SPEC), "calibration": own})
    given = verdicts(20, 80, reasons=[("unlike_calibration",)] * 60)
    given.p_values[-40:] = 1.0
    report = list_report(given, spec, 0.1)
    assert (report["scored"], report["labels"]["uncertain"]) == (60, 20)
    assert "40 of 100" in report["warnings"][0]
    assert list_report(given, SPEC, 0.1)["scored"] == 100


def test_a_list_unlike_calibration_is_a_warning():
    report = list_report(verdicts(100, 0, shift=-6.0), SPEC, 0.1)
    assert report["distance"] > 1
    assert "unlike every kind of human writing" in report["warnings"][0]


def test_nothing_scored_is_a_report_too():
    report = list_report(verdicts(0, 2, reasons=[("too_short",)] * 2), SPEC, 0.1)
    assert (report["scored"], report["flagged"], report["distance"]) == (0, 0, None)
    assert "No text could be scored." in render("list.html.jinja", report=report)


def test_an_unknown_detection_rate_is_stated():
    report = list_report(verdicts(70, 30), SimpleNamespace(**{**vars(SPEC), "detection_rates": {TARGET: None}}), 0.1)
    assert report["prevalence"][1] == 1.0
    assert {row["ppv"] for row in report["precision"]} == {None}
    assert "too few AI texts to measure the detection rate" in render("list.html.jinja", report=report)


@pytest.mark.parametrize("compared_with", ["new_domain", "calibration_texts", "population"])
def test_the_page_shows_the_statements(compared_with):
    population = "<b>students" if compared_with == "population" else None
    report = list_report(verdicts(90, 10), SPEC, 0.1) | {"compared_with": compared_with, "population": population}
    report["listed"][0]["id"] = EVIL
    text = page_of(render("list.html.jinja", report=report)).text
    for words in ("100 texts", "at most 10% are expected to be human", "In a class of 30", "10 are labelled AI"):
        assert words in text
    assert ("if the human texts are like those of calibration" in text) == (compared_with == "calibration_texts")
    assert text.count(f"with {percent(report['confidence'])} confidence") == {"new_domain": 2, "population": 1}.get(
        compared_with, 0
    )
    assert text.count("<b>students") == (compared_with == "population")
