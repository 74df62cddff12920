"""Facts about a detector: its thresholds and what they apply to."""

from dataclasses import replace

from detect_ai.calibration.domains import calibrate_population
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.model_info import card_info, model_info
from detect_ai.schemas import Reference


def test_thresholds_and_what_they_hold_for(tiny_bundle):
    spec = read_spec(tiny_bundle)
    info, calibration = model_info(spec, {"max_texts": 3}), spec.calibration
    assert [threshold.target_fpr for threshold in info.thresholds] == [0.05, 0.1]
    for row in info.thresholds:
        threshold = calibration.thresholds[row.target_fpr]
        assert (row.fpr_upper_bound, row.confidence) == (threshold.fpr_bound, threshold.confidence)
        found = calibration.predictions_of(calibration.domains[0].ai, row.target_fpr) == 1
        assert row.detection_rate == found.mean() > 0
        assert row.probability == calibration.probability(calibration.ai_from_unlike(row.target_fpr))
    assert (info.compared_with, info.num_human, info.num_domains) == (Reference.CALIBRATION_TEXTS, 40, 1)
    assert "exchangeable with the calibration set" in info.guarantee
    assert (info.model_version, info.limits) == (spec.version, {"max_texts": 3})


def test_a_population_is_named(tiny_bundle):
    spec = read_spec(tiny_bundle)
    human = spec.calibration.domains[0].human
    named = replace(spec, calibration=calibrate_population(spec.calibration, human, "{our} students", [0.05]))
    info = model_info(named, {})
    assert (info.compared_with, info.population) == (Reference.POPULATION, "{our} students")
    assert "of one population: {our} students." in info.guarantee
    assert card_info(named)["population"] == "{our} students"
    assert [row.detection_rate for row in info.thresholds] == [None]  # of 40 AI texts
