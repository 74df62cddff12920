import re
import sys
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.errors import InputError
from detect_ai.text.attacks import ATTACKS
from detect_ai.text.normalize import normalise
from detect_ai.text.wordlists import misspellings, spellings, synonyms

TEXT = (
    "The council met on Tuesday to vote on a new bridge. It will cost 1200 pounds and take 18 months. "
    "An engineer said the work is hard. People who live near it want buses from its centre, "
    "and the mayor agreed to run 15 of them."
)
UNDONE = ("homoglyph", "insert_paragraphs", "whitespace", "zero_width_space")


def attacked(name, text=TEXT, seed=0):
    return ATTACKS[name](text, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_a_function_of_the_seed(name):
    assert attacked(name) != TEXT
    assert attacked(name) == attacked(name)


@pytest.mark.parametrize("name", ATTACKS)
@given(text=st.text(max_size=200))
def test_attack_accepts_any_text(name, text):
    assert isinstance(attacked(name, text), str)


@pytest.mark.parametrize("name", UNDONE)
def test_normaliser_reverts_invisible_attacks(name):
    assert normalise(attacked(name)).text == TEXT


def test_only_articles_are_deleted():
    before, after = TEXT.split(), attacked("article_deletion").split()
    assert 0 < len(before) - len(after) <= 5
    kept, left = ([w for w in words if w.lower() not in ("the", "a", "an")] for words in (before, after))
    assert kept == left


def test_numbers_keep_their_length():
    new = attacked("number_swap", "1200 and 18 and 15 and 7 and 99 and 1000 and 365")
    assert [len(word) for word in new.split()] == [4, 3, 2, 3, 2, 3, 1, 3, 2, 3, 4, 3, 3]


def test_case_of_few_first_letters_is_swapped():
    new = attacked("upper_lower", "word " * 1000)
    assert 20 <= new.count("Word") <= 90
    assert new.lower() == "word " * 1000


def test_spelling_is_swapped_with_its_case():
    british = "The colour of the centre: Organisation, DEFENCE, theatre-grey; it's the neighbour's."
    american = "The color of the center: Organization, DEFENSE, theatre-gray; it's the neighbor's."
    assert attacked("alternative_spelling", british) == american
    assert attacked("alternative_spelling", american) == british


def test_american_form_that_is_also_british_stays():
    words = "story practice license meter program focused"
    assert attacked("alternative_spelling", words) == words


def test_a_fifth_of_the_words_is_misspelt():
    new = attacked("misspelling", "government newt " * 1000).split()
    wrong = [word for word in new if word not in ("government", "newt")]
    assert 150 < len(wrong) < 250
    assert set(wrong) == set(misspellings()["government"])
    assert new[1::2] == ["newt"] * 1000


def test_misspelling_keeps_case_and_contractions():
    for word in attacked("misspelling", "Government " * 100).split():
        assert word.istitle()
    assert attacked("misspelling", "can't won't " * 100) == "can't won't " * 100
    assert attacked("alternative_spelling", "Côtes-d'armor") == "Côtes-d'armor"


def test_codespell_is_not_imported():
    assert misspellings.__wrapped__()
    assert "codespell_lib" not in sys.modules


@pytest.mark.parametrize("name", ["alternative_spelling", "misspelling"])
def test_missing_codespell_is_an_input_error(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    monkeypatch.setattr("detect_ai.text.attacks.spellings", spellings.__wrapped__)
    monkeypatch.setattr("detect_ai.text.attacks.misspellings", misspellings.__wrapped__)
    with pytest.raises(InputError, match="codespell"):
        attacked(name)


def test_half_of_the_words_get_a_synonym():
    new = attacked("synonym", "quickly zebra " * 1000).split()
    swapped = [word for word in new if word not in ("quickly", "zebra")]
    assert 430 < len(swapped) < 570
    assert set(swapped) == set(synonyms()["quickly"]) == {"rapidly", "swiftly"}


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("an important word", {"a significant word", "a crucial word"}),
        ("A gigantic word", {"A colossal word"}),
        ("A VAST WORD", {"AN EXTENSIVE WORD"}),
        ("A valid, a vast", {"A valid, an extensive"}),
        ("an  additional word", {"an  extra word"}),
        ("a distinctive word", {"a unique word"}),
        ("Quickly! Hugely", {"Rapidly! Hugely", "Swiftly! Hugely"}),
        ("vitamin A helps", {"vitamin A assists"}),
        ("of Group A aided", {"of Group A helped", "of Group A assisted"}),
        ("the employee's hat", {"the worker's hat"}),
        ("long-big big-scale in the Big Apple, big'un, BiG bigBig, the United States", set()),  # compounds and names
    ],
)
def test_synonym_keeps_case_and_adapts_the_article(text, others):
    assert {attacked("synonym", text, seed) for seed in range(30)} == {text, *others}


def test_synonym_groups_are_disjoint_lower_case_words():
    lines = files("detect_ai.text").joinpath("synonyms.txt").read_text("utf-8").splitlines()
    groups = [line.split(" ") for line in lines if not line.startswith("#")]
    assert len(groups) >= 450
    assert "Apache-2.0" in "".join(line for line in lines if line.startswith("#"))
    assert [group for group in groups if not 2 <= len(group) <= 5] == []
    words = [word for group in groups for word in group]
    assert [word for word in words if not re.fullmatch("[a-z]+", word)] == []
    assert sorted(set(words)) == sorted(words)
