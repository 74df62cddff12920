"""The shortcut audit: what features can do alone, the baseline, and the warnings about both."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.errors import CorpusError
from detect_ai.corpus import findings
from detect_ai.corpus.shortcuts import Audit, FeatureScore, audit, weighted_auroc
from detect_ai.metrics import auroc, rate_interval

SENTENCE = "the old bridge near a market where rain fell on quiet boats and bread was sold at dawn by one tall farmer"
WORDS = SENTENCE.split()
SECRET = "Zebulon"


def sentence_text(rng: random.Random, words: int, pool: list[str] = WORDS) -> str:
    """Sentences of ten words drawn from a pool that both classes share."""
    drawn = [rng.choice(pool) for _ in range(words)]
    return " ".join(" ".join(drawn[i : i + 10]).capitalize() + "." for i in range(0, words, 10))


class Made:
    """Labelled texts that nothing tells apart: 30 human and 30 AI ones in each of four splits, two to a group."""

    def __init__(self, seed: int = 0, per_class: int = 30) -> None:
        rng = random.Random(seed)
        self.labels = [label for _ in range(4 * per_class) for label in (0, 1)]
        self.texts = [sentence_text(rng, rng.randint(20, 60)) for _ in self.labels]
        count = len(self.labels)
        names = ("train", "train", "calibration", "test")
        self.slices: dict[str, list[str]] = {
            "split": [names[i * 4 // count] for i in range(count)],
            "group": [f"g{i // 2}" for i in range(count)],
            "domain": [("news", "letters")[i // 2 % 2] for i in range(count)],
            "generator": ["" if label == 0 else ("m1", "m2")[i // 4 % 2] for i, label in enumerate(self.labels)],
            "source": ["made"] * count,
        }

    def ai(self, change: Any) -> Made:
        """Change the AI texts."""
        self.texts = [change(text) if label else text for text, label in zip(self.texts, self.labels, strict=True)]
        return self

    def audit(self, weights: Any = None) -> Audit:
        return audit(self.texts, self.labels, self.slices, weights)


def feature(found: Audit, name: str) -> FeatureScore:
    return next(each for each in found.features if each.name == name)


labelled = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(1, 3)), min_size=2).filter(
    lambda rows: {label for label, _, _ in rows} == {0, 1}
)


@given(labelled)
def test_the_weighted_auroc_counts_a_text_of_weight_n_n_times_with_ties_as_halves(
    rows: list[tuple[int, int, int]],
) -> None:
    labels, scores, weights = np.asarray(rows).T
    area, low, high = weighted_auroc(labels, scores.astype(float), weights.astype(float))
    assert area == pytest.approx(auroc(np.repeat(labels, weights), np.repeat(scores, weights)))
    assert 0 <= low <= area + 1e-12
    assert area <= high + 1e-12 <= 1 + 2e-12


@given(labelled)
def test_turning_the_scores_round_mirrors_the_auroc_and_its_interval(rows: list[tuple[int, int, int]]) -> None:
    labels, scores, weights = np.asarray(rows).T
    area, low, high = weighted_auroc(labels, scores.astype(float), weights.astype(float))
    assert weighted_auroc(labels, -scores.astype(float), weights.astype(float)) == pytest.approx(
        (1 - area, 1 - high, 1 - low), abs=1e-9
    )


def test_the_interval_covers_the_true_auroc_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], (60, 90))
    truth = 0.76025  # of two normal distributions one standard deviation apart
    covered = 0
    for _ in range(400):
        _, low, high = weighted_auroc(labels, rng.normal(labels, 1), np.ones(150))
        covered += low <= truth <= high
    assert 0.93 <= covered / 400 <= 0.98


def test_the_interval_of_separated_classes_is_that_of_the_smaller_class() -> None:
    labels = np.repeat([0, 1], (20, 90))
    assert weighted_auroc(labels, labels.astype(float), np.ones(110)) == (1.0, rate_interval(20, 20)[0], 1.0)


def test_texts_that_nothing_tells_apart_bring_no_warning_about_shortcuts() -> None:
    found = Made().audit()
    assert list(findings.of_shortcuts(found)) == []
    assert found.baseline.auroc == pytest.approx(0.5, abs=0.15)


def test_a_difference_in_length_alone_is_found_named_and_advised_on() -> None:
    made = Made()
    made.texts = [
        f"{text} {text} {text} {text} {text}" for text in made.texts
    ]  # over 100 words, as the type-token ratio
    found = made.ai(lambda text: f"{text} {text} {text}").audit()
    words = feature(found, "words")
    assert (words.higher_in, words.family) == ("ai", "length")
    assert 0.9 < words.low < words.auroc <= words.high
    said = [finding.text for finding in findings.of_shortcuts(found)]
    assert len(said) == 1
    assert said[0].startswith("length alone (")
    assert said[0].endswith("): balance lengths (corpus.balance=weight) or the detector will learn them")
    assert f"AUROC {found.features[0].auroc:.2f}, higher in AI texts" in said[0]


def test_weights_that_balance_a_feature_take_its_auroc_away() -> None:
    made = Made()
    halves = [i // 2 % 4 for i in range(len(made.labels))]
    # Three of four AI texts are long, one of four human ones.
    is_long = [(half < 3) == bool(label) for half, label in zip(halves, made.labels, strict=True)]
    made.texts = [text * 4 if long else text for text, long in zip(made.texts, is_long, strict=True)]
    weights = [1.0 if long == bool(label) else 3.0 for long, label in zip(is_long, made.labels, strict=True)]
    assert feature(made.audit(), "words").auroc > 0.7
    assert feature(made.audit(weights), "words").auroc < 0.6


def test_a_feature_lower_in_ai_texts_is_told_by_its_distance_from_one_half() -> None:
    found = feature(Made().ai(lambda text: text.replace(".", "")).audit(), "full stops")
    assert (found.auroc, found.held_out, found.higher_in) == (1.0, 1.0, "human")


def test_typography_is_measured_as_read_and_noted_as_undone_by_the_normaliser() -> None:
    found = Made().ai(lambda text: text.replace("the", "“the”").replace(" by ", " — ")).audit()
    curly = feature(found, "curly quotes")
    assert curly.auroc > 0.75
    assert curly.normalised == pytest.approx(0.5)
    said = [finding for finding in findings.of_shortcuts(found) if finding.text.startswith("typography")]
    assert [finding.about for finding in said] == [findings.NOTE]
    assert said[0].text.endswith(
        "the normaliser takes it away before the detector reads (AUROC 0.50 after it): nothing to do"
    )


def test_a_feature_that_points_the_other_way_outside_the_training_split_shows_it() -> None:
    made = Made()
    turned = [bool(label) == (split == "train") for label, split in zip(made.labels, made.slices["split"], strict=True)]
    made.texts = [text * 3 if longer else text for text, longer in zip(made.texts, turned, strict=True)]
    words = feature(made.audit(), "words")
    assert words.auroc > 0.95
    assert words.held_out is not None
    assert words.held_out < 0.05


def test_a_first_word_that_one_class_likes_is_found_out_of_fold() -> None:
    found = Made().ai(lambda text: f"Certainly, {text}").audit()
    first = feature(found, "first word")
    assert first.auroc > 0.95
    assert first.held_out is not None
    assert first.held_out > 0.95
    assert [opening.word for opening in found.openings][:1] == ["Certainly,"]
    assert (found.openings[0].human, found.openings[0].ai) == (0, 120 // 2)


def test_first_words_that_a_group_alone_has_tell_nothing() -> None:
    made = Made()
    heads = [f"W{group}{label}" for group, label in zip(made.slices["group"], made.labels, strict=True)]
    made.texts = [f"{head} {text}" for head, text in zip(heads, made.texts, strict=True)]
    assert feature(made.audit(), "first word").auroc == pytest.approx(0.5, abs=0.01)


def test_features_that_are_weak_alone_are_found_together() -> None:
    rng = random.Random(1)
    made = Made(per_class=60)
    marks = list(";:?!")

    def punctuate(text: str, label: int) -> str:
        # An even number of kinds of marks in AI texts, an odd one in human ones: no kind alone tells anything.
        kinds = rng.sample(marks[:2], rng.choice([0, 2]) if label else 1)
        return text + " " + "".join(kind * 9 for kind in kinds)

    made.texts = [punctuate(text, label) for text, label in zip(made.texts, made.labels, strict=True)]
    found = made.audit()
    assert max(each.auroc for each in found.features if each.family == "punctuation") < 0.7
    assert next(each for each in found.families if each.family == "punctuation").normalised > 0.9
    assert any("features of punctuation together give AUROC" in each.text for each in findings.of_shortcuts(found))


def test_a_source_that_gives_the_label_away_is_found() -> None:
    made = Made()
    made.slices["source"] = [("web", "api")[label] for label in made.labels]
    found = made.audit()
    assert feature(found, "source").auroc == 1.0
    assert feature(found, "domain").auroc < 0.6
    counts = [
        {"split": "train", "label": i, "source": s, "domain": "", "generator": "", "rows": 9}
        for i, s in enumerate(("web", "api"))
    ]
    assert [finding.text for finding in findings.of_provenance(found, counts)] == [
        "source alone gives AUROC 1.00, so the label can be read off where a text comes from: add sources that hold "
        "both classes",
        "2 of 2 sources hold one class only: web only human texts; api only AI texts. A detector may learn the source "
        "instead of the class",
    ]


def test_the_baseline_finds_words_of_one_class_and_scores_slices() -> None:
    made = Made(per_class=60)
    # The AI texts of one generator only, so that the other is missed.
    own = [generator == "m1" for generator in made.slices["generator"]]
    made.texts = [text.replace("the", "moreover") if mine else text for text, mine in zip(made.texts, own, strict=True)]
    found = made.audit()
    by_value = {each.value: each for each in found.slices}
    assert by_value["m1"].auroc is not None
    assert by_value["m1"].auroc > 0.85
    assert by_value["m2"].auroc is not None
    assert by_value["m2"].auroc < 0.65
    assert "" not in by_value
    assert (by_value["m1"].n_human, by_value["m1"].own_humans) == (0, False)
    assert by_value["news"].own_humans
    assert {each.column for each in found.slices} == {"generator", "domain", "source"}


def test_a_rate_that_so_few_human_texts_cannot_show_is_left_out() -> None:
    baseline = Made().audit().baseline
    assert baseline.n_human == 60
    assert baseline.tpr_at_fpr_1 is None
    assert baseline.tpr_at_fpr_5 is not None
    assert baseline.called_ai is not None
    assert baseline.called_ai <= 0.05


def test_human_texts_that_read_like_the_ai_ones_are_called_ai_more_often() -> None:
    made = Made(per_class=400)
    labels, domains = made.labels, made.slices["domain"]
    rng = random.Random(2)

    def odd(label: int, domain: str, split: str) -> bool:
        return bool(label) or (domain == "letters" and split != "train" and rng.random() < 0.06)

    made.texts = [
        f"{text} moreover" if odd(label, domain, split) else text
        for text, label, domain, split in zip(made.texts, labels, domains, made.slices["split"], strict=True)
    ]
    by_value = {each.value: each for each in made.audit().slices}
    assert by_value["news"].called_ai is not None
    assert by_value["letters"].called_ai is not None
    assert by_value["news"].called_ai < 0.04 < by_value["letters"].called_ai


def test_without_splits_the_baseline_is_judged_out_of_fold_by_group() -> None:
    made = Made()
    del made.slices["split"]
    # Each group has a word of its own for each class: in sample it tells everything, out of its group nothing.
    keys = [f"x{group}{label}" for group, label in zip(made.slices["group"], made.labels, strict=True)]
    made.texts = [f"{text} {key}" for text, key in zip(made.texts, keys, strict=True)]
    found = made.audit()
    assert found.baseline.n_human == 120
    assert found.baseline.auroc == pytest.approx(0.5, abs=0.12)
    assert feature(found, "words").held_out is None


@pytest.mark.parametrize("split", ["train", "test"])
def test_texts_of_one_class_are_refused(split: str) -> None:
    made = Made()
    is_split = [(name == "train") == (split == "train") for name in made.slices["split"]]
    made.labels = [0 if here else label for here, label in zip(is_split, made.labels, strict=True)]
    where = "to learn from" if split == "train" else "held out"
    with pytest.raises(CorpusError, match=f"audit: expected both classes in the texts {where}, found 120 human, 0 ai"):
        made.audit()


def test_an_audit_repeats_no_text() -> None:
    made = Made().ai(lambda text: f"{text} {SECRET}.")
    # As the first word of 19 texts it would be the most telling one; from 20 on a word is no longer anyone's own.
    made.texts[1:38:2] = [f"{SECRET} {text}" for text in made.texts[1:38:2]]
    found = made.audit()
    said = json.dumps(asdict(found)) + str(list(findings.all_findings(found, [], {}, 1)))
    assert SECRET not in said


def test_the_audit_loads_neither_ray_nor_torch() -> None:
    code = (
        "import sys, detect_ai.corpus.findings; from detect_ai.corpus.shortcuts import audit;"
        "audit(['a b. C', 'd e. F'] * 4, [0, 1] * 4, {});"
        "print({'ray', 'torch', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_same_texts_have_the_same_audit() -> None:
    assert Made().audit() == Made().audit()


def test_the_share_of_the_largest_group_is_that_of_its_split() -> None:
    made = Made()
    made.slices["group"] = [
        "one" if split == "test" else group
        for split, group in zip(made.slices["split"], made.slices["group"], strict=True)
    ]
    assert made.audit().largest_groups == {"train": (60, 1 / 60), "calibration": (30, 1 / 30), "test": (1, 1.0)}


def test_every_family_has_its_advice() -> None:
    families = {each.family for each in Made().audit().features} - {"provenance"}
    assert families == set(findings._ADVICE)
