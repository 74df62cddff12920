"""Text normalisation: reverted attacks, unchanged text, offsets."""

import hashlib
import json
import time
import unicodedata
from string import ascii_letters

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detect_ai.text.characters import is_blank
from detect_ai.text.normalize import NORMALISER_VERSION, expanded_length, latin_fraction, normalise
from detect_ai.text.sentences import sentences
from tests.unit.conftest import any_text

CLEAN = (
    'In April I took the early train to Exeter, and "Ozymandias" was on my mind: a poem I keep by heart. '
    "My café was closed; nobody's perfect. By ten o'clock I could pick any coat I liked - XL, even! "
    "Was it a coincidence that P. B. Shelley, too, began like this? Zoë and Mike hope so."
)
# Dugan et al. 2024 (RAID), section 4.2: every letter that has a Cyrillic or Greek double.
RAID_HOMOGLYPHS = str.maketrans("aecpoxyiABEKOPMHTXCINZ", "аесрохуіАВЕКОРМНТХСІΝΖ")
GREEK_CAPITALS = str.maketrans("ABEHIKMNOPTXZ", "ΑΒΕΗΙΚΜΝΟΡΤΧΖ")
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
MATH_BOLD = {ord(letter): 0x1D400 + i for i, letter in enumerate(ascii_letters[26:] + ascii_letters[:26])}
TYPOGRAPHIC = str.maketrans({"'": "’", "-": "—"})

ATTACKS = {
    "zero width space after every character": "\u200b".join(CLEAN) + "\u200b",
    "joiners and soft hyphens in words": CLEAN.replace("e", "e\u200d\xad").replace("n", "\u2060n\u034f"),
    "variation selectors and tags": CLEAN.replace("a", "a\ufe0f").replace("t", "t\U000e0041"),
    "control characters": "\x00" + CLEAN.replace("t", "t\x00").replace("o", "\x7fo\x08"),
    "homoglyphs": CLEAN.translate(RAID_HOMOGLYPHS),
    "Greek capitals": CLEAN.translate(GREEK_CAPITALS),
    "phonetic letters": CLEAN.translate(str.maketrans("ag", "ɑɡ")),
    "homoglyphs with zero width spaces": "\u200b".join(CLEAN.translate(RAID_HOMOGLYPHS)),
    "homoglyphs before combining marks": unicodedata.normalize("NFD", CLEAN).translate(RAID_HOMOGLYPHS),
    "full width": CLEAN.translate(FULL_WIDTH).replace(" ", "\u3000"),
    "mathematical bold": CLEAN.translate(MATH_BOLD),
    "white space": CLEAN.replace(" ", " \xa0 ").replace(", ", ",\t") + "  ",
    "paragraphs": "\n" + CLEAN.replace(". ", ".\u2029\r\n\n "),
    "Hangul fillers for spaces": CLEAN.replace(" ", "\u3164"),
    "half-width fillers next to spaces": CLEAN.replace(" ", " \uffa0"),
    "Braille blanks for every other space": CLEAN.replace(", ", ",\u2800").replace("e ", "e\u2800"),
    "Hangul fillers after every letter": "".join(c + "\u3164" if c.isalpha() else c for c in CLEAN),
    "fillers without width in words": CLEAN.replace("e", "e\u1160").replace("o", "\u115fo"),
    "typographic quotes and dashes": CLEAN.replace(' "', " “").replace('"', "”").translate(TYPOGRAPHIC),
    "primes, acutes and guillemets": CLEAN.replace(' "', " «").replace('"', "″").replace("'", "´"),
}
FOREIGN = {
    "Russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. "
    "Всё смешалось в доме Облонских. СССР, Ростов, iPhone; хор.",
    "Russian with English": "Он работал в СССР, а потом в Google and Yandex; his хор and оркестр played for us.",
    "Cyrillic alone": "СОР, ХОР. А я?",
    "Cyrillic capitals and a Latin letter": "СОХРАТ НОРАТ МОРЕ РОСА ОСЕТР: A",
    "Ukrainian": "Усі люди народжуються вільними і рівними у своїй гідності та правах. Їжак і її син.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. ΑΒΕ, PIN.",
    "Hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון.",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。".replace("，", ","),
    "Armenian": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով:",
    "Turkish": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar; akıl ve vicdana sahiptirler.",
    "English with Greek symbols": "We set α to 0.05 and σ to 1 for the γ-rays of 5 μm, which gave us the ι of φ.",
    "English with a Russian word": "The inspector shook his head and said нет, which is how one says no to a guest.",
    "English with phonetics": "The word is pronounced [ˈɡɑːd], or so the dictionary of my grandmother insisted.",
}
HOSTILE = (
    "ab Zil.!?'\"-\t\n\r\x00\x85\xa0\u3000\u2028аеорсіӀІЅхζαορνΑΟΒΜйёѐї\u0301\u0300\u0308\u0323\u0338\u0345\u0331"
    "ﬁﬃŉẚ½…™ﷺＡｂ！𝐀𝒷𝔠ⓐㄱㅏ\u1100\u1161\u11a8가각\u3164\uffa0\u115f\u1160\u2800\u200b\u200c\u200d\ufe0f\ufeff\xad"
    "\u2060\u034f\u180e´¨¯¸‗‘’“”«»′″‴‾–—−ｶﾞ\u3099\u0f73\u0f71\u09c7\u09be\u0344\u212b\u2126ǅßſ=<≠ªº²ɑɡיִ。中😀❤"
    "\U000e0041\ud800\udfff\ufffd"
)
hostile_text = st.text(st.sampled_from(HOSTILE))
# SHA-256, by version, of the outputs of `normalise` for CLEAN, ATTACKS, FOREIGN and HOSTILE. Bundles and corpora store
# the version: other outputs need a new one (CONTRIBUTING.md). If only the input strings change, update the hash.
OUTPUTS = {1: "3947e9fb5a90aa821480a2cbe07c08989f2eb2763b31157c85c9554452636d3d"}
padded_text = hostile_text.map(lambda text: f"All of it is Latin {text} or nearly so")


def assert_is_fixed_point(text: str) -> None:
    again = normalise(text)
    assert (again.text, again.tampering) == (text, {})


@settings(deadline=None)
@given(any_text | hostile_text | padded_text)
@example("x\u00b4\u0301")
@example(" ¨ ‗")
@example("an аpple а\u0301 ſ\u0323\u0307 pеar")
@example("\u1100\u3164\u1161\u200b\u11a8")
def test_normalised_text_is_a_visible_fixed_point(text):
    result = normalise(text).text
    assert_is_fixed_point(result)
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in result)
    assert result == " ".join(result.split())
    assert len(result) <= expanded_length(text)
    assert is_blank(text) == (result == "")


def test_every_character_normalises_to_a_fixed_point():
    changed = (chr(code) for code in range(0x110000) if unicodedata.decomposition(chr(code)))
    for char in changed:
        assert_is_fixed_point(normalise(f"The cat аtе {char}\u0323\u0301е").text)


@settings(deadline=None)
@given(any_text | hostile_text | padded_text)
def test_offsets_are_ascending_and_inside_the_source(text):
    result = normalise(text)
    assert len(result.starts) == len(result.ends) == len(result.text)
    assert result.starts.dtype == result.ends.dtype == np.int32
    assert np.all(np.diff(result.starts) >= 0)
    assert np.all(np.diff(result.ends) >= 0)
    assert np.all((result.starts >= 0) & (result.starts < result.ends) & (result.ends <= len(text)))


def test_outputs_change_only_with_the_version():
    content = hashlib.sha256()
    for text in (CLEAN, *ATTACKS.values(), *FOREIGN.values(), f"All of it is Latin {HOSTILE} or nearly so"):
        result = normalise(text)
        offsets = result.starts.tolist(), result.ends.tolist()
        content.update(json.dumps([result.text, *offsets, result.tampering], sort_keys=True).encode())
    assert content.hexdigest() == OUTPUTS[NORMALISER_VERSION]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacked_text_normalises_to_the_clean_text(attack):
    result = normalise(ATTACKS[attack])
    assert ATTACKS[attack] != CLEAN == result.text
    at = result.text.index("early train to Exeter")
    begin, stop = result.to_source(at, at + len("early train to Exeter"))
    assert normalise(ATTACKS[attack][begin:stop]).text == "early train to Exeter"


@pytest.mark.parametrize("language", FOREIGN)
def test_genuine_foreign_text_is_unchanged(language):
    result = normalise(FOREIGN[language])
    assert (result.text, result.tampering) == (FOREIGN[language], {})


@pytest.mark.parametrize(
    ("attack", "counts"),
    [
        ("co\u200bme\u200b\u200b", {"invisible": 3}),
        ("the соok said so", {"homoglyph": 2}),
        ("ｔen 𝐦𝐞n, Ⓐ", {"lookalike_form": 4}),
        ("two\u3164words and\u1160 more", {"filler": 2}),
        ("“curly” — ﬁne², №1: 1ˢᵗ™ ½", {}),
        ("\ufeffa ❤\ufe0f for 👩\u200d🚀, key 1\ufe0f\u20e3, می\u200cخواهم, 🏴\U000e0067\U000e007f", {}),
        ("a\u200d ❤\ufe0f\u200b", {"invisible": 3}),
    ],
)
def test_tampering_does_not_count_regular_spelling(attack, counts):
    assert normalise(attack).tampering == counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u0406t is \u0406, not heӀӀo or \u0406\u0406I", "It is I, not hello or III"),
        ("the insресtоr of the old town said нет", "the inspector of the old town said нет"),
        ("the tаxI of eаch", "the taxI of each"),
        ("ВОТН and both, Αnd and", "BOTH and both, And and"),
        ("résumé of Соrа, ünïcоdе", "résumé of Cora, ünïcode"),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("e\u200b\u0301t", "ét"),
        ("the gаrdеn а\u0301", "the garden á"),
        ("ﬁn… ½ x² ™", "fin... 1⁄2 x2 TM"),
        ("a‐b‑c‒d–e—f―g−h﹘i－j⁃k", "a-b-c-d-e-f-g-h-i-j-k"),
        ("‘a’ ‚b‛ “c” „d‟ «e» ‹f› g′ h″ i‴", "'a' 'b' \"c\" \"d\" \"e\" 'f' g' h\" i'''"),
        (" \t\u2003x\x1c\u205f\u202fy\x85z\u2028", "x y z"),
        ("sun\u3164day, said the man to the world", "sun day, said the man to the world"),
        ("", ""),
        (" \u200b\u3164\ufeff\x00 ", ""),
    ],
)
def test_normalise_examples(text, expected):
    assert normalise(text).text == expected


@pytest.mark.parametrize("category", ["Cf", "Cc"])
def test_format_and_control_characters_are_removed(category):
    for code in range(0x110000):
        char = chr(code)
        if unicodedata.category(char) == category and not char.isspace():
            assert normalise(f"a{char}b").text == "ab", hex(code)


def test_chunked_nfkc_equals_nfkc():
    for code in range(0x110000):
        pair = unicodedata.normalize("NFD", chr(code))
        if len(pair) > 1:
            text = f"中{pair}{pair[1:]}\ufb01"
            assert normalise(text).text == unicodedata.normalize("NFKC", text), hex(code)
    text = "a" + "\u0301\u0323\u0f73" * 40  # a long run of marks, which we sort
    assert normalise(text).text == unicodedata.normalize("NFKC", text)


def test_composed_character_maps_to_its_whole_source():
    result = normalise("xe\u0301\u0323y")
    assert result.text == "xẹ́y"
    assert [result.to_source(i, i + 1) for i in range(4)] == [(0, 1), (1, 4), (1, 4), (4, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["\u200b", " ", "x \n", "\u0301", "\u0301\u0323", "\u0f73", "\u1161", "а", "“", ". "])
def test_time_is_linear(unit):
    def seconds(length: int) -> float:
        text = "The " + unit * (length // len(unit)) + "x"
        start = time.process_time()
        sentences(normalise(text).text)
        return time.process_time() - start

    assert min(seconds(60_000) for _ in range(2)) < 40 * max(0.002, min(seconds(6_000) for _ in range(2)))


@pytest.mark.parametrize(("unit", "factor"), [("\ufdfa", 18), ("ﬃ", 3), ("½", 3), ("a\u0301", 2), ("a\u200b", 2)])
def test_expanded_length_bounds_nfkc(unit, factor):
    assert expanded_length(unit * 1000) == factor * 1000


@pytest.mark.parametrize(
    ("text", "fraction"),
    [("", 0.0), ("12 !", 0.0), ("Zoë's ﬁ", 1.0), ("abc где", 0.5), ("中文", 0.0), ("a א б γ", 0.25)],
)
def test_latin_fraction_counts_letters_only(text, fraction):
    assert latin_fraction(text) == fraction
