from __future__ import annotations

import socket

import pytest

from detect_ai.text import language
from detect_ai.text.language import other_language

ENGLISH = (
    "The committee met on Tuesday to talk about the roads in the north of the town, which have been closed since the "
    "storm in March, and about who is going to pay for the work that has to be done before the winter."
)
TEXTS = {
    "fr": "Le comité s'est réuni mardi pour parler des routes au nord de la ville, qui sont fermées depuis la tempête "
    "du mois de mars, et pour savoir qui va payer les travaux qui doivent être faits avant l'hiver.",
    "de": "Der Ausschuss traf sich am Dienstag, um über die Straßen im Norden der Stadt zu sprechen, die seit dem "
    "Sturm im März gesperrt sind, und darüber, wer die Arbeit bezahlt, die vor dem Winter getan werden muss.",
    "es": "El comité se reunió el martes para hablar de las carreteras del norte de la ciudad, que están cerradas "
    "desde la tormenta de marzo, y de quién va a pagar las obras que hay que terminar antes del invierno.",
    "ru": "Комитет собрался во вторник, чтобы поговорить о дорогах на севере города, которые закрыты после мартовской "
    "бури, и о том, кто заплатит за работы, которые надо закончить до наступления зимы.",
    "zh": "委员会星期二开会讨论城市北部的道路问题,这些道路自三月的暴风雨以来一直关闭,"
    "并讨论谁来支付冬天之前必须完成的工程费用。",
}
NON_NATIVE = (
    "In my opinion the people they is not having enough time for make sport because all day they working and when they "
    "come in house is very tired, so the city must to build more park and place for the familys."
)


@pytest.mark.parametrize("found", TEXTS)
def test_a_text_in_another_language_is_told_with_its_code(found: str) -> None:
    assert other_language(TEXTS[found], "en") == found
    assert other_language(" ".join([TEXTS[found]] * 8), "en-GB") == found
    assert other_language(TEXTS[found], found) is None
    assert other_language(ENGLISH, found) == "en"


@pytest.mark.parametrize("text", [ENGLISH, ENGLISH.upper(), ENGLISH.lower() * 9, NON_NATIVE, "", "x", "1 2 3 " * 40])
def test_english_is_english(text: str) -> None:
    assert other_language(text, "en") is None


@pytest.mark.parametrize("text", [*TEXTS.values(), ENGLISH])
def test_any_language_goes_when_none_is_wanted(text: str) -> None:
    assert other_language(text, "") is None


@pytest.mark.parametrize("words", [1, 5, 14])
def test_a_short_text_has_the_benefit_of_the_doubt(words: int) -> None:
    assert other_language(" ".join(TEXTS["fr"].split()[:words]), "en") is None


@pytest.mark.parametrize(
    "parts",
    [
        (ENGLISH, TEXTS["fr"], ENGLISH),
        (TEXTS["fr"], TEXTS["fr"], ENGLISH),
        (ENGLISH, TEXTS["fr"], TEXTS["fr"]),
        (TEXTS["fr"], TEXTS["de"], TEXTS["fr"]),
    ],
)
def test_beginning_middle_and_end_must_agree(parts: tuple[str, ...]) -> None:
    assert other_language(" ".join(part for part in parts for _ in range(4)), "en") is None


@pytest.mark.parametrize(
    "text",
    [
        "Jean-Pierre Dupont, Marie Lefèvre, François Béranger, Jürgen Müller, Giuseppe Rossi, Elena García Márquez and "
        "the mayor of Aix-en-Provence met with Señor Hernández and the ambassador of France.",
        "The waiter said: le poisson est très bon aujourd'hui, monsieur, and the man from Ohio, who had not understood "
        "a word of it, smiled and asked for the bill, which was not small.",
        "fosss o brokeotypediya new savoir drasedisors collasierthfuse napzte dniihcs " * 3,
        "https://example.org/de/strasse-und-haus-und-garten " * 12,
    ],
)
def test_names_mixed_speech_and_noise_are_no_other_language(text: str) -> None:
    assert other_language(text, "en") is None


@pytest.mark.parametrize(("wanted", "found"), [("hr", "sr"), ("nb", "no"), ("ms", "id")])
def test_languages_that_are_taken_for_each_other_are_one(
    wanted: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model:
        def detect(self, text: str) -> list[dict[str, object]]:
            return [{"lang": found, "score": 1.0}]

    monkeypatch.setattr(language, "detector", Model)
    assert other_language(ENGLISH, wanted) is None
    assert other_language(ENGLISH, "cy") == found


def test_english_words_outweigh_a_model_that_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def detect(self, text: str) -> list[dict[str, object]]:
            return [{"lang": "cy", "score": 1.0}]

    monkeypatch.setattr(language, "detector", Model)
    assert other_language(ENGLISH, "en") is None
    assert other_language(ENGLISH, "fr") == "cy"
    assert other_language(TEXTS["fr"], "en") == "cy"


def test_of_a_text_in_the_wanted_language_only_the_middle_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class Model:
        def detect(self, text: str) -> list[dict[str, object]]:
            read.append(text)
            return [{"lang": "fr", "score": 1.0}]

    monkeypatch.setattr(language, "detector", Model)
    text = " ".join([TEXTS["fr"]] * 1000)
    assert other_language(text, "fr") is None
    assert [len(piece) for piece in read] == [500]
    assert other_language(text, "de") == "fr"
    assert [len(piece) for piece in read] == [500] * 4


def test_the_model_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    language.detector.cache_clear()
    assert other_language(TEXTS["de"], "en") == "de"


@pytest.mark.parametrize("name", ["en", "EN", " en-GB", "en_US "])
def test_a_code_is_what_stands_before_the_region(name: str) -> None:
    assert language.code(name) == "en"
