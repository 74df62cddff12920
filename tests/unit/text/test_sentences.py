"""Parts of a text: sentences and windows."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.core.errors import InputError
from detect_ai.text.normalize import normalise, sentences, windows
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
def test_sentences_are_cut_after_stops_and_not_after_abbreviations(parts):
    separator = "" if parts and parts[0].endswith("。") else " "
    assert cut(separator.join(parts)) == parts


@settings(deadline=None)
@given(st.text(st.sampled_from("aAI .!?\"')(]。1é\n")) | any_text.map(lambda text: normalise(text).text))
def test_sentences_hold_every_visible_character_once_and_in_order(text):
    spans = sentences(text)
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert all(text[start:end] == text[start:end].strip() for start, end in spans)
    assert "".join("".join(part.split()) for part in cut(text)) == "".join(text.split())


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(1, 60), st.data())
def test_windows_cover_all_tokens_in_order_and_end_with_them(num_tokens, window, data):
    stride = data.draw(st.integers(1, window))
    spans = windows(num_tokens, window, stride)
    assert spans[0][0] == 0
    assert spans[-1][1] == num_tokens
    assert all(end - start == min(window, num_tokens) for start, end in spans)
    steps = [after[0] - before[0] for before, after in pairwise(spans)]
    assert all(step == stride for step in steps[:-1])
    assert all(0 < step <= stride for step in steps[-1:])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 4, 2), [(0, 0)]),
        ((3, 4, 2), [(0, 3)]),
        ((4, 4, 2), [(0, 4)]),
        ((8, 4, 2), [(0, 4), (2, 6), (4, 8)]),
        ((9, 4, 4), [(0, 4), (4, 8), (5, 9)]),
    ],
)
def test_windows_of(arguments, expected):
    assert windows(*arguments) == expected


@pytest.mark.parametrize(("window", "stride"), [(0, 1), (4, 0), (4, 5), (-1, -1)])
def test_windows_names_what_was_given(window, stride):
    with pytest.raises(InputError) as error:
        windows(10, window, stride)
    assert str(error.value) == f"need window >= 1 and 1 <= stride <= window, got window={window}, stride={stride}"
