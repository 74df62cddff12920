"""Cleaning of published texts."""

from __future__ import annotations

from detect_ai.corpus.prose import clean_prose, cut, plain_typography, windows, without_tags, without_title, without_xml

SENTENCES = [f"On day {day} they went to house {day} and it was there." for day in range(6)]
TEXT = " ".join(SENTENCES)


def test_typography_becomes_ascii() -> None:
    assert plain_typography("“It’s”\r\n\u00a0a—b–c --d…\u200b<br />e\n\n\n\nf") == '"It\'s"\na - b-c - d...\ne\n\nf'


def test_text_ends_at_a_sentence_end() -> None:
    assert cut("One two. Three four! Five six", 10) == "One two. Three four!"
    assert cut("One two. Three four! Five six.", 3) == "One two."
    assert cut("No end", 10) == ""


def test_title_is_removed() -> None:
    assert without_title("On Bridges\n\nThey are long.") == "They are long."
    assert without_title("They are long.\nThey are old.") == "They are long.\nThey are old."


def test_both_classes_are_cleaned_alike() -> None:
    assert clean_prose(f"A Title\n{TEXT} And an unfin", 0) == clean_prose(f"A Title\n{TEXT} And an unfin", 1) == TEXT


def test_markdown_is_removed_from_ai_texts() -> None:
    assert (
        clean_prose(f"Sure! Here is an essay:\n\n## Days\n\n**{SENTENCES[0]}** {TEXT}", 1) == f"{SENTENCES[0]} {TEXT}"
    )


def test_short_foreign_refused_and_repeated_texts_are_dropped() -> None:
    assert clean_prose(SENTENCES[0], 0) is None
    german = "Der Rat der Stadt hat gestern beschlossen, dass die alte Brücke nicht mehr gebaut wird. "
    assert clean_prose(german * 8, 0) is None
    assert clean_prose(f"I cannot write that. {TEXT}", 1) is None
    assert clean_prose("They went on and on and then they came back to the house. " * 10, 1) is None


def test_windows_are_spread_over_the_text() -> None:
    text = " ".join(f"On day {day} they went to house {day} and it was there." for day in range(60))
    parts = windows(text, 60, 60, 3)
    assert [text.find(part) for part in parts] == sorted(text.find(part) for part in parts)
    assert parts[0] == text[: len(parts[0])]
    assert text.find(parts[2]) > len(text) / 2
    assert all(len(part.split()) == 60 for part in parts)
    assert windows(text, 60, 60, 1) == parts[:1]
    assert windows("Too short.", 60, 60, 3) == []


def test_tagged_text_becomes_prose() -> None:
    tagged = "``/`` Is/bez there/ex any/dti word/nn (/( he/pps )/) and/or/cc did/dod n't/* ''/'' ?/. ?/. He/pps 's/bez"
    assert without_tags(tagged) == "\"Is there any word (he) and/or didn't\"? He's"


def test_xml_is_removed() -> None:
    assert without_xml("<p>a &lt; b</p> <br/>3 < 4") == "a < b 3 < 4"
