"""Content type of each character of a text: code, tables, quotations, links and references, or prose.

Linear time. Unclear lines count as prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import zip_longest
from string import ascii_letters, digits

import numpy as np
import numpy.typing as npt

TYPES = ("prose", "code", "tables", "quotations", "links", "references", "lost")
PROSE, CODE, TABLES, QUOTATIONS, LINKS, REFERENCES, LOST = range(len(TYPES))

_Mask = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]

_SYMBOLS = r"{}\[\]()<>=;_+*/\\^&~$#@`"
_LETTERS = r"A-Za-z\x80-\U0010ffff"
# Classes of characters, one bit each.
_VISIBLE, _LETTER, _DIGIT, _SYMBOL, _OPERATOR, _PIPE, _COMMA, _LOST = (1 << bit for bit in range(8))
_CALL = re.compile(rf"(?:\(|_(?=[{_LETTERS}0-9]))(?<=[{_LETTERS}0-9].)")  # or an identifier
# Lines that are code in any context.
_CODE = r"""(?x)[ \t]*+(?:
      (?:async\ ++)?def\ \w+\ *\( | class\ \w+\ *(?:\([^()\n]*\)\ *)?[:{] | from\ ++[\w.]+\ ++import\b
      | import\ ++[\w.]+(?:\ ++as\ ++\w+)?;?[ \t]*$ | import\ ++[{*][^\n]*\bfrom\b
      | (?:export\ ++|default\ ++|async\ ++)*function\b\ *\*?\ *\w*\( | (?:const|let|var)\ ++[\w${}\[\], ]{1,80}=
      | (?:public|private|protected|static|inline|extern|void|int|float|double|char|bool)\ ++[^\n;({=]{1,80}[;({=]
      | \#(?:include|define|ifdef|ifndef|endif|pragma|!/) | // | /\* | \*/ | <!-- | -->
      | "[^"\n]*"\ *:(?!\w) | [a-z-]+:\ [^;\n.]{1,60};[ \t]*$
      | (?:\$|[\w.-]+@[\w.-]+:[^\s$\#]*[$\#])\ ++[a-z./]
      | >>>\ (?:\w+(?:\.\w+)*+(?:\ *=|\()|(?:import|from|for|def|class|if|with)\b)
      | \d{4}-\d\d-\d\d[\ T]\d\d:\d\d:\d\d | [A-Z][a-z]{2}\ [\ \d]\d\ \d\d:\d\d:\d\d\ \S  # log records
      | [\d.]{7,15}\ \S{1,40}\ \S{1,40}\ \[\d\d/
    )"""
# Lines that are code, unless the line is all capitals in a text without operators.
_SQL = (
    r"[ \t]*+(?:SELECT\b|INSERT INTO\b|UPDATE \w+ SET\b|DELETE FROM\b|(?:CREATE|ALTER|DROP) (?:TABLE|VIEW|INDEX)\b"
    r"|(?:LEFT|RIGHT|INNER|OUTER|CROSS) JOIN\b|(?:ORDER|GROUP) BY\b|select (?:\*|\w+(?:\.\w+)?,)[^\n]{0,200})"
)
# Lines that are code only between lines of code.
_MAYBE_CODE = (
    r"[ ]{2}|\t|[ ]?(?:\#|--|\*|(?:return|if|elif|else|for|while|try|except|finally|with|yield|raise|pass|break"
    r"|continue|assert|print|end|fi|done|then|do|echo|case|switch|FROM|WHERE|AND|OR|ON|SET|LIMIT|JOIN|VALUES|HAVING"
    r"|UNION)\b)"
)
_LONGEST_GAP = 7  # number of possible code lines between two code lines that still count as code
_TAG = r"[ \t]*+</?[A-Za-z!][^<>\n]*>"
_CELL_WORDS = 8
_MANY_WORDS = 25  # a line this long is code or a row only with many symbols outside formulas, or with many cells
_CODE_WORD = re.compile(rf"(?<!\S)(?!(?=\S*[$\\])\S{{1,39}}(?!\S))[^\s{_SYMBOLS}]*+[{_SYMBOLS}]\S*+")
_FENCE = r"^ {0,3}(?:```++|~~~++(?=[ ]*+[A-Za-z]))[ ]*+([^\n`]*+)$"
_PROSE_FENCES = {"", "text", "txt", "plain", "plaintext", "markdown", "md"}
_LINK = re.compile(r"(?:https?://|www\.)[^\s)\]>]*|\]\([^()\s\]]*\)")
_NUMBERED_REFERENCE = r"[ \t]*+\[\d{1,4}\]:? "
# A reference in APA, Vancouver or MLA style; it counts only if others follow.
_REFERENCE = r"""(?x)[ \t]*+(?:[-*•]\ ++|\(?\d{1,3}[.)]\ *+)?+[^\W\d_][\w'’-]{0,30}(?:
      ,\ [^\W\d_]\.[^\n]{0,200}?\b(?:19|20)\d\d[a-z]?\b | \ [A-Z]{1,3}[,.][^\n]{0,300}?\b(?:19|20)\d\d;
      | ,\ [^\n]{0,300}?\b(?:pp?|vol|no)\.\ ?\d
    )"""
_MIN_REFERENCES = 3
_REFERENCE_LIST = re.compile(f"r(?:s{{0,3}}r){{{_MIN_REFERENCES - 1},}}s?")  # including short continuation lines
_SHORT_LINE = 120  # visible characters
# Two quotes in a paragraph without another between them. Adjacent characters distinguish opening from closing quotes.
_QUOTATION = re.compile(
    r"""(?:“|(?<![^\s(\[{<–—-])["„«»](?=\S))(?P<quoted>[^"“”„«»\n]*+(?:\n(?![^\S\n]*+\n)[^"“”„«»\n]*+)*+)"""
    r"""(?:”|(?<=[^\s(\[{<])["“„«»](?!\w))"""
)
_MIN_BLOCK_WORDS = 40  # of a block quotation (APA 7, 8.27); shorter quotations are dialogue, terms and short quotes


class _Lines:
    """The non-blank lines of a text. All arrays have shape (num_lines,).

    `begin_with` and `end_with`: mask of the lines whose first or last visible character is one of the given ones.
    """

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", " \n").replace("\r", "\n") + "\n"  # keeps all offsets
        codes = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), np.uint32)
        self.classes = _classes()[codes]
        self.visible = self.classes & _VISIBLE > 0
        ends = np.flatnonzero(codes == ord("\n")) + 1
        starts = np.concatenate(([0], ends[:-1]))
        filled = np.add.reduceat(self.visible, starts, dtype=np.int64) > 0
        self.starts, ends = starts[filled], ends[filled]
        places = np.flatnonzero(self.visible)
        self.first = [self.text[i] for i in places[np.searchsorted(places, self.starts)].tolist()]
        self.last = [self.text[i] for i in places[np.searchsorted(places, ends) - 1].tolist()]
        self.size = self.sums(self.visible)
        self.words = self.sums(self.visible & ~np.concatenate(([False], self.visible[:-1])))

    def sums(self, mask: _Mask) -> _Ints:
        """Number of characters in each line that a mask of shape (len(text),) selects."""
        return np.add.reduceat(mask, self.starts, dtype=np.int64)

    def chars(self, kind: int) -> _Ints:
        """Number of characters of a class in each line."""
        return self.sums(self.classes & kind > 0)

    def hits(self, pattern: str | re.Pattern[str]) -> _Ints:
        """Number of matches of a pattern that begin on each line."""
        return self.count((match.start(), match.start() + 1) for match in re.finditer(pattern, self.text))

    def count(self, spans: Iterable[tuple[int, int]]) -> _Ints:
        """Number of characters in each line that are in the given spans, which do not cross lines."""
        if not (listed := list(spans)):
            return np.zeros_like(self.starts)
        starts, ends = np.array(listed, np.int64).T
        line = (np.searchsorted(self.starts, starts, side="right") - 1).clip(0)
        return np.bincount(line, ends - starts, len(self.starts)).astype(np.int64)

    def match(self, pattern: str) -> _Mask:
        """Mask of the lines where a pattern matches at the start."""
        match = re.compile(pattern, re.MULTILINE).match
        return np.array([match(self.text, start) is not None for start in self.starts.tolist()])

    def begin_with(self, chars: str) -> _Mask:
        return np.array([char in chars for char in self.first])

    def end_with(self, chars: str) -> _Mask:
        return np.array([char in chars for char in self.last])


def content_types(text: str) -> tuple[npt.NDArray[np.uint8], _Mask]:
    """The index in `TYPES` of each character of a text, as submitted, and whether it is visible; shapes (len(text),).

    Quotations are lines after `>`, and at least 40 words in double quotes; references are entries of a bibliography;
    lost characters are U+FFFD and lone surrogates. Everything that is not recognised is prose.
    """
    if not text or text.isspace():
        return np.zeros(len(text), np.uint8), np.zeros(len(text), np.bool_)
    lines = _Lines(text)
    masks = {CODE: _code(lines), QUOTATIONS: lines.begin_with(">"), TABLES: _tables(lines)}
    masks[REFERENCES] = _references(lines)
    line_types = np.select([*masks.values()], [*masks], PROSE).astype(np.uint8)
    types = np.repeat(line_types, np.diff(lines.starts, append=len(lines.text)))
    types = np.concatenate((np.zeros(lines.starts[0], np.uint8), types))
    for kind, start, end in _inline(lines.text):
        span = types[start:end]
        span[span == PROSE] = kind
    types[lines.classes & _LOST > 0] = LOST
    return types[:-1], lines.visible[:-1]


@cache
def _classes() -> npt.NDArray[np.uint8]:
    """The character classes of all code points, shape (0x110000,)."""
    classes = np.full(0x110000, _VISIBLE, np.uint8)
    classes[[code for code in range(0x3001) if chr(code).isspace()]] = 0
    classes[0x80:] |= _LETTER
    classes[0xD800:0xE000] |= _LOST
    members = {_LETTER: ascii_letters, _DIGIT: digits, _SYMBOL: r"{}[]()<>=;_+*/\^&~$#@`", _OPERATOR: r"{}<>=;\^~"}
    for kind, chars in (members | {_PIPE: "|", _COMMA: ",", _LOST: "\ufffd"}).items():
        classes[[ord(char) for char in chars]] |= kind
    return classes


def _inline(text: str) -> Iterator[tuple[int, int, int]]:
    """Type, start and end of links and block quotations; quotes around the whole text do not count."""
    if "://" in text or "www." in text or "](" in text:
        yield from ((LINKS, *match.span()) for match in _LINK.finditer(text))
    if re.search('["“”„«»]', text):
        whole = text.strip()
        for match in _QUOTATION.finditer(text):
            if len(match["quoted"].split()) >= _MIN_BLOCK_WORDS and match[0] != whole:
                yield QUOTATIONS, *match.span()


def _code(lines: _Lines) -> _Mask:
    """Mask of the lines that are code."""
    stripped = lines.text.strip()
    if stripped[0] + stripped[-1] in ("{}", "[]") and re.search(r'"[ \t]*+:', stripped):
        return np.ones_like(lines.size, np.bool_)
    size, symbols, operators = lines.size, lines.chars(_SYMBOL), lines.chars(_OPERATOR)
    marks = operators + lines.hits(_CALL)
    dense = ((marks >= 2) & (symbols >= 0.08 * size)) | ((marks >= 1) & (symbols >= 0.12 * size))
    more = marks > lines.hits(";+")  # a poem ends its lines with semicolons too
    quoted, sql = lines.begin_with(">"), lines.match(_SQL)
    if sql.any() and not operators.any():
        sql &= lines.hits(r"[a-z\x80-\U0010ffff]+") > 0
    strong = ((dense | lines.end_with(";")) & more) | lines.end_with("{}")
    strong &= ~(lines.begin_with("|") & lines.end_with("|")) & ~quoted
    strong |= lines.match(_CODE) | sql
    if (long := strong & (lines.words >= _MANY_WORDS)).any():
        code_words = lines.count(match.span() for match in _CODE_WORD.finditer(lines.text))
        strong &= ~long | (code_words >= 0.4 * size)
    strong |= lines.match(_TAG) & lines.end_with(">")
    if not strong.any():
        return _fenced(lines, strong)
    weak = (lines.match(_MAYBE_CODE) | (size < 25) | lines.end_with(";,{:)")) & ~quoted
    letters = "".join(np.where(strong, "c", np.where(weak, "w", "p")))
    filled = re.sub(rf"(?<=c)w{{1,{_LONGEST_GAP}}}(?=c)", lambda gap: "c" * len(gap[0]), letters)
    quotes = lines.hits('"""|\'{3}')
    in_docstring = ((np.cumsum(quotes) - quotes) % 2 == 1) | (quotes > 0)
    docstrings: _Mask = in_docstring & (quotes.sum() > 1)
    code: _Mask = np.array([*filled]) == "c"
    return code | docstrings | _fenced(lines, strong)


def _fenced(lines: _Lines, strong: _Mask) -> _Mask:
    """Lines in fenced code blocks. A fence without a programming language may contain prose."""
    fenced = np.zeros(len(strong), np.bool_)
    if "```" not in lines.text and "~~~" not in lines.text:
        return fenced
    letters, symbols = lines.chars(_LETTER), lines.chars(_SYMBOL)
    sentence = (lines.words >= 8) & (letters > 0.85 * lines.size) & (symbols < 0.04 * lines.size)
    languages = re.findall(_FENCE, lines.text, re.MULTILINE)
    fences = np.flatnonzero(lines.match(_FENCE)).tolist()
    for language, start, end in zip_longest(languages[::2], fences[::2], fences[1::2]):
        block = slice(start, None if end is None else end + 1)
        if language.strip().lower() not in _PROSE_FENCES:
            fenced[block] = True
        elif strong[block].any():
            fenced[block] = ~sentence[block]
    return fenced


def _tables(lines: _Lines) -> _Mask:
    """Mask of the lines that are table rows."""
    size, num_digits, none = lines.size, lines.chars(_DIGIT), np.zeros_like(lines.size)
    rows: _Mask = (num_digits >= 0.4 * size) & (lines.chars(_LETTER) <= num_digits)
    ends = lines.end_with(".!?,;:")
    if "|" in lines.text:
        pipes, bars = lines.chars(_PIPE), lines.hits(r"(?<!\S)\|(?!\S)")
        framed = lines.begin_with("|+") & lines.end_with("|+") & (size > 2)
        short = lines.words < _MANY_WORDS  # in a long line, absolute values and alternatives are not cells
        piped = (pipes >= 2) & (size < 100 * (pipes + 1)) & (short | (lines.words <= _CELL_WORDS * bars))
        rows |= framed | piped | _runs(pipes, (pipes >= 1) & (size < 200), 3)
    if "\t" in lines.text or re.search(r"[^\S\n]{2}", lines.text):
        # A column gap is a tab, or two spaces that do not follow the end of a sentence.
        gaps = lines.hits(r"[^\s.!?,;:](?=(?:\t|[^\S\n]{2})[^\S\n]*\S)")
        tabs = lines.hits(r"(?<![^\S\n])[^\S\n\t]*+\t[^\S\n]*+(?=\S)")  # blank runs with a tab, each once: linear time
        columns = (gaps >= 2) & (size < 30 * (gaps + 1))
        pairs = (gaps == 1) & (size < 60) & (tabs > 0) & ~ends
        rows |= _runs(gaps, columns, 3) | _runs(gaps, pairs, 3)
    commas, tight = lines.chars(_COMMA), lines.hits(r"[,;](?=\S)")  # no space after a comma, as in CSV
    separated = (tight >= 2) & (size < 25 * (tight + 1)) & (tight >= 0.5 * commas) & (lines.words <= 3 * (tight + 1))
    spaced = (commas >= 2) & (2 * lines.words <= 5 * (commas + 1)) & ~ends
    return rows | _runs(none, separated, 3) | _runs(commas, spaced, 4)


def _references(lines: _Lines) -> _Mask:
    """Mask of the lines that are entries of a bibliography."""
    numbered = lines.match(_NUMBERED_REFERENCE)
    if len(numbered) < _MIN_REFERENCES:
        return numbered
    letters = "".join(np.where(lines.match(_REFERENCE), "r", np.where(lines.size < _SHORT_LINE, "s", "p")))
    listed = np.zeros_like(numbered)
    for match in _REFERENCE_LIST.finditer(letters):
        listed[slice(*match.span())] = True
    return numbered | listed


def _runs(key: _Ints, mask: _Mask, least: int) -> _Mask:
    """Mask of the lines of `mask` that are in a run of at least `least` lines with the same key."""
    if np.count_nonzero(mask) < least:
        return np.zeros_like(mask)
    new = np.ones(len(key), np.bool_)
    new[1:] = (key[1:] != key[:-1]) | ~mask[1:] | ~mask[:-1]
    run = np.cumsum(new) - 1
    long: _Mask = np.bincount(run)[run] >= least
    return mask & long
