"""Content type of a text: fractions of code, tables, quotations, links and references, as opposed to prose.

Linear time. Unclear lines count as prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Mask = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]

# Above these fractions a text is out of scope. Fiction has much dialogue, so the limit of quotations is higher.
LIMITS = {"code": 0.5, "tables": 0.5, "quotations": 0.6}
MAX_NON_PROSE = 0.5  # of code, tables, links and references together
MAX_WITH_QUOTATIONS = 0.6

_LETTER, _LOWER, _DIGIT, _SYMBOL, _OPERATOR, _WORD, _SPACE = 1, 2, 4, 8, 16, 32, 64
_BEYOND = 128  # every character beyond ASCII


def _classes() -> npt.NDArray[np.uint8]:
    """Class bits of each ASCII character; the last entry is for all other characters."""
    table = np.zeros(_BEYOND + 1, np.uint8)
    for code in range(_BEYOND):
        char = chr(code)
        table[code] |= (_LETTER | _WORD) * char.isalpha() | _LOWER * char.islower() | (_DIGIT | _WORD) * char.isdigit()
        table[code] |= _SYMBOL * (char in "{}[]()<>=;_+*/\\^&~$#@`") | _OPERATOR * (char in "{}<>=;\\^~")
        table[code] |= _SPACE * char.isspace() | _WORD * (char == "_")
    table[_BEYOND] = _LETTER | _LOWER | _WORD
    return table


_CLASSES = _classes()
_DASHES = [ord(char) for char in "-–—"]
_OPENERS = [ord(char) for char in "([{<-–—"]
_SENTENCE_END = [ord(char) for char in ".!?,;:"]
_QUOTES = [ord(char) for char in '"“”„«»']
_LONG_QUOTATION = 6  # words; shorter ones are terms and names

# Lines that are code in any context.
_CODE = re.compile(
    r"""^[ \t]*+(?:
      (?:async\ ++)?def\ \w+\ *\( | class\ \w+\ *(?:\([^()\n]*\)\ *)?[:{] | from\ ++[\w.]+\ ++import\b
      | import\ ++[\w.]+(?:\ ++as\ ++\w+)?;?[ \t]*$ | import\ ++[{*][^\n]*\bfrom\b
      | (?:export\ ++|default\ ++|async\ ++)*function\b\ *\*?\ *\w*\( | (?:const|let|var)\ ++[\w${}\[\], ]{1,80}=
      | (?:public|private|protected|static|inline|extern|void|int|float|double|char|bool)\ ++[^\n;({=]{1,80}[;({=]
      | \#(?:include|define|ifdef|ifndef|endif|pragma|!/) | // | /\* | \*/ | <!-- | -->
      | "[^"\n]*"\ *:(?!\w) | [a-z-]+:\ [^;\n.]{1,60};[ \t]*$
      | (?:\$|[\w.-]+@[\w.-]+:[^\s$\#]*[$\#])\ ++[a-z./]
      | >>>\ (?:\w+(?:\.\w+)*+(?:\ *=|\()|(?:import|from|for|def|class|if|with)\b)
    )""",
    re.MULTILINE | re.VERBOSE,
)
# Code, unless the line is all capitals in a text without operators.
_SQL = re.compile(
    r"^[ \t]*+(?:SELECT\b|INSERT INTO\b|UPDATE \w+ SET\b|DELETE FROM\b|(?:CREATE|ALTER|DROP) (?:TABLE|VIEW|INDEX)\b"
    r"|(?:LEFT|RIGHT|INNER|OUTER|CROSS) JOIN\b|(?:ORDER|GROUP) BY\b|select (?:\*|\w+(?:\.\w+)?,)[^\n]{0,200})",
    re.MULTILINE,
)
# Lines that are code only between lines of code.
_MAYBE_CODE = re.compile(
    r"^(?:[ ]{2}|\t|[ ]?(?:\#|--|\*|(?:return|if|elif|else|for|while|try|except|finally|with|yield|raise|pass|break"
    r"|continue|assert|print|end|fi|done|then|do|echo|case|switch|FROM|WHERE|AND|OR|ON|SET|LIMIT|JOIN|VALUES|HAVING"
    r"|UNION)\b))",
    re.MULTILINE,
)
_TAG = re.compile(r"^[ \t]*+</?[A-Za-z!][^<>\n]*>", re.MULTILINE)
_MANY_WORDS = 25  # in a line: then it is code only if much of it is in words with symbols that are no formulas
_LONG_WORD = 40
_FENCE = re.compile(r"^ {0,3}(?:```++|~~~++(?=[ ]*+[A-Za-z]))[ ]*+([^\n`]*+)$", re.MULTILINE)
_PROSE_FENCES = {"", "text", "txt", "plain", "plaintext", "markdown", "md"}
_TRIPLE = re.compile("\"\"\"|'''")
_LINK = re.compile(r"(?:https?://|www\.)[^\s)\]>]*|\]\([^()\s\]]*\)")
_REFERENCE = re.compile(r"^[ \t]*+\[\d{1,4}\]:? ", re.MULTILINE)
_CLOSED = {"{": "}", "[": "]"}
_JSON_KEY = re.compile(r'"[ \t]*+:')
_LONGEST_GAP = 8  # lines between two lines of code that may be code too


def _are(points: npt.NDArray[np.uint32], these: Iterable[int]) -> _Mask:
    """Which code points are one of a few; much faster than `np.isin`."""
    found = np.zeros(points.shape, np.bool_)
    for code in these:
        found |= points == code
    return found


@dataclass(frozen=True, eq=False)
class _Lines:
    """The lines of a text that are not blank, as arrays of shape (num_lines,) unless noted."""

    text: str  # with `\n` line breaks, one at the end
    code_points: npt.NDArray[np.uint32]  # of `text`, shape (len(text),)
    bits: npt.NDArray[np.uint8]  # character classes, shape (len(text),)
    starts: _Ints  # of all lines, also blank ones
    kept: _Mask  # which of all lines are not blank
    size: _Ints  # characters without white space
    first: _Ints  # position of the first one
    last: _Ints  # position of the last one
    words: _Ints  # that begin on the line

    @classmethod
    def from_text(cls, text: str) -> _Lines:
        text = text.replace("\r\n", "\n").replace("\r", "\n") + "\n"
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        bits = _CLASSES[np.minimum(code_points, _BEYOND)]
        ends = np.flatnonzero(code_points == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        visible = np.flatnonzero((bits & _SPACE) == 0)
        before, after = np.searchsorted(visible, starts), np.searchsorted(visible, ends)
        kept = after > before
        words = np.add.reduceat(_word_starts(bits), starts, dtype=np.int64)[kept]
        size, first, last = (after - before)[kept], visible[before[kept]], visible[after[kept] - 1]
        return cls(text, code_points, bits, starts, kept, size, first, last, words)

    def count(self, mask: _Mask) -> _Ints:
        """Number of characters of each line that a mask marks."""
        return np.add.reduceat(mask, self.starts, dtype=np.int64)[self.kept]

    def having(self, bit: int) -> _Ints:
        """Number of characters of each line in a class."""
        return self.count((self.bits & bit) > 0)

    def are(self, chars: str) -> _Mask:
        """Mask of the characters that are one of these."""
        return _are(self.code_points, map(ord, chars))

    def begin_with(self, chars: str) -> _Mask:
        """Mask of the lines that begin with one of these."""
        return _are(self.code_points[self.first], map(ord, chars))

    def end_with(self, chars: str) -> _Mask:
        """Mask of the lines that end with one of these."""
        return _are(self.code_points[self.last], map(ord, chars))

    def match(self, pattern: re.Pattern[str], needs: str = "") -> _Mask:
        """Mask of the lines where a pattern matches at the start; `needs` is a character that all matches contain."""
        hits = np.zeros(len(self.starts), np.bool_)
        if needs not in self.text:
            return hits[self.kept]
        found = np.fromiter((match.start() for match in pattern.finditer(self.text)), np.int64)
        hits[np.searchsorted(self.starts, found, side="right") - 1] = True
        return hits[self.kept]


def content_fractions(text: str) -> dict[str, float]:
    """Fractions of the characters of a text that are not its author's prose.

    Args:
        text: as submitted: line breaks matter. White space is not counted.

    Returns:
        Fractions of `code`, `tables`, `quotations` (lines after `>`, and more than six words in double quotes) and
        `other` (links and lists of references). No character counts twice.
    """
    if not text or text.isspace():
        return dict.fromkeys(("code", "tables", "quotations", "other"), 0.0)
    lines = _Lines.from_text(text)
    quoted = lines.begin_with(">")
    code = _code(lines)
    quoted &= ~code
    tables = _tables(lines) & ~code & ~quoted
    links, references = _links(lines), lines.match(_REFERENCE, "[")
    other = (references | (2 * links > lines.size)) & ~code & ~quoted & ~tables
    inline = np.minimum(_inline_quotations(lines), lines.size)
    inline[code | quoted | tables | other] = 0
    total = int(lines.size.sum())
    counts = {
        "code": lines.size[code].sum(),
        "tables": lines.size[tables].sum(),
        "quotations": lines.size[quoted].sum() + inline.sum(),
        "other": lines.size[other].sum(),
    }
    return {kind: float(count) / total for kind, count in counts.items()}


def dominant_non_prose(text: str) -> str | None:
    """Main kind of content of a text that is not prose.

    Args:
        text: as submitted.

    Returns:
        `mostly_code`, `mostly_tables` or `mostly_quotations`; `not_prose` for links and references, or for several
        kinds together; None for prose and for an empty text.
    """
    fractions = content_fractions(text)
    for kind, limit in LIMITS.items():
        if fractions[kind] > limit:
            return f"mostly_{kind}"
    total = sum(fractions.values())
    is_other = total - fractions["quotations"] > MAX_NON_PROSE or total > MAX_WITH_QUOTATIONS
    return "not_prose" if is_other else None


def _code(lines: _Lines) -> _Mask:
    """Mask of the lines that are code."""
    stripped = lines.text.strip()
    if _CLOSED.get(stripped[0]) == stripped[-1] and _JSON_KEY.search(stripped):
        return np.ones(len(lines.size), np.bool_)
    symbols, operators = lines.having(_SYMBOL), lines.having(_OPERATOR)
    marks = operators + lines.count(_calls(lines))
    dense = ((marks >= 2) & (symbols >= 0.08 * lines.size)) | ((marks >= 1) & (symbols >= 0.12 * lines.size))
    more = marks > lines.count(lines.are(";"))  # a poem ends its lines with semicolons too
    quoted, upper = lines.begin_with(">"), lines.having(_LOWER) == 0
    strong = ((dense | lines.end_with(";")) & more) | lines.end_with("{}")
    strong &= ~(lines.begin_with("|") & lines.end_with("|")) & ~quoted
    strong |= lines.match(_CODE) | (lines.match(_SQL) & (~upper | (operators > 0).any()))
    strong &= (lines.words < _MANY_WORDS) | (lines.count(_code_words(lines)) >= 0.4 * lines.size)
    strong |= lines.match(_TAG, "<") & lines.end_with(">")
    weak = lines.match(_MAYBE_CODE) | (lines.size < 25) | lines.end_with(";,{:)")
    return _fill(strong, weak & ~quoted) | _fenced(lines, strong) | _docstrings(lines, strong)


def _code_words(lines: _Lines) -> _Mask:
    """Mask of words with a symbol that are no formula (short, with a `$` or a backslash)."""
    space = (lines.bits & _SPACE) > 0
    starts = np.flatnonzero(_word_starts(lines.bits))
    symbol = np.maximum.reduceat((lines.bits & _SYMBOL) > 0, starts)
    lengths = np.diff(starts, append=len(space))
    formula = np.maximum.reduceat(lines.are("$\\"), starts) & (lengths < _LONG_WORD)
    marks = np.zeros(len(space), np.bool_)
    marks[starts[0] :] = np.repeat(symbol & ~formula, lengths)
    return marks & ~space


def _calls(lines: _Lines) -> _Mask:
    """Mask of `(` directly after a word and `_` inside one: calls and identifiers."""
    word = (lines.bits & (_LETTER | _DIGIT)) > 0
    marks = np.zeros(len(word), np.bool_)
    marks[1:] = lines.are("(")[1:] & word[:-1]
    marks[1:-1] |= lines.are("_")[1:-1] & word[:-2] & word[2:]
    return marks


def _fill(strong: _Mask, weak: _Mask) -> _Mask:
    """Lines of code, and possible code between two of them."""
    places = np.arange(len(strong))
    before = np.maximum.accumulate(np.where(strong, places, -1))
    after = np.minimum.accumulate(np.where(strong, places, len(strong))[::-1])[::-1]
    prose = np.cumsum(~strong & ~weak)
    inside = (before >= 0) & (after < len(strong)) & (after - before <= _LONGEST_GAP)
    same: _Mask = prose[np.maximum(before, 0)] == prose[np.minimum(after, len(strong) - 1)]
    return strong | (inside & same)


def _fenced(lines: _Lines, strong: _Mask) -> _Mask:
    """Lines in fenced code blocks. A fence without a programming language may contain prose."""
    fences = list(_FENCE.finditer(lines.text))
    if not fences:
        return np.zeros(len(strong), np.bool_)
    plain = np.array([fence[1].strip().lower() in _PROSE_FENCES for fence in fences])
    at, lengths = np.array([fence.start() for fence in fences]), lines.size
    begins = lines.starts[lines.kept]
    block = np.searchsorted(at, begins, side="right") - 1
    opened = (block >= 0) & (block % 2 == 0)  # every other fence closes
    has_code = np.bincount(block[opened], strong[opened], len(fences)) > 0
    is_code = ~plain | has_code
    sentence = (lines.words >= 8) & (lines.having(_LETTER) > 0.85 * lengths) & (lines.having(_SYMBOL) < 0.04 * lengths)
    inside: _Mask = opened & is_code[block] & ~(sentence & plain[block])
    fence = (block >= 0) & (at[np.maximum(block, 0)] == begins)
    found: _Mask = inside | (fence & is_code[np.maximum(block, 0) // 2 * 2])
    return found


def _docstrings(lines: _Lines, strong: _Mask) -> _Mask:
    """Lines between triple quotes, in a text with code."""
    marks = np.fromiter((match.start() for match in _TRIPLE.finditer(lines.text)), np.int64)
    if len(marks) < 2 or not strong.any():
        return np.zeros(len(strong), np.bool_)
    opened = np.searchsorted(marks, lines.first) % 2 == 1
    inside: _Mask = opened | (np.searchsorted(marks, lines.first) != np.searchsorted(marks, lines.last))
    return inside


def _tables(lines: _Lines) -> _Mask:
    """Mask of the lines that are table rows."""
    size, letters, digits = lines.size, lines.having(_LETTER), lines.having(_DIGIT)
    numbers = (digits >= 0.4 * size) & (letters <= digits)
    pipes = lines.count(lines.are("|"))
    framed = lines.begin_with("|+") & lines.end_with("|+") & (size > 2)
    piped = ((pipes >= 2) & (size < 100 * (pipes + 1))) | framed
    gaps, tight, commas = lines.count(_gaps(lines)), lines.count(_tight(lines)), lines.count(lines.are(","))
    short, ends = size < 60, lines.end_with(".!?,;:")
    columns = (gaps >= 2) & (size < 30 * (gaps + 1))
    pairs = (gaps == 1) & short & (lines.count(lines.are("\t")) > 0) & ~ends
    separated = (tight >= 2) & (size < 25 * (tight + 1)) & (tight >= 0.5 * commas) & (lines.words <= 3 * (tight + 1))
    spaced = (commas >= 2) & (2 * lines.words <= 5 * (commas + 1)) & ~ends
    rows = numbers | piped
    rows |= _runs(gaps, columns, 3) | _runs(gaps, pairs, 3) | _runs(np.zeros_like(tight), separated, 3)
    return rows | _runs(pipes, (pipes >= 1) & (size < 200), 3) | _runs(commas, spaced, 4)


def _gaps(lines: _Lines) -> _Mask:
    """Mask of the characters before a column gap: a tab, or two spaces not after the end of a sentence."""
    points, space = lines.code_points, (lines.bits & _SPACE) > 0
    marks = np.zeros(len(points), np.bool_)
    marks[:-2] = ~space[:-2] & ((points[1:-1] == ord("\t")) | (space[1:-1] & space[2:]))
    marks[lines.last] = False
    return marks & ~_are(points, _SENTENCE_END)


def _tight(lines: _Lines) -> _Mask:
    """Mask of commas and semicolons without a space after them, as in CSV."""
    marks = lines.are(",;")
    marks[:-1] &= (lines.bits[1:] & _SPACE) == 0
    return marks


def _runs(key: _Ints, mask: _Mask, least: int) -> _Mask:
    """Lines of a mask that are in a run of at least `least` lines with the same key."""
    if not mask.any():
        return mask
    new = np.ones(len(key), np.bool_)
    new[1:] = (key[1:] != key[:-1]) | ~mask[1:] | ~mask[:-1]
    run = np.cumsum(new) - 1
    long: _Mask = np.bincount(run)[run] >= least
    return mask & long


def _links(lines: _Lines) -> _Ints:
    """Number of characters in links on each line."""
    steps = np.zeros(len(lines.code_points) + 1, np.int8)
    for match in _LINK.finditer(lines.text):
        steps[match.start()] += 1
        steps[match.end()] -= 1
    return lines.count(np.cumsum(steps[:-1], dtype=np.int32) > 0)


def _word_starts(bits: npt.NDArray[np.uint8]) -> _Mask:
    space = (bits & _SPACE) > 0
    starts = ~space
    starts[1:] &= space[:-1]
    return starts


def _inline_quotations(lines: _Lines) -> _Ints:
    """Number of characters of each line in long quotations within a paragraph.

    Adjacent characters tell opening from closing quotes. A pair of quotes around the whole text does not count.
    """
    points, space = lines.code_points, (lines.bits & _SPACE) > 0
    at = np.flatnonzero(_are(points, _QUOTES))
    if len(at) < 2:
        return np.zeros(len(lines.size), np.int64)
    before, after = np.maximum(at - 1, 0), at + 1
    free = (at == 0) | space[before] | _are(points[before], _OPENERS)
    opening = ((free & ~space[after]) | (points[at] == ord("“"))) & (points[at] != ord("”"))
    word_before = ~free | (_are(points[before], _DASHES) & (at > 0))
    ends_word = word_before & ((lines.bits[after] & _WORD) == 0)
    closing = ends_word | (points[at] == ord("”"))
    paragraph = np.searchsorted(np.flatnonzero(_blank_breaks(lines)), at)
    words = np.cumsum(_word_starts(lines.bits))[at]
    paired = opening[:-1] & closing[1:] & (paragraph[1:] == paragraph[:-1])
    paired &= words[1:] - words[:-1] >= _LONG_QUOTATION  # the first word begins at the quote itself
    paired &= ~((at[:-1] == lines.first[0]) & (at[1:] == lines.last[-1]))
    paired[1:] &= ~paired[:-1]
    steps = np.zeros(len(points) + 1, np.int8)
    steps[at[:-1][paired]] += 1
    steps[at[1:][paired] + 1] -= 1
    return lines.count((np.cumsum(steps[:-1], dtype=np.int32) > 0) & ~space)


def _blank_breaks(lines: _Lines) -> _Mask:
    """Mask of the starts of blank lines."""
    marks = np.zeros(len(lines.code_points), np.bool_)
    marks[lines.starts[~lines.kept]] = True
    return marks
