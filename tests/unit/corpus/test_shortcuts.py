"""Shortcut audit: single features and the TF-IDF baseline by slice."""

import json
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.corpus import baseline
from detect_ai.corpus.shortcuts import FEATURES, audit_texts

SENTENCE = "the old bridge near a market where rain fell on quiet boats and bread was sold at dawn by one tall man"
WORDS = SENTENCE.split()


@pytest.fixture(autouse=True)
def _few_hashed_features(monkeypatch):
    monkeypatch.setattr(baseline, "HASHED_FEATURES", 2**12)  # the time of the fit grows with it


def corpus(per_class=30):
    """Labelled texts that no feature separates, half of them in the training split."""
    draw, count = random.Random(0), 8 * per_class
    labels = np.arange(count) % 2
    texts = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(20, 60))).capitalize() + "." for _ in labels]
    return pd.DataFrame(
        {
            "text": texts,
            "label": labels,
            "weight": 1.0,
            "split": np.repeat(["train", "train", "calibration", "test"], count // 4),
            "domain": np.asarray(["news", "letters"])[np.arange(count) // 2 % 2],
            "generator": np.where(labels == 0, "", np.asarray(["m1", "m2"])[np.arange(count) // 4 % 2]),
            "source": "mine",
        }
    )


def change(rows, chosen, edit):
    return rows.assign(text=rows["text"].where(~chosen, rows["text"].map(edit)))


def feature(rows, name):
    return next(row for row in audit_texts(rows)["features"] if row["name"] == name)


SEPARATED = {  # pairs of texts: the first one has the higher value
    "words": ("a b c", "abc ab"),
    "non-ASCII characters": ("café", "cafe"),
    "Markdown": ("# One - **two**", "One - two"),
    "capital letters": ("One Two", "one two"),
    "digits": ("in 1999", "in May"),
    "final punctuation": ("They left.", "They left the"),
    "phrases of assistants": ("As an AI language model, I cannot assist. [Your Name]", "As a model railway, I run."),
}


@pytest.mark.parametrize("name", FEATURES)
def test_feature_measures_what_its_name_says(name):
    high, low = map(FEATURES[name][0], SEPARATED[name])
    assert high > low


@given(st.text())
def test_features_are_finite(text):
    assert np.isfinite([measure(text) for measure, _ in FEATURES.values()]).all()


def test_equal_classes_have_no_shortcut():
    result = audit_texts(corpus())
    assert max(row["auroc"] for row in result["features"]) < 0.7
    assert result["baseline"]["auroc"] == pytest.approx(0.5, abs=0.15)
    assert result == audit_texts(corpus()) == json.loads(json.dumps(result))


@pytest.mark.parametrize(("label", "higher_in"), [(1, "ai"), (0, "human")])
def test_length_is_found(label, higher_in):
    rows = corpus()
    words = feature(change(rows, rows["label"] == label, lambda text: f"{text} {text} {text}"), "words")
    assert words["higher_in"] == higher_in
    assert words["auroc"] > 0.9 < words["held_out"]


def test_weights_can_balance_a_feature():
    rows = corpus()
    # Three of four AI texts are long, one of four human ones.
    is_long = (rows.index // 2 % 4 < 3) == (rows["label"] == 1)
    rows = change(rows, is_long, lambda text: text * 4)
    assert feature(rows, "words")["auroc"] > 0.7
    weights = np.where(is_long == (rows["label"] == 1), 1.0, 3.0)
    assert feature(rows.assign(weight=weights), "words")["auroc"] < 0.6


def test_normalised_away_typography_is_no_shortcut():
    rows = corpus()
    rows = change(rows, rows["label"] == 1, lambda text: text.replace("the", "“the”\n"))
    assert feature(rows, "non-ASCII characters")["auroc"] == 0.5


def test_feature_that_reverses_outside_the_training_split():
    rows = corpus()
    is_long = (rows["label"] == 1) == (rows["split"] == "train")
    words = feature(change(rows, is_long, lambda text: f"{text} " * 3), "words")
    assert words["auroc"] > 0.95
    assert words["held_out"] < 0.05


def test_baseline_by_slice():
    rows = corpus(per_class=60)
    result = audit_texts(change(rows, rows["generator"] == "m1", lambda text: text.replace("the", "moreover")))
    slices = {row["value"]: row for row in result["slices"]}
    assert set(slices) == {"m1", "m2", "news", "letters", "mine"}
    assert slices["m1"]["auroc"] > 0.85 > 0.65 > slices["m2"]["auroc"]
    assert (slices["m1"]["n_human"], slices["news"]["n_human"]) == (120, 60)
    assert result["baseline"]["fpr"] <= 0.05


def test_small_slices_are_omitted():
    rows = corpus()
    few = rows.assign(domain=np.where(np.arange(len(rows)) % 60 == 1, "rare", "news"))
    assert "rare" not in {row["value"] for row in audit_texts(few)["slices"]}
