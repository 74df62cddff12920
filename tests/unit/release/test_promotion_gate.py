"""Promotion gate: absolute bounds, changes against the champion, and what could not be compared."""

import pytest

from detect_ai.core.config import ExportConfig, GateConfig
from detect_ai.release.promotion_gate import TEST, export_reasons, gate

CONFIG = GateConfig(
    min_auroc=0.9,
    max_auroc_drop=0.01,
    max_fpr=0.1,
    max_fpr_increase=0.02,
    max_cleared_increase=0.05,
    max_abstained=0.4,
    max_new_domain_fpr=0.05,
    min_macro_tpr=0.3,
)


def metrics(auroc=0.95, fpr=0.03, cleared=0.2, abstained=0.1, texts="abc"):
    return {
        "auroc": auroc,
        "fpr_at_target": fpr,
        "cleared_ai_fraction": cleared,
        "abstained_fraction": abstained,
        "test_fingerprint": texts,
    }


def new(fpr, tpr, cleared=None):
    return {"mean_fpr": fpr, "macro_tpr": tpr, "macro_cleared": cleared}


def reasons(candidate, champion=None):
    return gate({TEST: candidate}, None if champion is None else {TEST: champion}, CONFIG)[0]


@pytest.mark.parametrize("champion", [None, metrics(), metrics(0.96, 0.01, 0.15)])
def test_a_candidate_within_all_bounds_passes(champion):
    assert gate({TEST: metrics()}, champion and {TEST: champion}, CONFIG) == ([], [])


@pytest.mark.parametrize("candidate", [metrics(0.9), metrics(fpr=0.1), metrics(abstained=0.4), metrics(cleared=0.5)])
def test_the_bounds_themselves_pass(candidate):
    assert reasons(candidate) == []


@pytest.mark.parametrize(
    ("candidate", "named"),
    [
        (metrics(0.89999), "AUROC"),
        (metrics(None), "AUROC"),
        (metrics(float("nan")), "AUROC"),
        (metrics(fpr=0.11), "max_fpr=0.1"),
        (metrics(fpr=float("nan")), "max_fpr=0.1"),
        (metrics(fpr=None), "FPR"),
        (metrics(abstained=0.41), "max_abstained=0.4"),
        (metrics(cleared=0.51), "max_cleared=0.5"),
        ({**metrics(), "new_domains": new(0.051, 0.5)}, "max_new_domain_fpr=0.05"),
        ({**metrics(), "new_domains": new(0.05, 0.29)}, "min_macro_tpr=0.3"),
        ({**metrics(), "new_domains": new(0.05, None)}, "min_macro_tpr=0.3"),
        ({**metrics(), "new_domains": new(0.05, 0.3, 0.51)}, "max_cleared=0.5"),
        ({name: value for name, value in metrics().items() if name != "fpr_at_target"}, "FPR"),
    ],
)
def test_an_absolute_bound_refuses(candidate, named):
    (reason,) = reasons(candidate)
    assert named in reason


@pytest.mark.parametrize(
    ("candidate", "key"),
    [
        (metrics(0.93), "max_auroc_drop"),
        (metrics(fpr=0.06), "max_fpr_increase"),
        (metrics(cleared=0.26), "max_cleared_increase"),
    ],
)
def test_a_change_for_the_worse_refuses(candidate, key):
    (reason,) = reasons(candidate, metrics())
    assert key in reason


def test_allowed_changes_pass_in_spite_of_rounding():
    assert CONFIG.max_auroc_drop < 0.95 - 0.94
    assert CONFIG.max_fpr_increase < 0.05 - 0.03 + 1e-12
    assert reasons(metrics(0.94, 0.05, 0.25), metrics()) == []


@pytest.mark.parametrize("target", [0.01, 0.05])
def test_default_fpr_bounds_follow_the_target(target):
    def passes(fpr, champion=None):
        candidate = {**metrics(fpr=fpr), "default_target": target}
        return not gate({TEST: candidate}, champion and {TEST: champion}, GateConfig())[0]

    assert passes(3 * target)
    assert not passes(3.1 * target)
    assert passes(1.5 * target, metrics(fpr=target))
    assert not passes(1.6 * target, metrics(fpr=target))


def test_every_evaluation_of_the_run_counts():
    good, bad = metrics(), metrics(fpr=0.3, texts="others")
    for champion in (None, {TEST: good, "others": metrics(texts="others")}):
        failures, _ = gate({TEST: good, "others": bad}, champion, CONFIG)
        assert failures
        assert all("others" in reason for reason in failures)


def test_the_champion_is_compared_on_the_same_texts():
    champion = {TEST: metrics(texts="old"), "renamed": metrics(fpr=0.0, texts="abc")}
    failures, warnings = gate({TEST: metrics(0.96, 0.05)}, champion, CONFIG)
    assert (len(failures), warnings) == (1, [])


def test_other_texts_are_a_warning():
    failures, warnings = gate({TEST: metrics(0.91)}, {TEST: metrics(0.99, texts="def")}, CONFIG)
    assert failures == []
    assert len(warnings) == 1
    assert TEST in warnings[0]


def test_a_metric_that_the_champion_lacks_is_a_warning():
    champion = {"auroc": 0.95, "test_fingerprint": "abc"}
    failures, warnings = gate({TEST: metrics()}, {TEST: champion}, CONFIG)
    assert (failures, len(warnings)) == ([], 2)


def test_texts_of_one_class_have_their_own_checks():
    humans = metrics(None, 0.03, None, texts="humans")
    champion = {TEST: metrics(), "humans": humans}
    assert gate({TEST: metrics(), "humans": humans}, champion, CONFIG) == ([], [])
    (reason,), _ = gate({TEST: metrics(), "humans": {**humans, "fpr_at_target": 0.2}}, None, CONFIG)
    assert "humans" in reason


# An export against its parent

TOLERANCE = ExportConfig(max_auroc_change=0.001, max_tpr_drop=0.005)


def export(auroc=0.95, tpr=0.8):
    return {"auroc": auroc, "tpr_at_fpr_1": tpr}


@pytest.mark.parametrize(
    ("candidate", "number"),
    [
        (export(), 0),
        (export(0.949), 0),
        (export(0.951), 0),
        (export(tpr=0.795), 0),
        (export(tpr=0.99), 0),
        (export(0.9489), 1),
        (export(0.9511), 1),
        (export(tpr=0.7949), 1),
        (export(0.9, 0.1), 2),
        (export(float("nan"), float("nan")), 2),
    ],
)
def test_an_export_must_be_as_good_as_its_parent(candidate, number):
    assert len(export_reasons(candidate, export(), TOLERANCE)) == number
