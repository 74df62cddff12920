"""Lower-case word lists of the attacks, read on first use: codespell's spellings and misspellings, our synonyms.

The lists of codespell come from Wikipedia (CC BY-SA 3.0); its code (GPL-2.0) is never imported.
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

_SINGLE = re.compile("[a-z]+")
# American forms that are also British, in another sense or as a variant; they are not converted.
_ALSO_BRITISH = re.compile(
    "biased|(re)?focus(ed|es|ing)|lambastes?|license[ds]?|licensing|meters?|(over)?writable|practices?|program|routing|"
    "story|stories"
)


@cache
def spellings() -> dict[str, str]:
    """Map British to American spelling, and back unless the American form is also British. Raises InputError."""
    american = {}
    for british, replacements in _entries("dictionary_en-GB_to_en-US.txt"):
        first = replacements.split(",")[0].strip()
        if _SINGLE.fullmatch(british) and _SINGLE.fullmatch(first):
            american[british] = first
    sources = defaultdict(list)
    for british, word in american.items():
        sources[word].append(british)
    back = {word: forms[0] for word, forms in sources.items() if len(forms) == 1 and not _ALSO_BRITISH.fullmatch(word)}
    return back | american


@cache
def misspellings() -> dict[str, tuple[str, ...]]:
    """Map words to common misspellings that belong to no other word. Raises InputError."""
    wrong_forms = defaultdict(list)
    for wrong, right in _entries("dictionary.txt"):
        if _SINGLE.fullmatch(wrong) and _SINGLE.fullmatch(right):
            wrong_forms[right].append(wrong)
    return {word: tuple(forms) for word, forms in wrong_forms.items()}


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Map words to the other words of their group in `synonyms.txt`."""
    lines = files("detect_ai.text").joinpath("synonyms.txt").read_text("utf-8").splitlines()
    groups = [line.split() for line in lines if not line.startswith("#")]
    return {word: tuple(other for other in group if other != word) for group in groups for word in group}


def _entries(name: str) -> Iterator[tuple[str, str]]:
    """Both sides of `->` in the lines of a codespell list, lower case. Raises InputError without codespell."""
    spec = importlib.util.find_spec("codespell_lib")
    if spec is None or spec.origin is None:
        raise InputError("spelling attacks need the word lists of codespell: pip install 'detect-ai[train]'")
    for line in (Path(spec.origin).parent / "data" / name).read_text("utf-8").splitlines():
        left, _, right = line.partition("->")
        yield left.strip(), right.strip()
