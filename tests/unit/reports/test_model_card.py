import pytest

from detect_ai.calibration.many_texts import any_false_accusation, precision_table
from detect_ai.reports.model_card import model_card

THRESHOLD = {
    **{"min_tokens": 40, "fpr_upper_bound": 0.062, "confidence": 0.95, "detection_rate": 0.55},
    **{"precision": precision_table(0.02, 0.55), "any_false_accusation": any_false_accusation(30, 0.01)},
}
RATES = {
    f"{name}{end}": value
    for name in ("fpr_at_target_1", "tpr_at_target_1", "fpr_at_target_5", "tpr_at_target_5", "cleared_ai_fraction")
    for end, value in (("", 0.031), ("_low", 0.01), ("_high", 0.07))
}
METRICS = {
    **RATES,
    **dict.fromkeys(("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5", "ece", "brier", "log_loss"), 0.9123),
    **{"n_human": 500, "n_ai": 400, "abstained_human": 0.21, "abstained_ai": 0.32},
    "fpr_by_group": {"groups": 12, "min": 0.003, "median": 0.02, "max": 0.093},
}


def info(**changes):
    plain = {
        "base_model": "tiny",
        "model_licence": "MIT",
        "corpus": {"name": "mine", "fingerprint": "f00d" * 16, "language": "en", "licences": ["CC0"]},
        "window": 64,
        "stride": 48,
        "domains": ["news"],
        "compared_with": "calibration_texts",
        "population": None,
        "parent": None,
        "backend": "torch",
        "run": "r",
        "git_revision": "unknown",
        "prevalence": 0.3,
        "num_human": 900,
        "class_size": 30,
        "thresholds": [{"target_fpr": 0.01, **THRESHOLD}, {"target_fpr": 0.05, **THRESHOLD}],
    }
    return {**plain, **changes}


def test_card_states_rates_with_intervals():
    text = model_card(info(), METRICS, {})
    assert "| 5% | 6.2% (95%) | 3.1% (1.0% to 7.0%) | 3.1% (1.0% to 7.0%) |" in text
    for words in ("21% of the human", "32% of the AI", "from 0.3% to 9.3%", "licence: MIT", "30% of the"):
        assert words in text
    assert text.count("Not measured") == 3
    assert "A demonstration." not in text


def test_card_states_rates_in_domains_left_out():
    rates = {"tpr": 0.41, "cleared": 0.11, "abstained_human": 0.44, "abstained_ai": 0.48}
    new = {"target_fpr": 0.01, "mean_fpr": 0.0026, "worst_fpr": 0.021, "above_target": 0.12, "above_twice": 0.02}
    new |= {**{f"macro_{name}": rate for name, rate in rates.items()}, "spread_ratio": 0.512, "domains": [{}] * 43}
    text = model_card(info(), {**METRICS, "new_domains": new}, {})
    assert "Each of the 43 domains" in text
    assert "\n| 0.3%, 2.1% | 12%, 2.0% | 41% | 11% | 44%, 48% | 0.512 |\n" in text
    assert "domains of the calibration split" not in model_card(info(), METRICS, {})


def test_card_states_how_often_accusations_are_right():
    text = model_card(info(), METRICS, {})
    assert "| AI texts among all | right, at the 1% target | right, at the 5% target |\n|---|---|---|\n| 1.0% |" in text
    assert "\n| 5.0% | 59% | 59% |\n| 20% | 87% | 87% |\n" in text
    assert "detection rates at\ncalibration of 55% (1% target), 55% (5% target)" in text
    assert "In a class of 30 who all wrote" in text
    assert "up to 26% (1% target)" in text
    unknown = [{**row, "detection_rate": None} for row in info()["thresholds"]]
    text = model_card(info(thresholds=unknown), METRICS, {})
    assert "is not known" in text
    assert "right, at" not in text


def test_card_lists_slices_attacks_and_other_data():
    row = {**METRICS, "column": "domain", "value": "a|b *c*"}
    few = {**row, "value": "few", "n_human": 3, "n_ai": 3}
    other = {**METRICS, "abstained_fraction": 0.25, "baseline": {"auroc": 0.7}, "contaminated": 2}
    evaluation = {**METRICS, "slices": [row, few], "attacks": [{**METRICS, "attack": "synonym"}]}
    text = model_card(info(), evaluation, {"essays": other})
    assert r"| domain: a\|b \*c\* | 500 | 3.1% (1.0% to 7.0%) |" in text
    assert "few |" not in text
    assert "| synonym | 3.1% (1.0% to 7.0%) |" in text
    assert "| 3.1% | 25% | 0.912 (0.700) | 2 |" in text


def test_card_shows_missing_values():
    text = model_card(info(), {**METRICS, "fpr_at_target_5_low": None, "auroc": None, "fpr_by_group": None}, {})
    assert "| 5% | 6.2% (95%) | 3.1% | 3.1% (1.0% to 7.0%) |" in text
    assert "| auroc | – | – |" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corpus": {**info()["corpus"], "demonstration": True}}, "A demonstration."),
        ({"domains": ["news", "law"], "compared_with": "new_domain"}, "random effects over 2 domains of 900 human"),
        (
            {"population": "*students*", "compared_with": "population", "parent": "abc"},
            r"one population, \*students\*,",
        ),
        ({"parent": "abc", "backend": "torch-int8"}, "version `abc` for the backend `torch-int8`"),
    ],
)
def test_card_states_what_a_bundle_has(changes, words):
    assert words in model_card(info(**changes), METRICS, {})
    assert words not in model_card(info(), METRICS, {})
