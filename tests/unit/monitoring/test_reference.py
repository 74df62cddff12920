from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, kstest

from detect_ai.core.errors import InputError
from detect_ai.detector.bundle import read_spec
from detect_ai.monitoring.prediction_log import SKETCH_BITS
from detect_ai.monitoring.reference import DECIDED, SIGNALS, Reference, Traffic

WINDOW = 100
KINDS = ("essays", "news", "abstracts")


def traffic(n: int = 3000, seed: int = 0, **changes: Any) -> Traffic:
    """Made-up texts of three kinds, weighted unevenly; a change replaces an attribute."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, n)
    bits = rng.random((n, SKETCH_BITS)) < 0.3 + 0.2 * kinds[:, None]
    weights = 1.0 + kinds
    known: dict[str, Any] = {
        "scores": rng.normal(kinds, 1.0),
        "lengths": rng.integers(50, 600, n),
        "abstentions": np.where(rng.random(n) < 0.2, "between_thresholds", DECIDED),
        "domains": np.asarray(KINDS)[kinds],
        "words": bits.astype(np.uint8),
        "weights": weights / weights.sum(),
    }
    return Traffic(**known | changes)


def window_of(whole: Traffic, seed: int = 1) -> Traffic:
    return whole[np.random.default_rng(seed).choice(len(whole), WINDOW, p=whole.weights)]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(traffic(), WINDOW, 0.01)


@pytest.mark.parametrize("false_alarms", [0.01, 0.05])
def test_false_alarms_over_all_signals_are_as_configured(false_alarms: float) -> None:
    windows = 5000
    rate = Reference(traffic(), WINDOW, false_alarms).false_alarm_rate(windows, seed=7)
    found = round(rate * windows)
    assert beta.ppf(0.95, found + 1, windows - found) <= 1.5 * false_alarms
    assert rate >= 0.6 * false_alarms


CHANGES = {
    "scores": lambda w: {"scores": w.scores + 1.5},
    "lengths": lambda w: {"lengths": w.lengths // 3},
    "abstentions": lambda w: {"abstentions": np.full(len(w), "unlike_calibration")},
    "domains": lambda w: {"domains": np.full(len(w), "mail")},
    "words": lambda w: {"words": 1 - w.words},
}


@pytest.mark.parametrize("signal", SIGNALS)
def test_each_signal_notices_its_change_and_no_other(reference: Reference, signal: str) -> None:
    window = window_of(traffic())
    assert not reference.check(window).alarms
    changed = Traffic(**vars(window) | CHANGES[signal](window))
    check = reference.check(changed)
    assert check.alarms == [signal]
    assert len(check.sentences) == 1


def test_sentences_name_the_numbers(reference: Reference) -> None:
    window = window_of(traffic())
    shorter = reference.check(Traffic(**vars(window) | {"lengths": np.full(WINDOW, 60)})).sentences[0]
    lengths, weights = reference.traffic.lengths, reference.traffic.weights
    median = np.quantile(lengths, 0.5, weights=weights, method="inverted_cdf")
    assert "60 tokens" in shorter
    assert f"{median:g}." in shorter
    unlike = reference.check(Traffic(**vars(window) | CHANGES["abstentions"](window))).sentences[0]
    assert "100%" in unlike
    assert "unlike_calibration" in unlike


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    whole = traffic(weights=np.full(3000, 1 / 3000))
    reference = Reference(whole, WINDOW, 0.01)
    window = window_of(whole)
    statistics = reference._statistics(reference._encode(window), np.arange(WINDOW)[None])[0]
    ordered = np.sort(whole.scores)
    expected = kstest(window.scores, lambda x: np.searchsorted(ordered, x, side="right") / len(ordered))
    # At a value of the reference its distribution jumps by 1 / 3000, which scipy's continuous one does not know.
    assert statistics[0] == pytest.approx(expected.statistic, abs=1 / 3000 + 1e-9)


def test_without_styles_and_domains_three_signals_remain() -> None:
    plain = traffic(words=np.empty((3000, 0), np.uint8), domains=np.full(3000, ""))
    check = Reference(plain, WINDOW, 0.01).check(window_of(plain))
    assert list(check.p_values) == ["scores", "lengths", "abstentions"]


def test_a_reference_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(InputError, match=r"monitoring\.drift\.window=100: .* 50"):
        Reference(traffic(50), WINDOW, 0.01)


def test_rows_of_the_log_become_traffic() -> None:
    rows = [
        {
            "score": 1.0,
            "num_tokens": 5,
            "reasons": ["too_short", "other_script"],
            "nearest_domain": "news",
            "sketch": 1,
        },
        {"score": 2.0, "num_tokens": 6, "reasons": [], "nearest_domain": None, "sketch": 2**63},
    ]
    found = Traffic.of_rows(rows)
    assert found.abstentions.tolist() == ["too_short", DECIDED]
    assert found.domains.tolist() == ["news", ""]
    assert found.words[:, [0, -1]].tolist() == [[0, 1], [1, 0]]
    assert Traffic.of_rows([{**rows[0], "sketch": None}]).words.shape == (1, 0)


def test_calibration_texts_weigh_by_domain_and_class(tiny_bundle: Path) -> None:
    spec = read_spec(tiny_bundle)
    found = Traffic.of_calibration(spec, b"secret")
    assert len(found) == spec.calibration.num_human + spec.calibration.num_ai
    assert found.weights.sum() == pytest.approx(1)
    assert found.weights[spec.calibration.num_human :].sum() == pytest.approx(spec.calibration.prevalence)
    assert set(found.abstentions) <= {DECIDED, "too_short", "between_thresholds", "unlike_calibration"}
