import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.attacks import ATTACKS
from detect_ai.text import normalise

TEXT = (
    "The council met on Tuesday to vote on a new bridge. It will cost 1200 pounds and take 18 months. "
    "An engineer said the work is hard. People who live near it want buses, and the mayor agreed to run 15 of them."
)
UNDONE = ("homoglyph", "insert_paragraphs", "whitespace", "zero_width_space")


def attacked(name, text=TEXT, seed=0):
    return ATTACKS[name](text, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_the_text_and_the_same_seed_in_the_same_way(name):
    assert attacked(name) != TEXT
    assert attacked(name) == attacked(name)


@pytest.mark.parametrize("name", ATTACKS)
@given(text=st.text(max_size=200))
def test_an_attack_takes_any_text(name, text):
    assert isinstance(attacked(name, text), str)


@pytest.mark.parametrize("name", UNDONE)
def test_the_normaliser_undoes_what_a_reader_does_not_see(name):
    assert normalise(attacked(name)).text == TEXT


def test_articles_go_and_nothing_else():
    left = attacked("article_deletion").split()
    assert 0 < len(TEXT.split()) - len(left) <= 5
    assert [w for w in TEXT.split() if w.lower() not in ("the", "a", "an")] == [
        w for w in left if w.lower() not in ("the", "a", "an")
    ]


def test_numbers_keep_their_length():
    new = attacked("number_swap", "1200 and 18 and 15 and 7 and 99 and 1000 and 365")
    assert [len(word) for word in new.split()] == [4, 3, 2, 3, 2, 3, 1, 3, 2, 3, 4, 3, 3]


def test_case_is_swapped_at_the_first_letter_of_few_words():
    new = attacked("upper_lower", "word " * 1000)
    assert 20 <= new.count("Word") <= 90
    assert new.lower() == "word " * 1000
