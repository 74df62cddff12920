"""Leave-one-domain-out on simulated domains."""

import numpy as np
import pandas as pd
import pytest

from detect_ai.calibration.new_domain import new_domain_threshold, tail
from detect_ai.core.errors import CalibrationError
from detect_ai.evaluation.leave_one_out import leave_one_domain_out


def simulated(rng, means, humans=300, ai=100):
    frames = []
    for i, mean in enumerate(means):
        for label, count in ((0, humans), (1, ai)):
            scores = rng.normal(mean + 8 * label, 1.0, count)
            frames.append(pd.DataFrame({"domain": f"d{i:02d}", "label": label, "score": scores}))
    return pd.concat(frames)


def test_a_domain_is_decided_by_the_others_alone():
    scored = simulated(np.random.default_rng(0), [*np.linspace(0, 2, 12), 9.0])
    report = leave_one_domain_out(scored, 0.01, 0.9)
    worst = report["domains"][0]
    assert (worst["domain"], worst["n_human"], worst["n_ai"]) == ("d12", 300, 100)
    others = [part["score"] for name, part in scored[scored["label"] == 0].groupby("domain") if name != "d12"]
    assert worst["threshold"] == new_domain_threshold([tail(scores, 0.01) for scores in others], 0.9)
    assert worst["fpr"] == report["worst_fpr"] > 0.9
    assert report["above_twice"] == pytest.approx(1 / 13)


def test_the_target_holds_on_average_over_domains():
    reports = [
        leave_one_domain_out(
            simulated(np.random.default_rng(seed), np.random.default_rng([seed, 1]).normal(0, 1, 30)), 0.01, 0.9
        )
        for seed in range(10)
    ]
    assert np.mean([report["mean_fpr"] for report in reports]) <= 0.01
    assert np.mean([report["above_target"] for report in reports]) <= 0.15
    assert np.mean([report["macro_tpr"] for report in reports]) > 0.9
    assert np.mean([report["spread_ratio"] for report in reports]) == pytest.approx(1.0, abs=0.15)


def test_a_domain_with_few_texts_of_a_class_has_no_rate_of_it():
    scored = simulated(np.random.default_rng(1), np.zeros(8))
    few = scored[~((scored["domain"] == "d03") & (scored["label"] == 1))]
    [row] = [row for row in leave_one_domain_out(few, 0.01, 0.9)["domains"] if row["domain"] == "d03"]
    assert (row["n_ai"], row["tpr"], row["fpr"] is not None) == (0, None, True)
    with pytest.raises(CalibrationError, match="domains"):
        leave_one_domain_out(scored[scored["domain"] < "d05"], 0.01, 0.9)
