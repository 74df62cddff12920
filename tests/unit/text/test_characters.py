"""Texts without visible characters."""

import unicodedata

from detect_ai.text.characters import is_blank
from detect_ai.text.normalize import normalise


def test_is_blank_means_empty_after_normalising():
    for char in map(chr, range(0x110000)):
        if is_blank(char) or unicodedata.category(char) in ("Cc", "Cf", "Zs", "Zl", "Zp"):
            assert is_blank(char) == (normalise(char).text == ""), hex(ord(char))
