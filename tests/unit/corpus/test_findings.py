"""Findings about a corpus: what is too small, too large or too easy, in one sentence each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from detect_ai.corpus import findings
from detect_ai.corpus.baseline import SliceScore


def counts(rows: dict[tuple[str, int, str], int]) -> list[dict[str, Any]]:
    return [
        {"split": split, "label": label, "source": "", "domain": "", "generator": generator, "rows": number}
        for (split, label, generator), number in rows.items()
    ]


@pytest.mark.parametrize(
    ("humans", "said"),
    [
        (18, "it takes 99 to set a threshold for an FPR of 1% and 19 to set a threshold for an FPR of 5%"),
        (19, "it takes 99 to set a threshold for an FPR of 1%"),
        (98, "it takes 99 to set a threshold for an FPR of 1%"),
        (99, ""),
    ],
)
def test_a_split_with_too_few_human_texts_for_a_target_is_named_with_what_it_takes(humans: int, said: str) -> None:
    found = list(findings.of_sizes(counts({("calibration", 0, ""): humans, ("test", 0, ""): 99})))
    expected = [f"the calibration split has {humans} human texts; {said}"] if said else []
    assert [finding.text for finding in found] == expected


def test_generators_with_few_texts_are_named_the_smallest_first() -> None:
    rows = {("train", 1, "m1"): 60, ("test", 1, "m1"): 39, ("train", 1, "m2"): 100, ("train", 1, "m3"): 7}
    enough = {("calibration", 0, ""): 99, ("test", 0, "human"): 99}
    (found,) = findings.of_sizes(counts(rows | enough))
    assert found.text == (
        "2 of 3 generators have fewer than 100 texts: m3 (7), m1 (99). Figures by generator are noise there"
    )


def test_a_group_that_holds_a_fifth_of_a_split_is_named() -> None:
    (found,) = findings.of_groups({"train": (40, 0.19), "test": (2, 0.54)})
    assert found.text == (
        "one group holds 54% of test (of 2 groups): figures there vary from group to group more than an interval over "
        "texts shows"
    )


def test_reasons_that_took_over_5_percent_are_named_unless_the_configuration_asked_for_them() -> None:
    dropped = {"duplicate": 51, "both_labels": 50, "held_out": 400, "over_limit": 400}
    (found,) = findings.of_quarantine(dropped, 1000)
    assert found.text == (
        "51 of 1,000 rows (5%) fell for 'duplicate': a source holds its texts several times, or two sources share them"
    )


def test_human_texts_of_a_slice_that_are_accused_more_often_are_named() -> None:
    calm = SliceScore("domain", "news", 80, 80, True, 0.9, None, 0.5, 0.02)
    found = list(findings.of_baseline(calm, [calm, replace(calm, value="law", called_ai=0.31)]))
    assert [finding.text for finding in found] == [
        "where the baseline calls 5% of all human texts AI, it calls 31% of the 80 of domain 'law' so: add human texts "
        "like these"
    ]


def test_a_corpus_that_a_bag_of_words_solves_is_called_easy() -> None:
    easy = SliceScore("all", "", 80, 80, True, 0.985, None, 0.95, 0.05)
    (found,) = findings.of_baseline(easy, [])
    assert found.text.startswith("TF-IDF and logistic regression reach AUROC 0.985: the classes differ in their words")
