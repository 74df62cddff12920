import pytest

from detect_ai.core.errors import ConfigError
from detect_ai.release.promotion_gate import Gate, Likeness, decide, unlike

GATE = Gate(min_auroc=0.9, max_auroc_drop=0.01)


def figures(auroc, test_fingerprint="abc"):
    return {"auroc": auroc, "f1": 0.5, "test_fingerprint": test_fingerprint}


@pytest.mark.parametrize("champion", [None, figures(0.9), figures(0.96)])
def test_a_candidate_that_reaches_every_figure_passes(champion):
    assert decide(figures(0.95), champion, GATE) == []


def test_the_required_auroc_itself_passes():
    assert decide(figures(0.9), None, GATE) == []


def test_an_auroc_below_the_required_one_is_refused():
    assert decide(figures(0.89999999), None, GATE) == ["AUROC is 0.89999999; at least 0.9 is required."]


@pytest.mark.parametrize("candidate", [figures(None), figures(float("nan")), {"test_fingerprint": "abc"}])
def test_a_candidate_without_auroc_is_refused(candidate):
    expected = ["The candidate has no AUROC; at least 0.9 is required."]
    assert decide(candidate, figures(0.95), GATE) == expected


def test_a_fall_below_the_champion_on_the_same_test_data_is_refused():
    assert decide(figures(0.94), figures(0.97), GATE) == [
        "AUROC fell by 0.03, from the champion's 0.97 to 0.94 on the same test data; "
        "a drop of at most 0.01 is required."
    ]


def test_the_allowed_fall_itself_passes_in_spite_of_rounding():
    assert GATE.max_auroc_drop < 0.95 - 0.94
    assert decide(figures(0.94), figures(0.95), GATE) == []


def test_figures_of_different_test_data_are_not_compared():
    assert decide(figures(0.91), figures(0.99, "def"), GATE) == []


def test_a_candidate_without_fingerprint_does_not_slip_past_the_champion():
    with pytest.raises(KeyError):
        decide({"auroc": 0.91}, figures(0.99), GATE)


@pytest.mark.parametrize("auroc", [None, float("nan")])
def test_a_champion_without_auroc_on_the_same_test_data_refuses_the_candidate(auroc):
    assert decide(figures(0.95), figures(auroc), GATE) == [
        "The champion has no AUROC on the same test data to compare the candidate's 0.95 with; "
        "a drop of at most 0.01 is required."
    ]


def test_every_reason_is_given():
    assert decide(figures(0.8), figures(0.95), GATE) == [
        "AUROC is 0.8; at least 0.9 is required.",
        "AUROC fell by 0.15, from the champion's 0.95 to 0.8 on the same test data; "
        "a drop of at most 0.01 is required.",
    ]


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((95, 0.01), "min_auroc must be in [0, 1], found 95"),
        ((float("nan"), 0.01), "min_auroc must be in [0, 1], found nan"),
        ((0.9, -0.01), "max_auroc_drop must be in [0, 1], found -0.01"),
    ],
)
def test_a_bound_outside_zero_to_one_is_refused(bounds, text):
    with pytest.raises(ConfigError) as refused:
        Gate(*bounds)
    assert str(refused.value) == text


# An export against the bundle that it was made from

BOUNDS = Likeness(max_auroc_change=0.001, max_tpr_drop=0.005)


def found(auroc=0.95, tpr=0.8):
    return {"auroc": auroc, "tpr_at_fpr_1": tpr}


@pytest.mark.parametrize(
    "export",
    [found(), found(0.949), found(0.951), found(tpr=0.795), found(tpr=0.99), found(0.949, 0.795)],
    ids=["the same", "auroc down", "auroc up", "tpr down", "a better tpr", "both down"],
)
def test_an_export_within_its_bounds_passes_in_spite_of_rounding(export):
    assert unlike(export, found(), BOUNDS) == []


@pytest.mark.parametrize("auroc", [0.9489, 0.9511])
def test_an_export_whose_auroc_moves_is_refused_in_either_direction(auroc):
    assert unlike(found(auroc), found(), BOUNDS) == ["AUROC moved by 0.0011; 0.001 is allowed."]


def test_an_export_that_finds_fewer_ai_texts_is_refused():
    assert unlike(found(tpr=0.7949), found(), BOUNDS) == ["TPR at 1% FPR fell by 0.51 points; 0.5 are allowed."]


def test_every_reason_against_an_export_is_told():
    assert len(unlike(found(0.9, 0.1), found(), BOUNDS)) == 2
    assert len(unlike(found(float("nan"), float("nan")), found(), BOUNDS)) == 2
