"""Leave-one-domain-out on simulated domains."""

from dataclasses import replace

import numpy as np
import pytest

from detect_ai.calibration.calibration import Scores
from detect_ai.calibration.conformal import conformal_threshold
from detect_ai.calibration.domains import calibrate, calibrate_population
from detect_ai.calibration.leave_one_out import (
    detection_rate,
    domain_rates,
    leave_one_domain_out,
    leave_one_text_out,
    summary,
)
from detect_ai.calibration.new_domain import MIN_DOMAINS
from tests.unit.calibration.conftest import WINDOW, config, domains

CONFIG = config(target_fprs=[0.01], default_target_fpr=0.01)


def report_of(scored):
    return leave_one_domain_out(calibrate(scored, CONFIG, WINDOW), CONFIG, 0.01)


def test_a_domain_is_decided_by_the_others_alone():
    scored = domains(13, humans=300, ai=100, between=0.5)
    scored.loc[(scored["domain"] == "d12") & (scored["label"] == 0), "score"] += 6.0
    fitted = calibrate(scored, CONFIG, WINDOW)
    report = leave_one_domain_out(fitted, CONFIG, 0.01)
    worst = report["domains"][0]
    assert (worst["domain"], worst["n_human"], worst["n_ai"]) == ("d12", 300, 100)
    effects = fitted.domain_effects.without("d12", 0.01)
    assert effects.domains == tuple(f"d{i:02d}" for i in range(12))
    left_out = fitted.domains[12].human.standardised(fitted.human_length)
    assert (left_out >= effects.thresholds(np.empty((1, 0)))[0, 0]).all()
    assert worst["fpr"] == report["worst_fpr"] > 0.5  # the others score too low to be called AI
    assert report["above_twice"] == pytest.approx(1 / 13)


def test_the_target_holds_on_average_over_domains():
    reports = [report_of(domains(30, humans=300, ai=100, seed=seed)) for seed in range(5)]
    assert np.mean([report["mean_fpr"] for report in reports]) <= 0.01
    assert np.mean([report["above_target"] for report in reports]) <= 0.15
    assert np.mean([report["macro_tpr"] for report in reports]) > 0.9
    assert np.mean([report["macro_cleared"] for report in reports]) <= 0.1
    assert np.mean([report["spread_ratio"] for report in reports]) == pytest.approx(1.0, abs=0.15)


def test_rates_of_a_class_with_few_texts_are_missing():
    scored = domains(8)
    few = scored[~((scored["domain"] == "d03") & (scored["label"] == 1))]
    [row] = [row for row in report_of(few)["domains"] if row["domain"] == "d03"]
    assert (row["n_ai"], row["tpr"], row["cleared"], row["fpr"] is not None) == (0, None, None, True)


def test_short_texts_are_uncertain():
    fitted = calibrate(domains(8), CONFIG, WINDOW)  # documents of 300 tokens
    short, long = (leave_one_domain_out(fitted, CONFIG, 0.01, min_tokens) for min_tokens in (301, 300))
    assert [short[name] for name in ("mean_fpr", "macro_tpr", "macro_cleared", "macro_abstained_ai")] == [0, 0, 0, 1]
    assert long == leave_one_domain_out(fitted, CONFIG, 0.01)
    assert long["macro_tpr"] > 0.5


def test_domains_without_a_class_do_not_count():
    few, many = np.zeros(10, int), np.repeat([1, 0, -1], [1, 59, 40])
    rows = [domain_rates("few", few, few), domain_rates("many", many, few)]
    assert rows[0] == {**dict.fromkeys(rows[0]), "domain": "few", "n_human": 10, "n_ai": 10}
    assert (rows[1]["fpr"], rows[1]["abstained_human"], rows[1]["tpr"]) == (0.01, 0.4, None)
    both = summary([*rows, domain_rates("bad", np.repeat([1, 0], [3, 97]), few)], 0.01)
    assert (both["mean_fpr"], both["worst_fpr"], both["above_target"], both["above_twice"]) == (0.02, 0.03, 0.5, 0.5)
    assert both["macro_tpr"] is None
    assert set(summary(rows[:1], 0.01).values()) == {None}


def test_too_few_domains_have_no_report():
    assert report_of(domains(MIN_DOMAINS)) is None


def test_the_detection_rate_is_that_of_domains_left_out():
    scored = domains(8, distance=5.0)
    assert 0 < detection_rate(calibrate(scored, CONFIG, WINDOW), CONFIG, 0.01) == report_of(scored)["macro_tpr"] < 1
    few = scored[(scored["label"] == 0) | (scored.groupby(["domain", "label"]).cumcount() < 20)]
    assert detection_rate(calibrate(few, CONFIG, WINDOW), CONFIG, 0.01) is None


def test_with_few_domains_the_detection_rate_is_that_of_all_ai_texts():
    fitted = calibrate(domains(2, distance=4.0), config(target_fprs=[0.1], default_target_fpr=0.1), WINDOW)
    labelled = [fitted.predictions_of(own.ai, 0.1) == 1 for own in fitted.domains]
    assert 0 < detection_rate(fitted, CONFIG, 0.1) == np.mean(labelled) < 1


@pytest.mark.parametrize(("n", "target"), [(99, 0.01), (100, 0.01), (150, 0.05)])
def test_a_text_left_out_is_decided_by_the_threshold_of_the_others(n, target):
    scores = np.random.default_rng(n).normal(4.0, 1.0, n)
    parent = replace(calibrate(domains(8), CONFIG, WINDOW), midpoint=-9.0, min_tokens={target: 0})
    fitted = calibrate_population(parent, Scores.of(scores, np.full(n, 300), np.empty((n, 0))), "w", [target])
    fitted = replace(fitted, midpoint=-99.0, unlike_below=-99.0)  # only the threshold decides
    own = fitted.domains[0].human.standardised(fitted.human_length)
    thresholds = [
        conformal_threshold(np.delete(own, i), target, "expectation").score if target * n >= 1 else np.inf
        for i in range(n)
    ]
    assert ((leave_one_text_out(fitted, fitted.domains[0].human, target) == 1) == (own >= thresholds)).all()


def test_the_detection_rate_of_a_population_is_that_of_ai_texts_like_its_own():
    """AI texts unlike it are uncertain anyway, and fewer than 50 give no estimate."""
    scored = domains(8, ai=40)
    styles = np.eye(2)[(scored["domain"] >= "d04").to_numpy() * 1]
    parent = calibrate(scored.assign(style=list(styles)), CONFIG, WINDOW)
    human = Scores.of(np.random.default_rng(0).normal(0.0, 1.0, 200), np.full(200, 300), np.tile([1.0, 0.0], (200, 1)))
    fitted = calibrate_population(parent, human, "w", [0.01])
    like = [domain.ai for domain in fitted.domains if domain.name < "d04" and len(domain.ai)]
    expected = np.concatenate([fitted.predictions_of(texts, 0.01) == 1 for texts in like]).mean()
    assert detection_rate(fitted, CONFIG, 0.01) == expected > 0.5
    few = replace(fitted, domains=fitted.domains[:2] + fitted.domains[5:])
    assert detection_rate(few, CONFIG, 0.01) is None
