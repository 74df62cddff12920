"""What the audit measures of a text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.corpus.features import FEATURES, categories, measure

# Texts that a feature tells apart: the higher one first.
TOLD_APART = {
    "characters": ("one two three", "one two"),
    "words": ("a b c", "abc ab"),
    "sentences": ("One. Two. Three.", "One two three."),
    "mean word length": ("magnificent bridges", "a big old red bus"),
    "distinct words of first 100": ("one two three four", "one one one two"),
    "words in a sentence": ("One two three four five six.", "One two. Three four."),
    "spread of sentence lengths": ("One. One two three four five six.", "One two three. One two three."),
    "longest sentence": ("One. One two three four.", "One two three. One two three."),
    "commas": ("one, two", "one two"),
    "full stops": ("one. two.", "one two."),
    "question marks": ("why?", "why!"),
    "exclamation marks": ("why!", "why?"),
    "semicolons": ("one; two", "one: two"),
    "colons": ("one: two", "one; two"),
    "apostrophes": ("it’s ours", "it is ours"),
    "double quotes": ("“yes” he said", "yes he said"),
    "hyphens": ("well-known", "well known"),
    "brackets": ("one (two)", "one two"),
    "curly quotes": ("“yes”", '"yes"'),
    "long dashes": ("one — two", "one - two"),
    "ellipsis characters": ("one…", "one..."),
    "dots in a row": ("one...", "one. Two. T."),
    "characters beyond ASCII": ("café", "cafe"),
    "double spaces": ("one  two", "one two"),
    "Markdown": ("# One\n- **two**", "One\ntwo"),
    "line breaks": ("one\ntwo", "one two"),
    "paragraphs": ("one\n\ntwo\n \nthree", "one\ntwo\nthree"),
    "capitals among letters": ("One Two", "one two"),
    "lower-case sentence starts": ("one? (two)", "One? Two"),
    "words in capitals": ("ONE two", "One Two I"),
    "digits": ("in 1999", "in May"),
    "phrases of assistants": ("As an AI language model, I cannot assist. [Your Name]", "As a model railway, I run."),
}


def column(texts: list[str], name: str) -> list[float]:
    return measure(texts)[:, [each.name for each in FEATURES].index(name)].tolist()


@given(st.lists(st.text(), max_size=3))
def test_every_feature_of_any_text_is_a_finite_number(texts: list[str]) -> None:
    found = measure(texts)
    assert found.shape == (len(texts), len(FEATURES))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", [each.name for each in FEATURES])
def test_a_feature_measures_what_its_name_says(name: str) -> None:
    high, low = column(list(TOLD_APART[name]), name)
    assert high > low


@pytest.mark.parametrize("family", ["punctuation", "typography", "digits"])
def test_rates_do_not_grow_with_length(family: str) -> None:
    text = "One — “two”, (3) is café-like… “why”? It's so; see: no!  "
    for each in FEATURES:
        if each.family == family:
            once, often = column([text, text * 5], each.name)
            assert often == pytest.approx(once)


def test_categories_are_the_first_words_and_the_last_character() -> None:
    found = categories(["  As an AI model.\n", "x", " "])
    assert found["first word"] == ["As", "x", "\0"]
    assert found["first two words"] == ["As an", "x", "\0"]
    assert found["last character"] == [".", "x", "\0"]
