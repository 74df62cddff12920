"""Rule-based sentence segmentation of normalised text."""

import re
from itertools import chain

_STOP = re.compile(r"""(?:(?<![.!?])[.!?]++["')\]]*+(?=\s)|。["')」』]*+)(?P<gap>\s*+)(?=["'(\[]*+(?P<next>\S))""")
_ABBREVIATION = re.compile(
    r"""["'(\[]*(?:(?i:mr|mrs|ms|mx|dr|prof|st|gen|col|sgt|capt|lt|cmdr|rev|hon|gov|sen|rep|messrs|mt|ft|vs|cf|al
    |e\.g|i\.e|ph\.d|viz)\.|(?!I\.[ ])(?:[A-ZÀ-ÖØ-ÞΑ-ΩА-Я]\.)+)[ ].
    |["'(\[]*(?i:nos?|figs?|eqs?|vol|ch|sec|art|pp?|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|approx)\.[ ]\d""",
    re.VERBOSE,
)


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans `[start, end)` of the sentences of a normalised text, in order, without the spaces between.

    A sentence ends at `。`, or at `.`, `!` or `?` if a space and anything but a lower-case letter follow (closing
    quotes and brackets are part of it), unless the stop belongs to an abbreviation or an initial.
    """
    gaps = [match.span("gap") for match in _STOP.finditer(text) if _ends_sentence(text, match)]
    edges = (len(text) - len(text.lstrip()), *chain.from_iterable(gaps), len(text.rstrip()))
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    at = match.start()
    if text[at] == "。":
        return True
    word = text.rfind(" ", max(0, at - 20), at) + 1
    return not (match["next"].islower() or _ABBREVIATION.fullmatch(text, word, at + 3))
