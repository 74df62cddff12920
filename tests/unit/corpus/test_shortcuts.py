"""Shortcut audit: single features, baseline by slice, and warnings."""

import json
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.errors import CorpusError
from detect_ai.corpus import baseline, findings
from detect_ai.corpus.baseline import TfidfModel, word_counts
from detect_ai.corpus.shortcuts import FEATURES, Audit, SliceScore, audit_texts

SENTENCE = "the old bridge near a market where rain fell on quiet boats and bread was sold at dawn by one tall man"
WORDS = SENTENCE.split()
SECRET = "Zebulon"


def sentence_text(draw, words):
    drawn = [draw.choice(WORDS) for _ in range(words)]
    return " ".join(" ".join(drawn[i : i + 10]).capitalize() + "." for i in range(0, words, 10))


@pytest.fixture(autouse=True)
def _few_hashed_features(monkeypatch):
    monkeypatch.setattr(baseline, "HASHED_FEATURES", 2**12)  # the fit takes time in proportion


class Texts:
    """Labelled texts that nothing separates, half of them in the training split, two to a group."""

    def __init__(self, per_class=30):
        draw = random.Random(0)
        count = 8 * per_class
        self.labels = [i % 2 for i in range(count)]
        self.texts = [sentence_text(draw, draw.randint(20, 60)) for _ in self.labels]
        names = ("train", "train", "calibration", "test")
        self.slices = {
            "split": [names[i * 4 // count] for i in range(count)],
            "group": [f"g{i // 2}" for i in range(count)],
            "domain": [("news", "letters")[i // 2 % 2] for i in range(count)],
            "generator": ["" if label == 0 else ("m1", "m2")[i // 4 % 2] for i, label in enumerate(self.labels)],
            "source": ["mine"] * count,
        }

    def change_ai(self, change):
        self.texts = [change(text) if label else text for text, label in zip(self.texts, self.labels, strict=True)]
        return self

    def audit(self, weights=None) -> Audit:
        return audit_texts(self.texts, self.labels, self.slices, weights or [1.0] * len(self.labels))


def feature(audit, name):
    return next(each for each in audit.features if each.name == name)


def about(audit, subject):
    return [each.text for each in findings.corpus_findings(audit, [], {}, 1) if each.about == subject]


# Features

SEPARATED = {  # the text with the higher value first
    "words": ("a b c", "abc ab"),
    "mean word length": ("magnificent bridges", "a big old red bus"),
    "distinct words of the first 100": ("one two three four", "one one one two"),
    "words per sentence": ("One two three four five six.", "One two. Three four."),
    "commas": ("one, two", "one two"),
    "curly quotes": ("“yes”", '"yes"'),
    "non-ASCII characters": ("café", "cafe"),
    "Markdown": ("# One\n- **two**", "One\ntwo"),
    "line breaks": ("one\ntwo", "one two"),
    "capital letters": ("One Two", "one two"),
    "digits": ("in 1999", "in May"),
    "phrases of assistants": ("As an AI language model, I cannot assist. [Your Name]", "As a model railway, I run."),
}


@pytest.mark.parametrize("name", FEATURES)
def test_feature_measures_what_its_name_says(name):
    high, low = map(FEATURES[name][0], SEPARATED[name])
    assert high > low


@given(st.text())
def test_features_are_finite(text):
    assert np.isfinite([measure(text) for measure, _ in FEATURES.values()]).all()


# Audit


def test_equal_classes_have_no_shortcut():
    audit = Texts().audit()
    assert about(audit, "shortcut") == []
    assert audit.baseline.auroc == pytest.approx(0.5, abs=0.15)
    assert audit == Texts().audit()


def test_length_is_found():
    audit = Texts().change_ai(lambda text: f"{text} {text} {text}").audit()
    words = feature(audit, "words")
    assert words.higher_in == "ai"
    assert words.auroc > 0.9 < words.held_out
    assert any("corpus.balance=weight" in text for text in about(audit, "shortcut"))


def test_weights_can_balance_a_feature():
    texts = Texts()
    # Three of four AI texts are long, one of four human ones.
    is_long = [(i // 2 % 4 < 3) == bool(label) for i, label in enumerate(texts.labels)]
    texts.texts = [text * 4 if long else text for text, long in zip(texts.texts, is_long, strict=True)]
    weights = [1.0 if long == bool(label) else 3.0 for long, label in zip(is_long, texts.labels, strict=True)]
    assert feature(texts.audit(), "words").auroc > 0.7
    assert feature(texts.audit(weights), "words").auroc < 0.6


def test_feature_lower_in_ai_texts():
    commas = feature(Texts().change_ai(lambda text: text).audit(), "commas")
    assert commas.auroc == 0.5
    texts = Texts()
    texts.texts = [text.replace(" ", ", ") for text in texts.texts]
    found = feature(texts.change_ai(lambda text: text.replace(",", "")).audit(), "commas")
    assert (found.auroc, found.held_out, found.higher_in) == (1.0, 1.0, "human")


def test_typography_is_undone_by_the_normaliser():
    audit = Texts().change_ai(lambda text: text.replace("the", "“the”")).audit()
    curly = feature(audit, "curly quotes")
    assert curly.auroc > 0.75
    assert curly.normalised == pytest.approx(0.5)
    assert any(text.startswith("curly quotes") for text in about(audit, "note"))


def test_feature_that_reverses_outside_the_training_split():
    texts = Texts()
    longer = [bool(y) == (split == "train") for y, split in zip(texts.labels, texts.slices["split"], strict=True)]
    texts.texts = [text * 3 if long else text for text, long in zip(texts.texts, longer, strict=True)]
    words = feature(texts.audit(), "words")
    assert words.auroc > 0.95
    assert words.held_out < 0.05


def test_openings_are_found_out_of_fold():
    audit = Texts().change_ai(lambda text: f"Certainly, {text}").audit()
    assert feature(audit, "first word").auroc > 0.95 < feature(audit, "first word").held_out
    assert audit.openings[0] == {"word": "Certainly,", "human": 0, "ai": 60}
    texts = Texts()
    heads = [f"W{group}{label}" for group, label in zip(texts.slices["group"], texts.labels, strict=True)]
    texts.texts = [f"{head} {text}" for head, text in zip(heads, texts.texts, strict=True)]
    assert feature(texts.audit(), "first word").auroc == pytest.approx(0.5, abs=0.01)


def test_source_that_gives_the_label_away():
    texts = Texts()
    texts.slices["source"] = [("web", "api")[label] for label in texts.labels]
    audit = texts.audit()
    assert (feature(audit, "source").auroc, feature(audit, "source").normalised) == (1.0, None)
    assert feature(audit, "domain").auroc < 0.6


def test_baseline_by_slice():
    texts = Texts(per_class=60)
    own = [generator == "m1" for generator in texts.slices["generator"]]
    texts.texts = [text.replace("the", "moreover") if m1 else text for text, m1 in zip(texts.texts, own, strict=True)]
    audit = texts.audit()
    slices = {each.value: each for each in audit.slices}
    assert set(slices) == {"m1", "m2", "news", "letters", "mine"}
    assert slices["m1"].auroc > 0.85 > 0.65 > slices["m2"].auroc
    assert (slices["m1"].n_human, slices["m1"].own_humans, slices["news"].own_humans) == (0, False, True)
    assert audit.baseline.n_human == 120
    assert audit.baseline.called_ai <= 0.05


def test_rate_below_resolution_is_omitted():
    baseline = Texts().audit().baseline
    assert baseline.n_human == 60
    assert baseline.tpr_at_fpr_1 is None
    assert baseline.tpr_at_fpr_5 is not None


def test_largest_groups():
    texts = Texts()
    splits, groups = texts.slices["split"], texts.slices["group"]
    texts.slices["group"] = ["one" if s == "test" else g for s, g in zip(splits, groups, strict=True)]
    assert texts.audit().largest_groups == {"train": (60, 1 / 60), "calibration": (30, 1 / 30), "test": (1, 1.0)}


@pytest.mark.parametrize("training", [True, False])
def test_missing_class_is_refused(training):
    texts = Texts()
    is_train = [(name == "train") == training for name in texts.slices["split"]]
    texts.labels = [0 if here else label for here, label in zip(is_train, texts.labels, strict=True)]
    with pytest.raises(CorpusError, match="found 120 human, 0 AI"):
        texts.audit()


def test_audit_contains_no_text():
    texts = Texts().change_ai(lambda text: f"{text} {SECRET}.")
    texts.texts[1:38:2] = [f"{SECRET} {text}" for text in texts.texts[1:38:2]]  # the first word of 19 texts
    audit = texts.audit()
    assert SECRET not in json.dumps(asdict(audit)) + str(findings.corpus_findings(audit, [], {}, 1))


# Baseline


def test_baseline_scores_equal_scikit_learn():
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    texts, labels, weights = Texts().texts, np.asarray(Texts().labels), np.linspace(0.5, 2, 240)
    counts = HashingVectorizer(ngram_range=(1, 2), n_features=2**12, alternate_sign=False, norm=None).transform(texts)
    tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
    model = LogisticRegression(C=10.0, solver="liblinear", random_state=0)
    model.fit(tfidf.transform(counts), labels, sample_weight=weights)
    scores = TfidfModel.fit(word_counts(texts), labels, weights).score(word_counts([*texts, "", "zzz"]))
    expected = model.decision_function(tfidf.transform(counts))
    assert scores[:-2] == pytest.approx(expected, abs=1e-9)
    assert scores[-2] == pytest.approx(float(model.intercept_[0]))


# Warnings

CALM = SliceScore("domain", "news", 80, 80, True, 0.9, None, 0.5, 0.02)
QUIET = Audit(80, 80, [], replace(CALM, column="all"), [CALM], [], {"train": (40, 0.19)})
ENOUGH = {("calibration", 0, "", "web"): 99, ("test", 0, "", "web"): 99, ("test", 1, "", "web"): 99}


def warnings(audit=QUIET, counts=ENOUGH, dropped=None):
    rows = [
        {"split": split, "label": label, "source": source, "domain": "", "generator": generator, "rows": number}
        for (split, label, generator, source), number in counts.items()
    ]
    return [each.text for each in findings.corpus_findings(audit, rows, dropped or {}, 1000)]


def test_nothing_to_warn_about():
    assert warnings(dropped={"duplicate": 50, "held_out": 400, "over_limit": 400}) == []


@pytest.mark.parametrize(("humans", "needed"), [(18, ["99", "19"]), (19, ["99"]), (98, ["99"])])
def test_too_few_humans_to_calibrate(humans, needed):
    (text,) = warnings(counts={**ENOUGH, ("calibration", 0, "", "web"): humans})
    assert f"{humans} human texts" in text
    assert all(f"{number} to set" in text for number in needed)
    assert text.count(" to set") == len(needed)


def test_small_generators():
    generators = {"m1": 60, "m2": 100, "m3": 7}
    (text,) = warnings(counts=ENOUGH | {("train", 1, name, "web"): rows for name, rows in generators.items()})
    assert "2 of 3" in text
    assert "m3 (7), m1 (60)" in text


def test_sources_of_one_class():
    (text,) = warnings(counts={**ENOUGH, ("train", 1, "", "api"): 5})
    assert "1 of 2 sources" in text
    assert "api (AI)" in text


def test_large_groups_and_reasons():
    large, dropped = warnings(replace(QUIET, largest_groups={"test": (2, 0.54)}), dropped={"duplicate": 51})
    assert "54% of the test split" in large
    assert "51 of 1,000 rows (5%)" in dropped


def test_easy_corpus_and_slice_with_false_positives():
    audit = replace(
        QUIET, baseline=replace(CALM, auroc=0.985), slices=[CALM, replace(CALM, value="law", called_ai=0.31)]
    )
    easy, slices = warnings(audit)
    assert "0.985" in easy
    assert "31% on the 80 of domain 'law'" in slices
