"""Cleaning: repair, boilerplate, bounds and language."""

import hashlib
import socket

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.config import CorpusConfig
from detect_ai.corpus import cleaning
from detect_ai.corpus.cleaning import CLEAN_FIELDS, clean, detect_language, normalised_text, repair
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
    """Result of cleaning one text."""
    (row,) = clean(rows(text, language=own), CorpusConfig(**{"min_words": 1, **config})).to_pylist()
    return row


# Repair


@pytest.mark.parametrize("encoding", ["windows-1252", "latin-1"])
@pytest.mark.parametrize(
    "text", ["It’s fine — so “good", "Bei Müller gibt’s schöne Äpfel", "a fine of £22 in café Noël"]
)
def test_wrongly_decoded_text_is_repaired(text, encoding):
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
def test_style_is_not_repaired(text):
    assert repair(text + "\nItâ€™s") == text + "\nIt’s"


def test_repair_precedes_boilerplate():
    row = cleaned("Sure, hereâ€™s an essay on the roads:\n\nItâ€™s  a long   road.")
    assert (row["normalised"], row["problem"]) == ("It's a long road.", "")


# Normalising


@given(st.text(st.characters(max_codepoint=127), max_size=60) | TEXTS)
def test_normalised_text_equals_normalise(text):
    assert normalised_text(text) == normalise(text).text


@given(st.lists(TEXTS, max_size=5), st.sampled_from(["", "en"]))
def test_rows_keep_their_order_and_get_the_fields(texts, language):
    table = clean(rows(*texts), CorpusConfig(language=language, min_words=2))
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


def test_empty_table():
    table = clean(rows(), CorpusConfig())
    assert (len(table), [table.schema.field(field.name) for field in CLEAN_FIELDS]) == (0, CLEAN_FIELDS)


def test_digest_ignores_case_and_invisible_characters():
    texts = ["The  cat’s here", "the cat's\u200b HERE", "The cat's there", "Straße am See", "STRASSE am See"]
    digests = clean(rows(*texts), CorpusConfig())["digest"].to_pylist()
    assert digests[0] == digests[1]
    assert digests[3] == digests[4]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("problem", ["bad_row", "no_text", "no_label", "bad_encoding"])
def test_rows_with_a_problem_are_not_cleaned(problem):
    table = clean(rows(OPENER + FRENCH, "", problem=problem), CorpusConfig())
    assert table["problem"].to_pylist() == [problem, problem]
    assert table["normalised"].to_pylist() == ["", ""]
    assert table["language"].to_pylist() == ["", ""]


# Bounds


@pytest.mark.parametrize("text", ["", " \n", "\u200b\ufeff \t", "\0"])
def test_invisible_text_is_empty(text):
    assert cleaned(text)["problem"] == "empty"


@pytest.mark.parametrize(("words", "problem"), [(4, "too_short"), (5, ""), (6, "")])
def test_min_words(words, problem):
    row = cleaned("word\n" * words, min_words=5)
    assert (row["problem"], row["num_words"]) == (problem, words)


@pytest.mark.parametrize(("chars", "problem"), [(99, ""), (100, ""), (101, "too_long")])
def test_max_chars_counts_normalised_characters(chars, problem, monkeypatch):
    monkeypatch.setattr(cleaning, "MAX_CHARS", 100)
    assert cleaned("\u200b".join("x" * chars) + "  ")["problem"] == problem


def test_min_words_excludes_the_opener():
    assert cleaned(OPENER + "A long road.", min_words=5)["problem"] == "too_short"


# Boilerplate


def test_boilerplate_is_removed():
    row = cleaned(OPENER + "The road is long.")
    assert (row["normalised"], row["problem"]) == ("The road is long.", "")


def test_refusal_is_dropped():
    row = cleaned("I’m sorry, but I can’t assist with that request.")
    assert (row["normalised"], row["problem"]) == ("I'm sorry, but I can't assist with that request.", "boilerplate")


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
        (FRENCH, "", "", "", ""),
        (ENGLISH, "de", "", "de", ""),
    ],
)
def test_other_languages_are_dropped(text, own, wanted, language, problem):
    row = cleaned(text, own, language=wanted)
    assert (row["language"], row["problem"]) == (language, problem)


GARBLED = "fosss o brokeotypediya new savoir drasedisors collasierthfuse napzte dniihcs " * 3


@pytest.mark.parametrize("text", [" ".join(FRENCH.split()[:14]), GARBLED])
def test_short_or_unsure_texts_stay(text):
    row = cleaned(text, language="en")
    assert (row["language"], row["problem"]) == ("", "")


@pytest.mark.parametrize(
    ("own", "wanted", "max_chars"), [("en", "en", 1000), ("", "", 1000), ("fr", "en", 1000), ("", "en", 9)]
)
def test_language_model_is_used_only_when_needed(own, wanted, max_chars, monkeypatch):
    monkeypatch.setattr(cleaning, "MAX_CHARS", max_chars)
    monkeypatch.setattr(language_model, "detector", None)
    assert cleaned(ENGLISH, own, language=wanted)["language"] == own


def test_language_model_needs_no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    language_model.detector.cache_clear()
    assert detect_language(normalise(FRENCH).text, "en") == "fr"
