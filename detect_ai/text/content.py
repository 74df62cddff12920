"""Content of a text: how much of it is prose in the language of the model, and what the rest is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detect_ai.text.content_type import PROSE, TYPES, content_types
from detect_ai.text.language import MAX_OTHER_FRACTION, language_fractions
from detect_ai.text.normalize import Normalised, latin_fraction

MIN_LATIN_FRACTION = 0.5  # of the letters; below it, the language is not identified
# If a kind exceeds its fraction of the visible characters, the text is out of scope, for the reason on the right.
LIMITS = {
    "other_script": (MAX_OTHER_FRACTION, "other_script"),
    "other_language": (MAX_OTHER_FRACTION, "other_language"),
    "code": (0.5, "mostly_code"),
    "tables": (0.5, "mostly_tables"),
    "quotations": (0.6, "mostly_quotations"),
    "not_language": (0.5, "not_language"),
    "lost": (0.01, "not_language"),
}
MAX_NON_PROSE = 0.5  # all kinds together except quotations
MAX_WITH_QUOTATIONS = 0.6


@dataclass(frozen=True)
class Content:
    """The kinds of content in a text.

    Attributes:
        fractions: non-zero fractions of the visible characters, which sum to 1: `prose`; `code`, `tables`,
            `quotations` (lines after `>`, and double quotes around at least 40 words), `links`, `references`
            (bibliographies); of the rest, `other_script`, `other_language`, `not_language` (not recognised as running
            text: encoded data, lists of names, missing or spurious spaces, a language that the language model does not
            know); `lost` (by a wrong encoding: U+FFFD).
    """

    fractions: dict[str, float] = field(default_factory=dict)

    def rounded(self) -> dict[str, float]:
        """The fractions rounded to two decimals, without those below 0.005."""
        return {kind: round(fraction, 2) for kind, fraction in self.fractions.items() if fraction >= 0.005}

    @property
    def reasons(self) -> list[str]:
        """Why the text is out of scope: reasons of `LIMITS`, or `not_prose` for a mixture; empty if it is in scope."""
        reasons = [reason for kind, (limit, reason) in LIMITS.items() if self.fractions.get(kind, 0) > limit]
        other = 1 - self.fractions.get("prose", 0) if self.fractions else 0
        quoted = self.fractions.get("quotations", 0)
        if not reasons and (other - quoted > MAX_NON_PROSE or other > MAX_WITH_QUOTATIONS):
            reasons = ["not_prose"]
        return list(dict.fromkeys(reasons))


def content_report(text: str, normalised: Normalised, language: str) -> Content:
    """The content of a text, given as submitted and normalised, for a model of `language`, such as `en` ("": any)."""
    types, is_visible = content_types(text)
    counts = np.bincount(types[is_visible], minlength=len(TYPES))
    if not normalised.text:
        return Content()
    fractions = dict(zip(TYPES, (counts / counts.sum()).tolist(), strict=True))
    prose = _prose(normalised, types)
    if not prose.isascii() and (latin := latin_fraction(prose)) < MIN_LATIN_FRACTION:
        others = {"other_script": 1 - latin}
    else:
        languages = language_fractions(prose, language)
        others = {"other_language": sum(languages.other.values()), "not_language": languages.none}
    fractions |= {kind: fraction * fractions["prose"] for kind, fraction in others.items()}
    fractions["prose"] *= 1 - sum(others.values())
    return Content({kind: fraction for kind, fraction in fractions.items() if fraction > 0})


def _prose(normalised: Normalised, types: npt.NDArray[np.uint8]) -> str:
    """The prose of the normalised text; `types` are the content types of the submitted characters."""
    is_prose = types[normalised.starts] == PROSE
    if is_prose.all():
        return normalised.text
    edges = np.flatnonzero(np.diff(is_prose, prepend=False, append=False)).reshape(-1, 2)
    return "".join(normalised.text[start:end] for start, end in edges.tolist())
