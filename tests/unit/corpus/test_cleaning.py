"""Cleaning: repair, boilerplate, bounds and language."""

import hashlib
import time

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from detect_ai.core.config import CorpusConfig
from detect_ai.corpus import cleaning
from detect_ai.corpus.cleaning import CLEAN_FIELDS, clean, normalised_text, repair, separate_sentences
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
    """Rows as the reader returns them."""
    columns = {"text": list(texts), "language": [language] * len(texts), "problem": [problem] * len(texts)}
    return pa.table(columns, pa.schema([(name, pa.string()) for name in columns]))


def cleaned(text, own="", **config):
    """The result of cleaning one text."""
    (row,) = clean(rows(text, language=own), CorpusConfig(**{"min_words": 1, **config})).to_pylist()
    return row


@pytest.mark.parametrize("encoding", ["windows-1252", "latin-1"])
@pytest.mark.parametrize(
    "text", ["It’s fine — so “good", "Bei Müller gibt’s schöne Äpfel", "a fine of £22 in café Noël"]
)
def test_wrongly_decoded_text_is_repaired(text, encoding):
    wrong = text.encode().decode(encoding)
    assert repair(wrong) == text
    assert repair(wrong + "\n" + "中文 stays") == text + "\n" + "中文 stays"


def test_style_is_not_repaired():
    style = "“Curly” quotes, it’s\nﬁne ligatures\nＦＵＬＬ width\nfish &amp; chips\n\x1b[31mred\né e\u0301\nSÃO «é»\n"
    assert repair(style + "Itâ€™s") == style + "It’s"


@given(st.text(st.characters(max_codepoint=127), max_size=60) | TEXTS)
def test_normalised_text_equals_normalise(text):
    assert normalised_text(text) == normalise(text).text


@given(st.lists(TEXTS, max_size=5), st.sampled_from(["", "en"]))
@example(["The  cat’s here", "the cat's\u200b HERE", "Straße am See"], "")
def test_rows_keep_their_order_and_get_the_fields(texts, language):
    table = clean(rows(*texts), CorpusConfig(language=language, min_words=2))
    assert table.column_names == ["text", "language", "problem", *(field.name for field in CLEAN_FIELDS)]
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


@pytest.mark.parametrize("problem", ["bad_row", "no_text", "no_label", "bad_encoding"])
def test_rows_with_a_problem_are_not_cleaned(problem):
    table = clean(rows(OPENER + FRENCH, "", problem=problem), CorpusConfig())
    assert table["problem"].to_pylist() == [problem, problem]
    assert table["normalised"].to_pylist() == ["", ""]
    assert table["language"].to_pylist() == ["", ""]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *((text, "empty") for text in ("", " \n", "\u200b\ufeff \t", "\0")),
        *(("word\n" * 4, "too_short"), ("word\n" * 5, "")),
        *(("w w w w " + "\u200b".join("x" * 92) + "  ", ""), ("w w w w " + "x" * 93, "too_long")),
    ],
)
def test_bounds_of_normalised_texts(text, problem, monkeypatch):
    monkeypatch.setattr(cleaning, "MAX_CHARS", 100)
    assert cleaned(text, min_words=5)["problem"] == problem


# Boilerplate

REFUSAL = "I'm sorry, but I can't assist with that request."


@pytest.mark.parametrize(
    ("text", "normalised", "problem"),
    [
        (OPENER + "The road is long.", "The road is long.", ""),
        (OPENER + "A road.", "A road.", "too_short"),
        ("Sure, hereâ€™s an essay on the roads:\n\nItâ€™s  a long   road.", "It's a long road.", ""),
        (REFUSAL, REFUSAL, "boilerplate"),
    ],
)
def test_boilerplate_is_cut_after_repair(text, normalised, problem):
    row = cleaned(text, min_words=4)
    assert (row["normalised"], row["problem"]) == (normalised, problem)


@pytest.mark.parametrize(
    ("glued", "separate"),
    [
        ("They left.The town slept?Nobody knows!So it goes.", "They left. The town slept? Nobody knows! So it goes."),
        ("summary:Students said so.", "summary: Students said so."),
        ("(the end).The start is well-known.As is the end", "(the end).The start is well-known. As is the end"),
        (OPENER.strip() + "The road.I hope this helps!", "The road."),
    ],
)
def test_glued_sentences_are_separated(glued, separate):
    assert cleaned(glued)["normalised"] == separate


@pytest.mark.parametrize(
    "text",
    [
        "See www.Example.com, https://a.org/some.Page or Some.Body@corp.com.",
        "A Ph.D. of Mr.Green, e.g.A or i.e.B, at 5.Two",
        "Call rng.Find(x) in some_file.Name or lib\\file.Txt",
        "They left. The town slept: nobody, so...",
    ],
)
def test_addresses_and_abbreviations_are_not_separated(text):
    assert separate_sentences(text) == text


def test_separating_takes_linear_time():
    started = time.perf_counter()
    separate_sentences("ab.Cd" * 40_000 + "x" * 200_000 + " ab.Cd" * 40_000)
    assert time.perf_counter() - started < 2


# Language

SHORT = " ".join(FRENCH.split()[:14])
GARBLED = "fosss o brokeotypediya new savoir drasedisors collasierthfuse napzte dniihcs " * 3


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
        (SHORT, "", "en", "", ""),
        (GARBLED, "", "en", "", ""),
    ],
)
def test_other_languages_are_dropped(text, own, wanted, language, problem):
    row = cleaned(text, own, language=wanted)
    assert (row["language"], row["problem"]) == (language, problem)


@pytest.mark.parametrize(
    ("own", "wanted", "max_chars"), [("en", "en", 1000), ("", "", 1000), ("fr", "en", 1000), ("", "en", 9)]
)
def test_language_model_is_used_only_when_needed(own, wanted, max_chars, monkeypatch):
    monkeypatch.setattr(cleaning, "MAX_CHARS", max_chars)
    monkeypatch.setattr(language_model, "detector", None)
    assert cleaned(ENGLISH, own, language=wanted)["language"] == own
