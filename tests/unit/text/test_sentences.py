from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.text.normalize import normalise
from detect_ai.text.sentences import sentences
from tests.unit.conftest import any_text


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


@pytest.mark.parametrize(
    "parts",
    [
        ["One.", "Two!", "Three?!", "Four..."],
        ['"Go!"', '"Why?"', "(He went.)", "So did I.", "Then we slept."],
        ["Dr. Jones met Mrs. Smith vs. Prof. Li et al. Yesterday."],
        ["J. R. R. Tolkien wrote it (cf. C. Lewis).", "See e.g. Gandalf, i.e. Olorin."],
        ["He left the U.S. Army in May.", "It hurt."],
        ["See No. 5, Fig. 2, pp. 7-9 and Jan. 3.", "I said no.", "The end."],
        ["Wait... what? no, 3.14 is e.g. pi and example.com is a site."],
        ["Cars, etc.", "42 of them.", "éclairs!", "Übermut."][:2],
        ["Это конец.", "Это начало!", "А. П. Чехов жил."],
        ["人人平等。", "他们有理性。", "b"],
        ["word " * 3000 + "word"],
        [],
    ],
)
def test_sentences_end_at_stops_but_not_abbreviations(parts):
    separator = "" if parts and parts[0].endswith("。") else " "
    assert cut(separator.join(parts)) == parts


@settings(deadline=None)
@given(st.text(st.sampled_from("aAI .!?\"')(]。1é\n")) | any_text.map(lambda text: normalise(text).text))
def test_sentences_contain_every_visible_character_once(text):
    spans = sentences(text)
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)
    assert "".join("".join(part.split()) for part in cut(text)) == "".join(text.split())
