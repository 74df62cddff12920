from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.stats import beta, kstest

from detect_ai.calibration.calibration import Scores
from detect_ai.core.errors import InputError
from detect_ai.detector.bundle import read_spec
from detect_ai.monitoring.log_files import PREDICTIONS
from detect_ai.monitoring.prediction_log import SKETCH_BITS
from detect_ai.monitoring.reference import COLUMNS, DECIDED, SIGNALS, Reference, Traffic

WINDOW = 100
KINDS = ("essays", "news", "abstracts")


def traffic(n: int = 3000, seed: int = 0, **changes: Any) -> Traffic:
    """Made-up texts of three kinds; a change replaces an attribute."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, n)
    bits = rng.random((n, SKETCH_BITS)) < 0.3 + 0.2 * kinds[:, None]
    known: dict[str, Any] = {
        "scores": rng.normal(kinds, 1.0),
        "num_tokens": rng.integers(50, 600, n),
        "outcomes": np.where(rng.random(n) < 0.2, "between_thresholds", DECIDED),
        "domains": np.asarray(KINDS)[kinds],
        "bits": bits.astype(np.uint8),
    }
    return Traffic(**known | changes)


def window_of(whole: Traffic, seed: int = 1) -> Traffic:
    return whole[np.random.default_rng(seed).choice(len(whole), WINDOW)]


def two_classes(n: int = 3000) -> tuple[Traffic, NDArray[np.float64]]:
    """Human texts and AI texts, which score higher, are longer and are seldom abstentions; with their probabilities."""
    whole, is_ai = traffic(n), np.arange(n) % 3 == 0
    changes = {
        "scores": whole.scores + 4.0 * is_ai,
        "num_tokens": whole.num_tokens + 200 * is_ai,
        "outcomes": np.where(is_ai, DECIDED, whole.outcomes),
    }
    weights = np.stack([~is_ai, is_ai]).astype(float)
    return Traffic(**vars(whole) | changes), weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(traffic(), WINDOW, 0.01)


@pytest.fixture(scope="module")
def mixtures() -> Reference:
    """A reference of unknown AI fraction."""
    whole, class_weights = two_classes()
    return Reference(whole, WINDOW, 0.01, class_weights)


def upper_bound(rate: float, windows: int) -> float:
    """Upper end of a 95% interval."""
    found = round(rate * windows)
    return float(beta.ppf(0.95, found + 1, windows - found))


@pytest.mark.parametrize("false_alarms", [0.01, 0.05])
def test_false_alarms_over_all_signals_are_as_configured(false_alarms: float) -> None:
    windows = 5000
    rate = Reference(traffic(), WINDOW, false_alarms).alarm_rate(traffic(20_000, seed=1), windows, seed=7)
    assert upper_bound(rate, windows) <= 1.5 * false_alarms
    assert rate >= 0.4 * false_alarms


def test_fresh_texts_are_like_a_small_reference() -> None:
    fresh = traffic(10_000, seed=1)
    rates = [Reference(traffic(400, seed=i), 200, 0.01, seed=i).alarm_rate(fresh, 300, i) for i in range(2, 22)]
    assert np.mean(rates) - np.std(rates) / np.sqrt(len(rates)) <= 0.015


@pytest.mark.parametrize("ai_fraction", [0.0, 0.03, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_no_fraction_of_ai_texts_is_drift(mixtures: Reference, ai_fraction: float) -> None:
    whole, (human, ai) = two_classes()
    windows = 2000
    rate = mixtures.alarm_rate(whole, windows, 3, (1 - ai_fraction) * human + ai_fraction * ai)
    assert upper_bound(rate, windows) <= 0.015


def test_the_best_mixture_is_reported(mixtures: Reference) -> None:
    whole, (human, ai) = two_classes()
    rng = np.random.default_rng(5)
    for fraction in (0.0, 0.3, 1.0):
        window = whole[rng.choice(len(whole), WINDOW, p=(1 - fraction) * human + fraction * ai)]
        assert mixtures.check(window).ai_fraction == pytest.approx(fraction, abs=0.2)
        shorter = mixtures.check(Traffic(**vars(window) | {"num_tokens": np.full(WINDOW, 60)}))
        assert shorter.alarms == ["lengths"]
        assert f"{100 * (shorter.ai_fraction or 0):.0f}% AI" in shorter.sentences[0]
        assert shorter.ai_fraction == pytest.approx(fraction, abs=0.2)


def test_the_lowest_rate_of_false_alarms_still_allows_alarms() -> None:
    reference = Reference(traffic(), WINDOW, 0.001)
    assert reference.check(Traffic(**vars(window_of(traffic())) | {"num_tokens": np.full(WINDOW, 60)})).alarms
    assert upper_bound(reference.alarm_rate(traffic(20_000, seed=1), 10_000, seed=7), 10_000) <= 0.002


CHANGES = {
    "scores": lambda w: {"scores": w.scores + 1.5},
    "lengths": lambda w: {"num_tokens": w.num_tokens // 3},
    "abstentions": lambda w: {"outcomes": np.full(len(w), "unlike_calibration")},
    "domains": lambda w: {"domains": np.full(len(w), "mail")},
    "words": lambda w: {"bits": np.ones_like(w.bits)},
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_each_signal_notices_its_change_and_no_other(reference: Reference, signal: str) -> None:
    window = window_of(traffic())
    assert not reference.check(window).alarms
    changed = Traffic(**vars(window) | CHANGES[signal](window))
    check = reference.check(changed)
    assert check.alarms == [signal]
    assert len(check.sentences) == 1


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("ai_fraction", [0.05, 0.5])
def test_changes_are_noticed_in_any_mixture(mixtures: Reference, signal: str, ai_fraction: float) -> None:
    whole, (human, ai) = two_classes()
    drawn = np.random.default_rng(5).choice(len(whole), WINDOW, p=(1 - ai_fraction) * human + ai_fraction * ai)
    window = whole[drawn]
    assert not mixtures.check(window).alarms
    assert mixtures.check(Traffic(**vars(window) | CHANGES[signal](window))).alarms == [signal]


def test_sentences_name_the_numbers(reference: Reference) -> None:
    window = window_of(traffic())
    shorter = reference.check(Traffic(**vars(window) | {"num_tokens": np.full(WINDOW, 60)})).sentences[0]
    assert "shorter" in shorter
    assert "60, 60, 60 tokens" in shorter
    higher = reference.check(Traffic(**vars(window) | {"scores": np.full(WINDOW, 7.25)})).sentences[0]
    assert "higher: 7.2, 7.2, 7.2" in higher
    spread = reference.check(Traffic(**vars(window) | {"scores": 9 * window.scores - 8})).sentences[0]
    assert "higher" not in spread
    assert "lower" not in spread
    unlike = reference.check(Traffic(**vars(window) | CHANGES["abstentions"](window))).sentences[0]
    assert "100%" in unlike
    assert "unlike_calibration" in unlike


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    whole = traffic()
    reference = Reference(whole, WINDOW, 0.01)
    window = window_of(whole)
    (mixture,) = reference._mixtures
    encoded, windows = reference._encode(window), np.arange(WINDOW)[None]
    statistics = reference._statistics(encoded, windows, mixture.weights, mixture.expected)[0]
    ordered = np.sort(whole.scores)
    expected = kstest(window.scores, lambda x: np.searchsorted(ordered, x, side="right") / len(ordered))
    # At a value of the reference its distribution jumps by 1 / 3000; scipy assumes a continuous one.
    assert statistics[0] == pytest.approx(expected.statistic, abs=1 / 3000 + 1e-9)


def test_without_styles_and_domains_three_signals_remain() -> None:
    plain = traffic(bits=np.empty((3000, 0), np.uint8), domains=np.full(3000, ""))
    check = Reference(plain, WINDOW, 0.01).check(window_of(plain))
    assert list(check.p_values) == ["scores", "lengths", "abstentions"]


def test_a_reference_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(InputError, match=r"monitoring\.drift\.window=100: .* 50"):
        Reference(traffic(50), WINDOW, 0.01)


def row(score: float, num_tokens: int, reasons: list[str], domain: str | None, sketch: int | None) -> dict[str, Any]:
    return {
        **{"score": score, "num_tokens": num_tokens, "reasons": reasons},
        **{"nearest_domain": domain, "sketch": sketch},
    }


def test_rows_of_the_log_become_traffic() -> None:
    rows = [row(1.0, 5, ["too_short", "other_script"], "news", 1), row(2.0, 6, [], None, 2**63)]
    found = Traffic.of_rows(rows)
    assert found.scores.tolist() == [1.0, 2.0]
    assert found.num_tokens.tolist() == [5, 6]
    assert found.outcomes.tolist() == ["too_short", DECIDED]
    assert found.domains.tolist() == ["news", ""]
    assert found.bits[:, [0, -1]].tolist() == [[0, 1], [1, 0]]
    assert Traffic.of_rows([row(1.0, 5, [], "news", None)]).bits.shape == (1, 0)


def test_a_pause_of_verdicts_is_no_outcome() -> None:
    rows = [row(1.0, 5, reasons, "news", 1) for reasons in ([], ["abstaining"], ["too_short", "abstaining"])]
    assert Traffic.of_rows(rows).outcomes.tolist() == [DECIDED, DECIDED, "too_short"]


def test_a_part_of_a_table_becomes_traffic() -> None:
    schema = pa.schema([PREDICTIONS.field(name) for name in COLUMNS])
    rows = [row(float(i), i, ["too_short"] if i % 2 else [], "news", i) for i in range(10)]
    table = pa.concat_tables([pa.Table.from_pylist(part, schema) for part in (rows[:4], rows[4:])])
    found = Traffic.of_log(table.slice(3, 4))
    assert found.num_tokens.tolist() == [3, 4, 5, 6]
    assert found.outcomes.tolist() == ["too_short", DECIDED, "too_short", DECIDED]


def test_calibration_texts_weigh_by_domain_within_a_class(tiny_bundle: Path) -> None:
    spec = read_spec(tiny_bundle)
    largest, *others = spec.calibration.domains
    human = largest.human
    few = replace(largest, human=Scores.of(human.scores[:3], human.num_tokens[:3], human.styles[:3]))
    calibration = replace(spec.calibration, domains=(few, replace(largest, ai=Scores((), ())), *others))
    found, weights = Traffic.of_calibration(replace(spec, calibration=calibration), b"secret")
    assert len(found) == calibration.num_human + calibration.num_ai
    assert set(found.outcomes) <= {DECIDED, "too_short", "between_thresholds", "unlike_calibration"}
    assert weights.sum(axis=1) == pytest.approx([1, 1])
    assert (weights > 0).sum(axis=1).tolist() == [calibration.num_human, calibration.num_ai]
    start = 0
    for domain in calibration.domains:
        for label, own in enumerate((domain.human, domain.ai)):
            number = sum(len((other.human, other.ai)[label]) > 0 for other in calibration.domains)
            part, start = slice(start, start + len(own)), start + len(own)
            assert found.scores[part].tolist() == list(own.scores)
            if len(own):
                assert weights[label, part].sum() == pytest.approx(1 / number)
