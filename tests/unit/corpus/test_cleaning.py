import hashlib
import socket

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.config import CorpusConfig
from detect_ai.corpus.cleaning import CLEAN_FIELDS, clean, detect_language, exact, normalised_text, repair
from detect_ai.corpus.dedup import signatures
from detect_ai.text import language as language_model
from detect_ai.text.normalize import normalise

ENGLISH = (
    "The committee met on Tuesday to talk about the roads in the north of the town, which have been closed since the "
    "storm in March, and about who is going to pay for the work that has to be done before the winter."
)
FRENCH = (
    "Le comité s'est réuni mardi pour parler des routes au nord de la ville, qui sont fermées depuis la tempête du "
    "mois de mars, et pour savoir qui va payer les travaux qui doivent être faits avant l'hiver."
)
OPENER = "Sure, here is an essay on the roads:\n\n"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def rows(*texts, language="", problem=""):
    """Rows as reading leaves them, with a column of their own to see that others are carried along."""
    count = len(texts)
    columns = {
        "id": [f"id-{number}" for number in range(count)],
        "text": list(texts),
        "language": [language] * count,
        "problem": [problem] * count,
    }
    return pa.table(columns, pa.schema([(name, pa.string()) for name in columns]))


def cleaned(text, own="", **config):
    """What became of one text."""
    (row,) = clean(rows(text, language=own), CorpusConfig(**{"min_words": 1, **config})).to_pylist()
    return row


# Repair


@pytest.mark.parametrize("encoding", ["windows-1252", "latin-1"])
@pytest.mark.parametrize(
    "text", ["It’s fine — so “good", "Bei Müller gibt’s schöne Äpfel", "a fine of £22 in café Noël"]
)
def test_text_that_was_decoded_wrongly_is_repaired(text, encoding):
    wrong = text.encode().decode(encoding)
    assert repair(wrong) == text
    assert repair(wrong + "\n" + "中文 stays") == text + "\n" + "中文 stays"


@pytest.mark.parametrize(
    "text",
    [
        "“Curly” quotes, it’s style",
        "ﬁne ligatures",
        "ＦＵＬＬ width",
        "fish &amp; chips",
        "\x1b[31mred",
        "é e\u0301",
        "SÃO «é»",
    ],
)
def test_what_is_style_or_the_normalisers_business_is_not_repaired(text):
    assert repair(text + "\nItâ€™s") == text + "\nIt’s"


def test_repair_comes_before_boilerplate_and_both_before_the_normaliser():
    row = cleaned("Sure, hereâ€™s an essay on the roads:\n\nItâ€™s  a long   road.")
    assert (row["normalised"], row["problem"]) == ("It's a long road.", "")


def test_repair_can_be_switched_off():
    assert "â" in cleaned("Itâ€™s a long road.", repair=False)["normalised"]


# Normalising


@given(st.text(st.characters(max_codepoint=127), max_size=60) | TEXTS)
def test_the_short_way_to_the_normalised_text_gives_the_same(text):
    assert normalised_text(text) == normalise(text).text


@given(st.lists(TEXTS, max_size=5), st.sampled_from(["keep", "remove", "drop"]), st.sampled_from(["", "en"]))
def test_every_row_comes_out_in_its_place_with_what_the_contract_says(texts, boilerplate, language):
    table = clean(rows(*texts), CorpusConfig(boilerplate=boilerplate, language=language, min_words=2))
    assert table.column_names == ["id", "text", "language", "problem", *(field.name for field in CLEAN_FIELDS)]
    assert [table.schema.field(field.name) for field in CLEAN_FIELDS] == CLEAN_FIELDS
    assert table["text"].to_pylist() == texts
    for row in table.to_pylist():
        assert row["problem"] in {"", "empty", "too_short", "boilerplate", "language"}
        assert row["num_words"] == len(row["normalised"].split())
        assert row["normalised"] == normalise(row["normalised"]).text
        digest = hashlib.sha256(row["normalised"].casefold().encode()).digest()
        assert row["digest"] == int.from_bytes(digest[:8], "big")
        sketched = row["normalised"] if not row["problem"] else ""
        assert row["signature"] == signatures([sketched])[0].tolist()


def test_no_rows_come_out_of_none():
    table = clean(rows(), CorpusConfig())
    assert (len(table), [table.schema.field(field.name) for field in CLEAN_FIELDS]) == (0, CLEAN_FIELDS)


def test_texts_that_differ_in_what_nobody_sees_or_in_case_have_one_digest():
    texts = ["The  cat’s here", "the cat's\u200b HERE", "The cat's there", "Straße am See", "STRASSE am See"]
    digests = clean(rows(*texts), CorpusConfig())["digest"].to_pylist()
    assert digests[0] == digests[1]
    assert digests[3] == digests[4]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("problem", ["bad_row", "no_text", "no_label", "bad_encoding"])
def test_a_row_that_was_read_with_a_problem_keeps_it_and_is_not_cleaned(problem):
    table = clean(rows(OPENER + FRENCH, "", problem=problem), CorpusConfig())
    assert table["problem"].to_pylist() == [problem, problem]
    assert table["normalised"].to_pylist() == ["", ""]
    assert table["language"].to_pylist() == ["", ""]


# Bounds


@pytest.mark.parametrize("text", ["", " \n", "\u200b\ufeff \t", "\0"])
def test_a_text_of_which_nothing_is_left_is_empty(text):
    assert cleaned(text)["problem"] == "empty"


@pytest.mark.parametrize(("words", "problem"), [(4, "too_short"), (5, ""), (6, "")])
def test_a_text_needs_the_least_number_of_words(words, problem):
    row = cleaned("word\n" * words, min_words=5)
    assert (row["problem"], row["num_words"]) == (problem, words)


@pytest.mark.parametrize(("chars", "problem"), [(99, ""), (100, ""), (101, "too_long")])
def test_characters_are_counted_after_normalising(chars, problem):
    assert cleaned("\u200b".join("x" * chars) + "  ", max_chars=100)["problem"] == problem


def test_words_of_an_opener_do_not_count():
    assert cleaned(OPENER + "A long road.", min_words=5)["problem"] == "too_short"


# Boilerplate


@pytest.mark.parametrize(
    ("boilerplate", "normalised", "problem"),
    [
        ("keep", "Sure, here is an essay on the roads: The road is long.", ""),
        ("remove", "The road is long.", ""),
        ("drop", "Sure, here is an essay on the roads: The road is long.", "boilerplate"),
    ],
)
def test_boilerplate_is_kept_removed_or_its_row_dropped(boilerplate, normalised, problem):
    row = cleaned(OPENER + "The road is long.", boilerplate=boilerplate)
    assert (row["normalised"], row["problem"]) == (normalised, problem)


@pytest.mark.parametrize(("boilerplate", "problem"), [("keep", ""), ("remove", "boilerplate"), ("drop", "boilerplate")])
def test_a_refusal_is_no_text(boilerplate, problem):
    row = cleaned("I’m sorry, but I can’t assist with that request.", boilerplate=boilerplate)
    assert (row["normalised"], row["problem"]) == ("I'm sorry, but I can't assist with that request.", problem)


# Language


@pytest.mark.parametrize(
    ("text", "own", "wanted", "language", "problem"),
    [
        (ENGLISH, "", "en", "en", ""),
        (FRENCH, "", "en", "fr", "language"),
        (FRENCH, "", "fr", "fr", ""),
        (ENGLISH.upper(), "", "en", "en", ""),
        (" ".join([ENGLISH] * 3 + [FRENCH] * 9), "", "en", "fr", "language"),
        (FRENCH, "en", "en", "en", ""),
        (ENGLISH, "fr", "en", "fr", "language"),
        (ENGLISH, "EN_us", "en", "EN_us", ""),
        (ENGLISH, "", "en-GB", "en", ""),
        (FRENCH, "", "", "", ""),
        (ENGLISH, "de", "", "de", ""),
    ],
)
def test_a_text_in_another_language_falls_and_the_rows_own_word_counts(text, own, wanted, language, problem):
    row = cleaned(text, own, language=wanted)
    assert (row["language"], row["problem"]) == (language, problem)


GARBLED = "fosss o brokeotypediya new savoir drasedisors collasierthfuse napzte dniihcs " * 3


@pytest.mark.parametrize("text", [" ".join(FRENCH.split()[:14]), GARBLED])
def test_a_short_text_or_an_unsure_answer_has_the_benefit_of_the_doubt(text):
    row = cleaned(text, language="en")
    assert (row["language"], row["problem"]) == ("", "")


@pytest.mark.parametrize(
    ("own", "wanted", "max_chars"), [("en", "en", 1000), ("", "", 1000), ("fr", "en", 1000), ("", "en", 9)]
)
def test_the_language_model_is_not_asked_without_need(own, wanted, max_chars, monkeypatch):
    monkeypatch.setattr(language_model, "detector", None)
    assert cleaned(ENGLISH, own, language=wanted, max_chars=max_chars)["language"] == own


def test_the_language_model_needs_no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    language_model.detector.cache_clear()
    assert detect_language(normalise(FRENCH).text, "en") == "fr"


# Exact duplicates

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=30)


def exact_of(found, keys):
    digests, labels = np.array([d for d, _ in found], np.uint64), np.array([label for _, label in found], np.int8)
    return exact(digests, labels, keys)


@given(ROWS, st.randoms(use_true_random=False), st.sampled_from(["numbers", "names"]))
def test_exact_duplicates_are_those_of_a_plain_search(found, random, kind):
    numbers = list(range(len(found)))
    random.shuffle(numbers)
    keys = np.array(numbers, np.uint64) if kind == "numbers" else np.array([f"id-{n:02d}" for n in numbers], str)
    result = exact_of(found, keys)
    for i, (digest, label) in enumerate(found):
        same = sorted((j for j, other in enumerate(found) if other == (digest, label)), key=lambda j: numbers[j])
        others = sorted((j for j, other in enumerate(found) if other == (digest, 1 - label)), key=lambda j: numbers[j])
        assert result.both_labels[i] == bool(others)
        assert result.duplicate[i] == (not others and same[0] != i)
        assert result.twin[i] == (others[0] if others else -1 if same[0] == i else same[0])


@given(ROWS, st.randoms(use_true_random=False))
def test_which_rows_stay_does_not_hang_on_their_order(found, random):
    order = list(range(len(found)))
    random.shuffle(order)
    first = exact_of(found, np.arange(len(found), dtype=np.uint64))
    second = exact_of([found[i] for i in order], np.array(order, np.uint64))
    assert first.both_labels[order].tolist() == second.both_labels.tolist()
    assert first.duplicate[order].tolist() == second.duplicate.tolist()
    assert first.twin[order].tolist() == [order[twin] if twin >= 0 else -1 for twin in second.twin.tolist()]
