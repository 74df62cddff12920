"""Invisible characters, and texts that contain nothing else. Needs no other package."""

from __future__ import annotations

import re

# Unicode general categories Cc (except white space) and Cf, and Default_Ignorable_Code_Point (UAX #44).
INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\ufffb\U000110bd\U000110cd"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Hangul fillers and the Braille blank: the first two have no width, the others show as a gap.
FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
SURROGATE = re.compile("[\ud800-\udfff]")  # unpaired: UTF-8 and Arrow cannot store them
_BLANK = re.compile(rf"[\s{INVISIBLE}{FILLERS}]*+")


def is_blank(text: str) -> bool:
    """Whether a text is empty after normalisation: it has only white space, invisible characters and fillers."""
    return _BLANK.fullmatch(text) is not None
