"""Language identification of documents: other languages, mixtures, and what is not language."""

from __future__ import annotations

import base64
import codecs
import random

import pytest

from detect_ai.text import language
from detect_ai.text.language import detect_language, language_problem
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
# lid.176 does not know these, or confuses them: out of scope in any case.
OUT_OF_SCOPE = {
    "Afrikaans": "Alle menslike wesens word vry, met gelyke waardigheid en regte, gebore. Hulle het rede en gewete en "
    "behoort in die gees van broederskap teenoor mekaar op te tree.",
    "Somali": "Aadanaha dhammaantiis wuxuu dhashaa isagoo xor ah kana siman xagga sharafta iyo xuquuqada Waxaa Alle "
    "siiyay aqoon iyo wacyi waana in la isula dhaqmaa si walaaltinimo ah.",
    "rot13": codecs.encode(ENGLISH, "rot13"),
    "reversed": ENGLISH[::-1],
}
_random = random.Random(0)
NO_LANGUAGE = {
    "keyboard mash": " ".join("".join(_random.choices("asdfghjkl", k=6)) for _ in range(80)),
    "base64": "\n".join(base64.b64encode(_random.randbytes(57)).decode() for _ in range(20)),
    "DNA in blocks": " ".join("".join(_random.choices("ACGT", k=10)) for _ in range(90)),
    "one giant word": "".join(_random.choices("ACGT", k=3000)),
    "no spaces": ENGLISH.replace(" ", "") * 3,
    "entities for spaces": ENGLISH.replace(" ", "&nbsp;") * 3,
    "escape sequences": " ".join(f"\x1b[31m{word}\x1b[0m" for word in ENGLISH.split() * 3),
    "spaces between letters": "  ".join(" ".join(word) for word in ENGLISH.split()),
    "PDF without a character map": "7KH FRXQFLO YRWHG RQ 7XHVGDB WR FORVH WKH EULGJH IRU WZR ZHHNV " * 5,
    "list of names": ", ".join(["James Smith", "Mary Johnson", "Robert Williams", "Patricia Brown"] * 12),
    "e-mail addresses": "\n".join(f"first{n}.last{n}@example.org" for n in range(60)),
    "wrong encoding": ENGLISH.replace("e", "\ufffd"),
}
NON_NATIVE = (
    "In my opinion the people they is not having enough time for make sport because all day they working and when they "
    "come in house is very tired, so the city must to build more park and place for the familys."
)


def problem(text: str, wanted: str = "en") -> str | None:
    return language_problem(normalise(text).text, wanted)


@pytest.mark.parametrize("code", OTHER)
def test_other_language_is_named(code: str) -> None:
    assert problem(OTHER[code]) == "other_language"
    assert detect_language(OTHER[code], "en-GB") == code
    assert problem(OTHER[code], code) is None
    assert problem(ENGLISH, code) == "other_language"


@pytest.mark.parametrize("name", OUT_OF_SCOPE)
def test_unknown_language_is_out_of_scope(name: str) -> None:
    assert problem(OUT_OF_SCOPE[name]) in ("other_language", "not_language")


@pytest.mark.parametrize("text", [ENGLISH, ENGLISH.upper(), ENGLISH.lower() * 9, NON_NATIVE, "", "x", "1 2 3 " * 4])
def test_english_is_in_scope(text: str) -> None:
    assert problem(text) is None


@pytest.mark.parametrize(("before", "english", "after"), [(12, 1, 0), (0, 1, 12), (6, 1, 6), (4, 4, 0), (0, 40, 40)])
def test_english_part_does_not_hide_another_language(before: int, english: int, after: int) -> None:
    assert problem(GERMAN * before + ENGLISH * english + GERMAN * after) == "other_language"


def test_foreign_quotation_is_in_scope() -> None:
    assert problem(ENGLISH * 6 + GERMAN + ENGLISH * 6) is None


@pytest.mark.parametrize("name", NO_LANGUAGE)
def test_garbled_text_is_no_language(name: str) -> None:
    assert problem(NO_LANGUAGE[name]) == "not_language"


def test_any_language_is_in_scope_if_none_is_wanted() -> None:
    assert all(problem(text, "") is None for text in [*OTHER.values(), ENGLISH])
    assert problem("x" * 3000, "") == "not_language"


def model_that_finds(code: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fake the model; the pieces that it reads."""
    pieces: list[str] = []

    class Model:
        def detect(self, text: str, k: int) -> list[dict[str, object]]:
            pieces.append(text)
            return [{"lang": code, "score": 1.0}]

    monkeypatch.setattr(language, "detector", Model)
    return pieces


def test_cost_is_bounded_for_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = model_that_finds("de", monkeypatch)
    assert problem(GERMAN * 1000) == "other_language"
    assert [len(piece) for piece in pieces] == [500] * 20


@pytest.mark.parametrize(("wanted", "code"), [("hr", "sr"), ("nb", "da"), ("id", "ms"), ("fa", "prs")])
def test_languages_that_models_confuse_count_as_one(wanted: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model_that_finds(code, monkeypatch)
    assert problem(ENGLISH, wanted) is None
    assert problem(ENGLISH, "cy") == "other_language"
