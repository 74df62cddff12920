"""Content type of a text: fractions of code, tables, quotations, links and references, as opposed to prose.

Linear time. Unclear lines count as prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

_Mask = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]

# Above these fractions a text is out of scope. Fiction has much dialogue, so the limit of quotations is higher.
LIMITS = {"code": 0.5, "tables": 0.5, "quotations": 0.6}
MAX_NON_PROSE = 0.5  # of code, tables, links and references together
MAX_WITH_QUOTATIONS = 0.6

_SYMBOLS = r"{}\[\]()<>=;_+*/\\^&~$#@`"
_LETTERS = r"A-Za-z\x80-\U0010ffff"
_CALL = rf"(?:\(|_(?=[{_LETTERS}0-9]))(?<=[{_LETTERS}0-9].)"  # or an identifier
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
    )"""
# Code, unless the line is all capitals in a text without operators.
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
_LONGEST_GAP = 7  # lines between two lines of code that may be code too
_TAG = r"[ \t]*+</?[A-Za-z!][^<>\n]*>"
_MANY_WORDS = 25  # in a line: then it is code only if much of it is in words with symbols that are not formulas
_CODE_WORD = rf"(?<!\S)(?!(?=\S*[$\\])\S{{1,39}}(?!\S))[^\s{_SYMBOLS}]*+[{_SYMBOLS}]\S*+"
_FENCE = r"^ {0,3}(?:```++|~~~++(?=[ ]*+[A-Za-z]))[ ]*+([^\n`]*+)$"
_PROSE_FENCES = {"", "text", "txt", "plain", "plaintext", "markdown", "md"}
_LINK = r"(?:https?://|www\.)[^\s)\]>]*|\]\([^()\s\]]*\)"
# Two quotes in a paragraph without another one between them. Adjacent characters tell opening from closing quotes.
_QUOTATION = re.compile(
    r"""(?:“|(?<![^\s(\[{<–—-])["„«»](?=\S))(?P<quoted>[^"“”„«»\n]*+(?:\n(?![^\S\n]*+\n)[^"“”„«»\n]*+)*+)"""
    r"""(?:”|(?<=[^\s(\[{<])["“„«»](?!\w))"""
)
_MANY_QUOTED_WORDS = 6  # up to these, quotes mark terms and names


class _Lines:
    """The lines of a text that are not blank. All arrays have the shape (num_lines,).

    `begin_with` and `end_with`: mask of the lines whose first or last visible character is one of these.
    """

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n").replace("\r", "\n") + "\n"
        matches = [*re.finditer(r"^.*\S", self.text, re.MULTILINE)]
        self.starts = np.array([match.start() for match in matches])
        self.first, self.last = [match[0].lstrip()[0] for match in matches], [match[0][-1] for match in matches]
        self.size, self.words = self.chars(r"\S+"), self.hits(r"\S+")
        self.letters, self.symbols = self.chars(f"[{_LETTERS}]+"), self.chars(rf"[{_SYMBOLS}]+")

    def chars(self, pattern: str) -> _Ints:
        """Number of characters of each line in matches of a pattern."""
        return self.count(match.span() for match in re.finditer(pattern, self.text, re.MULTILINE))

    def hits(self, pattern: str) -> _Ints:
        """Number of matches of a pattern that begin on each line."""
        return self.count((match.start(), match.start() + 1) for match in re.finditer(pattern, self.text, re.MULTILINE))

    def match(self, pattern: str) -> _Mask:
        """Mask of the lines where a pattern matches at the start."""
        match = re.compile(pattern, re.MULTILINE).match
        return np.array([match(self.text, start) is not None for start in self.starts.tolist()])

    def begin_with(self, chars: str) -> _Mask:
        return np.array([char in chars for char in self.first])

    def end_with(self, chars: str) -> _Mask:
        return np.array([char in chars for char in self.last])

    def count(self, spans: Iterable[tuple[int, int]]) -> _Ints:
        """Number of characters of each line in spans that do not cross lines."""
        starts, ends = np.array([*spans], np.int64).reshape(-1, 2).T
        line = (np.searchsorted(self.starts, starts, side="right") - 1).clip(0)
        return np.bincount(line, ends - starts, len(self.starts)).astype(np.int64)


def content_fractions(text: str) -> dict[str, float]:
    """Fractions of the visible characters of a text, as submitted, that are not its author's prose.

    They are `code`, `tables`, `quotations` (lines after `>`, and more than six words in double quotes) and `other`
    (links and lists of references). No character counts twice.
    """
    if not text or text.isspace():
        return dict.fromkeys(("code", "tables", "quotations", "other"), 0.0)
    lines = _Lines(text)
    code = _code(lines)
    quoted = lines.begin_with(">") & ~code
    tables = _tables(lines) & ~code & ~quoted
    other = lines.match(r"[ \t]*+\[\d{1,4}\]:? ") | (2 * lines.chars(_LINK) > lines.size)
    other &= ~code & ~quoted & ~tables
    whole, word, spans = lines.text.strip(), re.compile(r"\S+"), []
    for match in _QUOTATION.finditer(lines.text):  # quotes around the whole text do not count
        if len(match["quoted"].split()) > _MANY_QUOTED_WORDS and match[0] != whole:
            spans += [quoted_word.span() for quoted_word in word.finditer(lines.text, *match.span())]
    inline = np.where(code | quoted | tables | other, 0, lines.count(spans))
    masks = {"code": code, "tables": tables, "quotations": quoted, "other": other}
    counts = {kind: int(lines.size[mask].sum()) for kind, mask in masks.items()}
    counts["quotations"] += int(inline.sum())
    return {kind: count / int(lines.size.sum()) for kind, count in counts.items()}


def dominant_non_prose(text: str) -> str | None:
    """Main kind of content of a text, as submitted, that is not prose; None for prose and for an empty text.

    One of `mostly_code`, `mostly_tables`, `mostly_quotations`; `not_prose` for links and references, or a mixture.
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
    if stripped[0] + stripped[-1] in ("{}", "[]") and re.search(r'"[ \t]*+:', stripped):
        return np.ones_like(lines.size, np.bool_)
    size, symbols, operators = lines.size, lines.symbols, lines.chars(r"[{}<>=;\\^~]+")
    marks = operators + lines.hits(_CALL)
    dense = ((marks >= 2) & (symbols >= 0.08 * size)) | ((marks >= 1) & (symbols >= 0.12 * size))
    more = marks > lines.chars(";+")  # a poem ends its lines with semicolons too
    quoted, sql = lines.begin_with(">"), lines.match(_SQL)
    if sql.any() and not operators.any():
        sql &= lines.hits(r"[a-z\x80-\U0010ffff]+") > 0
    strong = ((dense | lines.end_with(";")) & more) | lines.end_with("{}")
    strong &= ~(lines.begin_with("|") & lines.end_with("|")) & ~quoted
    strong |= lines.match(_CODE) | sql
    if (long := strong & (lines.words >= _MANY_WORDS)).any():
        strong &= ~long | (lines.chars(_CODE_WORD) >= 0.4 * size)
    strong |= lines.match(_TAG) & lines.end_with(">")
    weak = (lines.match(_MAYBE_CODE) | (size < 25) | lines.end_with(";,{:)")) & ~quoted
    letters = "".join(np.where(strong, "c", np.where(weak, "w", "p")))
    filled = re.sub(rf"(?<=c)w{{1,{_LONGEST_GAP}}}(?=c)", lambda gap: "c" * len(gap[0]), letters)
    quotes = lines.hits('"""|\'{3}')
    in_docstring = ((np.cumsum(quotes) - quotes) % 2 == 1) | (quotes > 0)
    docstrings: _Mask = in_docstring & (quotes.sum() > 1) & strong.any()
    code: _Mask = np.array([*filled]) == "c"
    return code | docstrings | _fenced(lines, strong)


def _fenced(lines: _Lines, strong: _Mask) -> _Mask:
    """Lines in fenced code blocks. A fence without a programming language may contain prose."""
    fenced = np.zeros(len(strong), np.bool_)
    sentence = (lines.words >= 8) & (lines.letters > 0.85 * lines.size) & (lines.symbols < 0.04 * lines.size)
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
    size, digits = lines.size, lines.chars("[0-9]+")
    numbers = (digits >= 0.4 * size) & (lines.letters <= digits)
    pipes = lines.chars(r"\|+")
    framed = lines.begin_with("|+") & lines.end_with("|+") & (size > 2)
    piped = ((pipes >= 2) & (size < 100 * (pipes + 1))) | framed
    # A column gap is a tab, or two spaces not after the end of a sentence.
    gaps = lines.hits(r"[^\s.!?,;:](?=(?:\t|[^\S\n]{2})[^\S\n]*\S)")
    tight, commas = lines.hits(r"[,;](?=\S)"), lines.chars(",+")  # no space after a comma, as in CSV
    ends = lines.end_with(".!?,;:")
    columns = (gaps >= 2) & (size < 30 * (gaps + 1))
    tabs = lines.hits(r"(?<![^\S\n])[^\S\n\t]*+\t[^\S\n]*+(?=\S)")  # blanks with a tab, once each: linear time
    pairs = (gaps == 1) & (size < 60) & (tabs > 0) & ~ends
    separated = (tight >= 2) & (size < 25 * (tight + 1)) & (tight >= 0.5 * commas) & (lines.words <= 3 * (tight + 1))
    spaced = (commas >= 2) & (2 * lines.words <= 5 * (commas + 1)) & ~ends
    rows = numbers | piped
    rows |= _runs(gaps, columns, 3) | _runs(gaps, pairs, 3) | _runs(np.zeros_like(tight), separated, 3)
    return rows | _runs(pipes, (pipes >= 1) & (size < 200), 3) | _runs(commas, spaced, 4)


def _runs(key: _Ints, mask: _Mask, least: int) -> _Mask:
    """Lines of a mask that are in a run of at least `least` lines with the same key."""
    new = np.ones(len(key), np.bool_)
    new[1:] = (key[1:] != key[:-1]) | ~mask[1:] | ~mask[:-1]
    run = np.cumsum(new) - 1
    long: _Mask = np.bincount(run)[run] >= least
    return mask & long
