"""Language identification; texts in no language, and English prose of all kinds, are in `test_content`."""

from __future__ import annotations

import pytest

from detect_ai.text import language
from detect_ai.text.language import Languages, detect_language, language_fractions
from detect_ai.text.normalize import normalise

ENGLISH = (
    "The committee met on Tuesday to talk about the roads in the north of the town, which have been closed since the "
    "storm in March, and about who is going to pay for the work that has to be done before the winter. "
)
GERMAN = (
    "Der Ausschuss traf sich am Dienstag, um über die Straßen im Norden der Stadt zu sprechen, die seit dem Sturm im "
    "März gesperrt sind, und darüber, wer die Arbeit bezahlt, die vor dem Winter getan werden muss. "
)
OTHER = {
    "fr": "Le comité s'est réuni mardi pour parler des routes au nord de la ville, qui sont fermées depuis la tempête "
    "du mois de mars, et pour savoir qui va payer les travaux qui doivent être faits avant l'hiver.",
    "de": GERMAN,
    "ru": "Комитет собрался во вторник, чтобы поговорить о дорогах на севере города, которые закрыты после мартовской "
    "бури, и о том, кто заплатит за работы, которые надо закончить до наступления зимы.",
    "zh": "委员会星期二开会讨论城市北部的道路问题,这些道路自三月的暴风雨以来一直关闭,"
    "并讨论谁来支付冬天之前必须完成的工程费用。",
    "la": "Gallia est omnis divisa in partes tres, quarum unam incolunt Belgae, aliam Aquitani, tertiam qui ipsorum "
    "lingua Celtae, nostra Galli appellantur. Hi omnes lingua, institutis, legibus inter se differunt.",
}


def fractions(text: str, wanted: str = "en") -> Languages:
    return language_fractions(normalise(text).text, wanted)


@pytest.mark.parametrize("code", OTHER)
def test_other_language_is_named(code: str) -> None:
    assert fractions(OTHER[code]) == (0, {code: 1}, 0)
    assert detect_language(OTHER[code], "en-GB") == code
    assert fractions(OTHER[code], code) == (1, {}, 0)
    assert fractions(ENGLISH, code) == (0, {"en": 1}, 0)


def test_fractions_are_measured_over_the_whole_text() -> None:
    for before, english, after in [(0, 30, 10), (10, 30, 0), (5, 30, 5)]:
        languages = fractions(GERMAN * before + ENGLISH * english + GERMAN * after)
        assert languages.other["de"] == pytest.approx(0.25, abs=0.05)
        assert languages.wanted == pytest.approx(0.75, abs=0.05)
        assert languages.none == 0


@pytest.mark.parametrize("text", ["", "x", "1 2 3 " * 4])
def test_few_words_are_no_evidence(text: str) -> None:
    assert fractions(text) == (0, {}, 0)
    assert detect_language(text, "en") == ""


def test_any_language_is_wanted_if_none_is() -> None:
    assert all(fractions(text, "") == (1, {}, 0) for text in [*OTHER.values(), ENGLISH])
    assert fractions("x" * 3000, "") == (0, {}, 1)


def model_that_finds(code: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fake the model; returns the pieces that it reads."""
    pieces: list[str] = []

    class Model:
        def detect(self, text: str, k: int) -> list[dict[str, object]]:
            pieces.append(text)
            return [{"lang": code, "score": 1.0}]

    monkeypatch.setattr(language, "detector", Model)
    return pieces


def test_cost_is_bounded_for_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = model_that_finds("de", monkeypatch)
    assert fractions(GERMAN * 1000).other == {"de": 1}
    assert [len(piece) for piece in pieces] == [300] * 30


@pytest.mark.parametrize(("wanted", "code"), [("hr", "sr"), ("nb", "da"), ("id", "ms"), ("fa", "prs")])
def test_languages_that_models_confuse_count_as_one(wanted: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model_that_finds(code, monkeypatch)
    assert fractions(ENGLISH, wanted).wanted == 1
    assert fractions(ENGLISH, "cy").other == {code: 1}
