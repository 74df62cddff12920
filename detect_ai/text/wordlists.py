"""Lists of words that attacks draw from, read on first use: spellings and misspellings of codespell, synonyms of ours.

codespell's lists come from Wikipedia's of common misspellings (CC BY-SA 3.0). They are read where the package lies;
its code (GPL-2.0) is never imported.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from detect_ai.core.errors import InputError

Choices = dict[str, tuple[str, ...]]

_SINGLE = re.compile("[a-z]+")
# American forms that are British ones as well, in another sense or as a variant: they may stay.
_ALSO_BRITISH = re.compile(
    "biased|(re)?focus(ed|es|ing)|lambastes?|license[ds]?|licensing|meters?|(over)?writable|practices?|program|routing|"
    "story|stories"
)


@cache
def spellings() -> dict[str, str]:
    """British words to their American spelling, and back where that is no British word too. All lower case.

    Raises:
        InputError: codespell is not installed.
    """
    american = {}
    for british, replacements in _entries("dictionary_en-GB_to_en-US.txt"):
        first = replacements.split(",")[0].strip()
        if _SINGLE.fullmatch(british) and _SINGLE.fullmatch(first):
            american[british] = first
    sources = defaultdict(list)
    for british, word in american.items():
        sources[word].append(british)
    back = {word: found[0] for word, found in sources.items() if len(found) == 1 and not _ALSO_BRITISH.fullmatch(word)}
    return back | american


@cache
def misspellings() -> Choices:
    """Words to what they are commonly misspelt as, where that is a misspelling of nothing else. All lower case.

    Raises:
        InputError: codespell is not installed.
    """
    found = defaultdict(list)
    for wrong, right in _entries("dictionary.txt"):
        if _SINGLE.fullmatch(wrong) and _SINGLE.fullmatch(right):
            found[right].append(wrong)
    return {word: tuple(wrongs) for word, wrongs in found.items()}


@cache
def synonyms() -> Choices:
    """Words to the others of their group in `synonyms.txt`. All lower case."""
    lines = files("detect_ai.text").joinpath("synonyms.txt").read_text("utf-8").splitlines()
    groups = [line.split() for line in lines if not line.startswith("#")]
    return {word: tuple(other for other in group if other != word) for group in groups for word in group}


def _entries(name: str) -> Iterator[tuple[str, str]]:
    """What stands left and right of `->` in the lines of one of codespell's lists."""
    spec = importlib.util.find_spec("codespell_lib")
    if spec is None or spec.origin is None:
        raise InputError(
            "attacks on spelling: their lists of words come with the package codespell: pip install codespell"
        )
    for line in (Path(spec.origin).parent / "data" / name).read_text("utf-8").splitlines():
        left, _, right = line.partition("->")
        yield left.strip(), right.strip()
