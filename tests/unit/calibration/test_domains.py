"""Calibration on scored texts of several domains."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from detect_ai.calibration.calibration import AI, HUMAN, NEITHER, Calibration, LengthRates, Scores
from detect_ai.calibration.conformal import conformal_threshold
from detect_ai.calibration.domains import (
    _min_tokens,
    calibrate,
    calibrate_population,
    lower_quantile,
    whole_documents,
)
from detect_ai.calibration.new_domain import MIN_DOMAINS, fit_domain_effects
from detect_ai.calibration.scaling import fit_scaling
from detect_ai.core.errors import CalibrationError
from detect_ai.schemas import Reference
from tests.unit.calibration.conftest import LENGTHS, WINDOW, config, domains, sample, scored_spans


def standardised(calibration: Calibration) -> list:
    return [domain.human.standardised(calibration.human_length) for domain in calibration.domains]


def test_enough_domains_give_the_threshold_of_a_new_one():
    fitted = calibrate(domains(MIN_DOMAINS), config(), WINDOW)
    effects, threshold = fitted.domain_effects, fitted.thresholds[0.05]
    own = {domain.name: domain.human for domain in fitted.domains}
    scores = {name: texts.standardised(fitted.human_length) for name, texts in own.items()}
    styles = {name: texts.styles for name, texts in own.items()}
    assert replace(effects, reach=-1.0) == fit_domain_effects(scores, styles, effects.rates, 0.9)
    assert (threshold.fpr_bound, threshold.confidence) == (0.05, 0.9)
    assert threshold.score == effects.highest_thresholds[effects.rates.index(0.05)]
    # All texts of all domains have the same style here: the highest threshold applies to all.
    assert fitted.required_scores(np.empty((1, 0))).shape == (1, len(effects.rates))


def test_styles_of_the_texts_are_kept_and_count():
    rng = np.random.default_rng(0)
    scored = domains(8)
    axes = scored["domain"].str[1:].astype(int) % 2
    scored.loc[axes == 1, "score"] += 5.0
    styles = np.eye(2)[axes] + rng.normal(0, 0.05, (len(scored), 2))
    fitted = calibrate(scored.assign(style=list(styles)), config(verdict_lengths=[64]), WINDOW)
    assert fitted.by_length[0.05][0].num_human == 0
    low, high = fitted.required_scores(np.eye(2))[:, fitted.domain_effects.rates.index(0.05)]
    assert high - low == pytest.approx(5.0 / np.sqrt(fitted.human_length.variance[0]), rel=0.4)
    own = (scored["domain"] == "d01") & (scored["label"] == 0)
    np.testing.assert_allclose(fitted.domains[1].human.styles, styles[own], atol=1e-3)


def test_a_text_like_no_domain_is_undecided():
    """A few texts of either class are less similar to the nearest other domain than `reach` requires."""
    scored, rng = domains(8, humans=200, ai=100), np.random.default_rng(0)
    angles = 0.1 * scored["domain"].str[1:].astype(int) + rng.normal(0, 0.02, len(scored))
    styles = np.stack([np.cos(angles), np.sin(angles), np.zeros(len(scored))], axis=1)
    fitted = calibrate(scored.assign(style=list(styles)), config(), WINDOW)
    effects = fitted.domain_effects
    texts = [(domain.name, own.styles) for domain in fitted.domains for own in (domain.human, domain.ai)]
    assert (
        0.003 < np.mean([(effects.similarity_to_nearest(x, name) < effects.reach).mean() for name, x in texts]) <= 0.005
    )
    needed = fitted.required_scores([styles[0], [0.0, 0.0, 1.0]])
    decided = fitted.decide([-20.0, -20.0, 20.0], [WINDOW] * 3, needed[[0, 1, 1]], 0.05)
    assert decided.tolist() == [HUMAN, NEITHER, NEITHER]
    assert fitted.p_value(20.0, WINDOW, needed[1]) == 1.0


def test_a_higher_confidence_needs_a_higher_score():
    low, high = (calibrate(domains(8), config(new_domain_confidence=c), WINDOW).thresholds[0.05] for c in (0.8, 0.95))
    assert low.score < high.score


@pytest.mark.parametrize("scored", [domains(MIN_DOMAINS - 1), domains(MIN_DOMAINS + 2, humans=49)])
def test_too_few_domains_give_a_conformal_threshold_of_all_texts(scored):
    fitted = calibrate(scored, config(guarantee="confidence"), WINDOW)
    assert fitted.thresholds[0.05] == conformal_threshold(np.concatenate(standardised(fitted)), 0.05, "confidence")
    assert fitted.domain_effects is None


def test_too_few_texts_are_refused():
    labels = np.repeat([0, 1], [58, 20])
    scored = whole_documents(labels, np.arange(78.0), 300, "news")
    with pytest.raises(CalibrationError, match=r"at least 59 human .* found 58.*guarantee=expectation"):
        calibrate(scored, config(guarantee="confidence"), WINDOW)
    assert calibrate(scored, config(), WINDOW).num_human == 58


def test_all_domains_weigh_alike_in_what_may_be_cleared():
    rng = np.random.default_rng(0)
    easy, hard = rng.normal(9, 1, 2000), rng.normal(0, 1, 100)
    below = lower_quantile([easy, hard, np.empty(0)], 0.1)
    assert np.mean([(scores < below).mean() for scores in (easy, hard)]) == pytest.approx(0.1, abs=0.01)
    assert [lower_quantile([np.arange(n)], 0.1) for n in (8.0, 9.0, 19.0)] == [0.0, 1.0, 2.0]


def test_spans_have_a_scaling_of_their_own():
    rng = np.random.default_rng(1)
    rows = [
        (i, i % 2, rng.normal(distance * (2 * (i % 2) - 1)), length, "")
        for i in range(400)
        for length, distance in ((40, 0.5), (300, 4.0))
    ]
    scored = scored_spans(rows)
    spans, documents = scored[~scored["is_whole"]], scored[scored["is_whole"]]
    fitted = calibrate(scored, config(), WINDOW)
    assert fitted.span_scaling == fit_scaling(spans["label"], spans["score"])
    whole = fit_scaling(documents["label"], documents["score"])
    assert (fitted.temperature, fitted.midpoint) == (whole.temperature, whole.midpoint)
    assert calibrate(documents, config(), WINDOW).span_scaling is None


@pytest.mark.parametrize(
    ("accused", "expected"),
    [
        ((0, 0, 0), 0),
        ((5, 2, 5), 0),  # 5% is allowed, plus random variation
        ((20, 0, 0), 64),
        ((0, 20, 0), 128),
        ((20, 0, 20), 128),  # too high even for the longest: only the last range remains
    ],
)
def test_lengths_with_too_high_an_fpr_are_too_short(accused, expected):
    ranges = zip((0, 64, 128), (64, 128, None), accused, strict=True)
    rows = [LengthRates(low, high, 100, wrong, 0, 0, 0) for low, high, wrong in ranges]
    assert _min_tokens(rows, 0.05) == expected


def test_rates_by_length_count_one_span_of_a_document():
    rows = [(i, 0, float(i) / 200, LENGTHS[-1], "") for i in range(200)]
    for i in range(40):
        rows += [(200 + i, 1, 30.0 if n > 64 or i < 10 else -30.0, n, "") for n in (30, 40, 96, 300)]
    fitted = calibrate(scored_spans(rows), config(verdict_lengths=[64, 128]), WINDOW)
    assert [(row.low, row.high, row.num_human, row.num_ai, row.found) for row in fitted.by_length[0.05]] == [
        (0, 64, 0, 40, 10),
        (64, 128, 0, 40, 40),
        (128, None, 200, 40, 40),
    ]
    assert fitted.by_length[0.05][2].accused <= 10
    assert fitted.min_tokens == {0.05: 0}


def test_calibration_combines_scaling_and_prevalence():
    labels, logits = sample()
    fitted = calibrate(whole_documents(labels, logits, 300, "news"), config(prevalence=0.3), WINDOW)
    scaling = fit_scaling(labels, logits, 0.3)
    assert (fitted.temperature, fitted.midpoint, fitted.prevalence) == (scaling.temperature, scaling.midpoint, 0.3)
    assert (fitted.num_human, fitted.num_ai) == ((labels == 0).sum(), labels.sum())
    assert fitted.min_tokens == {0.05: 0}


PARENT = calibrate(domains(8), config(target_fprs=[0.01, 0.05]), WINDOW)


def population(n=200, seed=0, styles=None, mean=4.0):
    """Human texts that score higher than those of the parent."""
    rng = np.random.default_rng(seed)
    return Scores.of(rng.normal(mean, 1.0, n), np.full(n, 300), np.empty((n, 0)) if styles is None else styles)


def test_a_population_has_thresholds_of_its_own_texts_alone():
    human = population()
    fitted = calibrate_population(PARENT, human, "first-year students", [0.05])
    expected = conformal_threshold(human.standardised(PARENT.human_length), 0.05, "expectation")
    assert fitted.thresholds == {0.05: expected}
    assert (fitted.compared_with, fitted.num_human, fitted.num_ai) == (Reference.POPULATION, 200, PARENT.num_ai)
    kept = ("human_length", "ai_length", "cleared_below", "unlike_below", "prevalence", "span_scaling")
    assert all(getattr(fitted, name) == getattr(PARENT, name) for name in kept)
    assert (fitted.domain_effects, fitted.min_tokens) == (None, {0.05: PARENT.min_tokens[0.05]})
    assert fitted.named_domains == (fitted.nearest([]),) == ("first-year students",)
    ai = np.concatenate([domain.ai.scores for domain in PARENT.domains])
    scaling = fit_scaling(np.repeat([0, 1], [200, len(ai)]), np.concatenate([human.scores, ai]))
    assert (fitted.temperature, fitted.midpoint) == (scaling.temperature, scaling.midpoint)


@pytest.mark.parametrize("n", [99, 200])
def test_the_bound_of_a_population_holds_in_95_of_100_samples(n):
    """Realised rates on new texts of the same writers; their mean over samples is at most the target."""
    new, held, rates = population(20_000, seed=999), 0, []
    for seed in range(200):
        fitted = calibrate_population(PARENT, population(n, seed), "w", [0.01])
        # By the threshold only: texts below the midpoint are not labelled AI either.
        reached = new.standardised(fitted.human_length) >= fitted.thresholds[0.01].score
        rates.append(reached.mean())
        held += rates[-1] <= fitted.thresholds[0.01].fpr_bound
        assert (fitted.predictions_of(new, 0.01) == 1).mean() <= rates[-1]
    assert binomtest(held, 200, 0.95, alternative="less").pvalue > 0.01
    assert np.mean(rates) <= 0.01 + 3 * np.std(rates) / np.sqrt(200)


def test_texts_unlike_the_population_are_undecided():
    rng = np.random.default_rng(0)
    angles = rng.normal(0, 0.2, 400)
    styles = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fitted = calibrate_population(PARENT, population(400, styles=styles), "w", [0.05])
    assert 0.0 < fitted.population.is_unlike(styles).mean() <= 0.005
    needed = fitted.required_scores([[1.0, 0.0], [0.0, 1.0]])
    assert fitted.decide([20.0, 20.0], [300] * 2, needed, 0.05).tolist() == [AI, NEITHER]
    assert [fitted.p_value(20.0, 300, row) for row in needed] == [1 / 401, 1.0]


def test_few_texts_of_a_population_are_refused():
    with pytest.raises(CalibrationError, match="at least 99"):
        calibrate_population(PARENT, population(98), "w", [0.01])
