"""Text normalisation: one versioned function that runs before every tokenisation.

It reverts changes that a reader does not see: the homoglyph, zero-width, white-space and paragraph attacks of RAID
(arXiv:2405.07940), decorated letters, fillers, typographic quotes and dashes. It keeps a map to offsets in the source.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain, groupby, pairwise
from string import ascii_letters

import numpy as np
import numpy.typing as npt

from detect_ai.text.characters import FILLERS, INVISIBLE

NORMALISER_VERSION: int = 1

_GAP_FILLERS = FILLERS[2:]
# Replaced before NFKC, which would decompose the acute accent (a common apostrophe) and the double prime.
_TYPOGRAPHY = (
    dict.fromkeys("‘’‚‛′‵‹›❛❜´\u02b9\u02bb\u02bc\u02bd\u02ca\u02cb", "'")
    | dict.fromkeys("“”„‟″‶«»❝❞〝〞〟\u02ba\u02ee", '"')
    | dict.fromkeys("\u2010\u2012\u2013\u2014\u2015\u2043\u2212\u02d7\u2e3a\u2e3b", "-")
)
_SPECIAL = re.compile(f"(?P<invisible>[{INVISIBLE}]+)|(?P<filler>[{FILLERS}]+)|[{''.join(_TYPOGRAPHY)}\ud800-\udfff]")
# Joiners, direction marks, emoji selectors and tags are spelling, not tampering, after a non-ASCII character (Persian,
# Hebrew, emoji) or in a keycap; so is a byte order mark.
_SPELLING = re.compile(
    r"(?:(?<=[^\x00-\x7f])[\u200c-\u200f\ufe0e\ufe0f\U000e0020-\U000e007f]++|\ufe0f(?=\u20e3)|\A\ufeff)"
    f"(?![{INVISIBLE}])"
)
# Letters that NFKC converts to ASCII: enclosed, full-width, mathematical; not legitimate symbols such as ℓ and ℕ.
_LOOKALIKE_FORMS = re.compile("[\u24b6-\u24e9\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d6a3\U0001f130-\U0001f149]")
_WORD = re.compile(r"(?:[^\W\d_]+[\u0300-\u036f]*)+")
# Letters of ordinary Latin spelling (not phonetic letters), with combining diacritics.
_PLAIN = re.compile("[A-Za-zªºÀ-ÖØ-öø-\u024f\u1e00-\u1eff\u0300-\u036f]+")
_MIN_FOLDED_FRACTION = 0.9
_MIN_LATIN_FRACTION = 0.05

_Offsets = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Normalised:
    """A normalised text and its map to the submitted text.

    Attributes:
        text: the normalised text.
        starts, ends: source span `[start, end)` of each character; shape (len(text),), non-decreasing.
        tampering: number of characters of the source that were `invisible`, a `homoglyph`, a `lookalike_form`
            (full-width, mathematical and enclosed letters) or a `filler`; only counts above 0.
    """

    text: str
    starts: _Offsets
    ends: _Offsets
    tampering: dict[str, int]

    def to_source(self, start: int, end: int) -> tuple[int, int]:
        """The span of the submitted text, in code points, for `text[start:end]`; requires `start` < `end`."""
        return int(self.starts[start]), int(self.ends[end - 1])


@dataclass(slots=True)
class _Draft:
    """A text between the steps of `normalise`."""

    text: str
    starts: _Offsets
    ends: _Offsets
    tampering: Counter[str]

    def apply_edits(self, edits: list[tuple[int, int, str]]) -> None:
        """Replace disjoint, ascending, non-empty spans; each new character maps to its whole span."""
        if not edits:
            return
        first, stop, new = (list(column) for column in zip(*edits, strict=True))
        kept = (self.text[a:b] for a, b in zip((0, *stop), (*first, len(self.text)), strict=True))
        step = np.zeros(len(self.text) + 1, np.int32)
        step[first] += 1
        step[stop] -= 1
        copies = 1 - np.cumsum(step[:-1])
        copies[first] = [len(piece) for piece in new]
        span_ends = self.ends.copy()
        span_ends[first] = self.ends[np.array(stop) - 1]
        self.text = "".join(chain.from_iterable(zip(kept, (*new, ""), strict=True)))
        self.starts, self.ends = np.repeat(self.starts, copies), np.repeat(span_ends, copies)


def expanded_length(text: str) -> int:
    """Upper bound of the length after NFKC, to check before `normalise`: one character becomes up to 18."""
    if text.isascii():
        return len(text)
    return sum(count * len(unicodedata.normalize("NFKC", char)) for char, count in Counter(text).items())


def normalise(text: str) -> Normalised:
    """Revert invisible changes of a text, without changing case or repairing anything else.

    In order: lone surrogates become U+FFFD, invisible characters and fillers are removed, quotes and dashes become
    ASCII; NFKC (UAX #15); confusables (UTS #39) become Latin letters if the document is Latin; every run of white
    space becomes one space and the ends are stripped. Accepts any string, is idempotent and takes linear time.

    One pass is enough: invisible characters are removed before NFKC, so that marks follow their base; NFKC produces
    quotes and dashes (from U+2034, U+FE31 …), which are replaced again; a folded base may compose with its mark.
    """
    starts = np.arange(len(text), dtype=np.int32)
    draft = _Draft(text, starts, starts + 1, Counter())
    if not (text.isascii() and text.isprintable() and "  " not in text and text == text.strip(" ")):
        _replace_special(draft)
        if not draft.text.isascii():
            _compose(draft)
            _replace_special(draft)
            _fold_confusables(draft)
            _compose(draft)
        size = len(draft.text)
        spans = (match.span() for match in re.finditer(r"\s\s+|[^\S ]|^ | \Z", draft.text))
        draft.apply_edits([(start, end, "" if start == 0 or end == size else " ") for start, end in spans])
    return Normalised(draft.text, draft.starts, draft.ends, dict(+draft.tampering))


def _replace_special(draft: _Draft) -> None:
    """Remove invisible characters and fillers; replace quotes, dashes and lone surrogates."""
    # Fillers that show as a gap become spaces, unless they are too dense to separate words.
    num_gaps = len(re.findall(f"[{_GAP_FILLERS}]+", draft.text))
    num_visible = len(re.sub(rf"[\s{_GAP_FILLERS}]+", "", draft.text)) if num_gaps else 0
    edits = []
    for match in _SPECIAL.finditer(draft.text):
        kind, new = match.lastgroup, ""
        if kind == "filler" and num_visible >= 3 * num_gaps and not set(_GAP_FILLERS).isdisjoint(match[0]):
            new = " "
        if kind is None:
            new = _TYPOGRAPHY.get(match[0], "\ufffd")
        elif not _SPELLING.match(draft.text, match.start()):
            draft.tampering[kind] += len(match[0])
        edits.append((*match.span(), new))
    draft.apply_edits(edits)


def _compose(draft: _Draft) -> None:
    """NFKC, chunk by chunk, so that every character keeps the offset of its chunk (UAX #15, section 9)."""
    if unicodedata.is_normalized("NFKC", draft.text):
        return
    draft.tampering["lookalike_form"] += len(_LOOKALIKE_FORMS.findall(draft.text))
    edits = []
    for match in re.finditer(r"[\x00-\x7f]?[^\x00-\x7f]+", draft.text):
        begin, end = match.span()
        edges = [i for i in range(begin + 1, end) if not _continues(draft.text[i])]
        for start, stop in pairwise((begin, *edges, end)):
            chunk = new = draft.text[start:stop]
            if len(chunk) > 64:  # sort the marks of one base here: `unicodedata` uses insertion sort, in O(n²)
                decomposed = "".join(unicodedata.normalize("NFKD", char) for char in chunk)
                runs = groupby(decomposed, key=lambda char: unicodedata.combining(char) > 0)
                new = "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)
            if (new := unicodedata.normalize("NFKC", new)) != chunk:
                edits.append((start, stop, new))
    draft.apply_edits(edits)


@lru_cache(maxsize=4096)
def _continues(char: str) -> bool:
    """Whether a character may compose with the previous one: marks, Hangul vowels and finals, a Kirat Rai vowel."""
    first = unicodedata.normalize("NFKD", char)[0]
    return unicodedata.category(first)[0] == "M" or "\u1160" <= first <= "\u11ff" or first == "\U00016d67"


@cache
def _confusables() -> dict[str, str]:
    """Map letters outside ordinary Latin spelling to the ASCII letter they resemble (UTS #39, confusables.txt).

    The shared prototype of I and l is I here, because letters with this prototype are capitals or have no case.
    """
    table = json.loads(files("confusable_homoglyphs").joinpath("confusables.json").read_text("utf-8"))
    return {
        char["c"]: "I" if letter == "l" else letter
        for letter in ascii_letters
        for char in table.get(letter, ())
        if len(char["c"]) == 1 and char["c"].isalpha() and not _PLAIN.fullmatch(char["c"])
    }


def _fold_confusables(draft: _Draft) -> None:
    """Fold homoglyphs in those words of a Latin document that then have only Latin letters (not words of only α, σ …).

    A document is Latin if 90% of its letters are Latin or homoglyphs: RAID replaces every letter it can, but half the
    letters of Russian or Greek resemble no Latin letter. A quoted foreign word with such letters stays unchanged.
    """
    if latin_fraction(draft.text) < _MIN_LATIN_FRACTION:
        return
    if _fraction(draft.text, lambda char: _is_latin(char) or _fold(char) != char) < _MIN_FOLDED_FRACTION:
        return
    edits = []
    for match in _WORD.finditer(draft.text):
        if match[0].isascii():
            continue
        folded: list[str] = []
        for char in match[0]:
            is_inside = folded and folded[-1].islower()
            folded.append("l" if is_inside and char != "I" == _fold(char) else _fold(char))
        if _PLAIN.fullmatch("".join(folded)) and not re.fullmatch("[ά-ώἀ-\u1fff]+", match[0]):
            pairs = enumerate(zip(match[0], folded, strict=True), match.start())
            edits += [(at, at + 1, new) for at, (old, new) in pairs if old != new]
    draft.tampering["homoglyph"] += len(edits)
    draft.apply_edits(edits)


@lru_cache(maxsize=4096)
def _fold(char: str) -> str:
    decomposed = unicodedata.normalize("NFD", char)
    return unicodedata.normalize("NFC", _confusables().get(decomposed[0], decomposed[0]) + decomposed[1:])


def latin_fraction(text: str) -> float:
    """Fraction of the letters (`str.isalpha`) whose script is Latin; 0.0 without letters."""
    return _fraction(text, _is_latin)


def _fraction(text: str, holds: Callable[[str], bool]) -> float:
    letters = {char: count for char, count in Counter(text).items() if char.isalpha()}
    return sum(count for char, count in letters.items() if holds(char)) / max(1, sum(letters.values()))


def _is_latin(char: str) -> bool:
    return "LATIN" in unicodedata.name(char, "")
