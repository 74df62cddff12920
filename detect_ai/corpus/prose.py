"""Cleaning of published texts for `fetch`, so that the layout does not reveal the label. Pure."""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Callable

from detect_ai.text.language import detect_language

MIN_WORDS = 50
MIN_DISTINCT = 0.6  # fraction of distinct six-word sequences; a text with fewer repeats itself
_REFUSAL_CHARS = 220
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("‘’‚‛′`´", "'")
    | dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‐‑‒–−", "-")
    | dict.fromkeys("—―", " - ")
    | dict.fromkeys(
        "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "
    )
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad")
    | dict.fromkeys("•▪◦●", "-")
    | {"…": "...", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "\u2028": "\n", "\u2029": "\n\n"}
)
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
_MARKDOWN = [
    (re.compile(r"```.*?```", re.DOTALL), ""),
    (re.compile(r"^#{1,6} .*$", re.MULTILINE), ""),
    (re.compile(r"^\s*(?:[-*_] ?){3,}\s*$", re.MULTILINE), ""),
    (re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
    (re.compile(r"\A(?:(?:sure|certainly|of course)[,!.]? *)?here(?:'s| is) [^\n]{0,200}:\s*\n", re.IGNORECASE), ""),
    (re.compile(r"\A\s*title:.*\n", re.IGNORECASE), ""),
    (re.compile(r"\A\s*abstract:\s*", re.IGNORECASE), ""),
]
_REFUSAL = re.compile(
    r"\b(?:as an ai\b|as a (?:large )?language model|i(?:'m| am) (?:sorry|unable)|i apologi[sz]e|paraphrased version|"
    r"i (?:cannot|can't) (?:assist|fulfil|write|provide))",
    re.IGNORECASE,
)


def clean_prose(text: str, label: int, longest: int = 700, min_words: int = MIN_WORDS) -> str | None:
    """A text as the corpora contain it, or None to drop it.

    Typographic characters become ASCII; Markdown, titles and introductory phrases are removed from AI texts (label 1).
    In both classes an unpunctuated first line (a title) and an incomplete last sentence are removed, and the text ends
    at the last sentence end within `longest` words. Texts of fewer than `min_words` words and texts that are not
    English are dropped, and among AI texts also refusals and repetitive texts.
    """
    text = plain_typography(text)
    if label:
        text = without_markdown(text)
        if _REFUSAL.search(text[:_REFUSAL_CHARS]) or repeats(text):
            return None
    text = cut(without_title(re.sub(r"\n{3,}", "\n\n", text).strip()), longest)
    if len(text.split()) < min_words or detect_language(text, "en") not in ("", "en"):
        return None
    return text


def windows(text: str, shortest: int, longest: int, most: int) -> list[str]:
    """At most `most` evenly spread parts of a text, each limited to `shortest` to `longest` words at a sentence end.

    With `most=1` the window is the beginning of the text. The lengths depend only on the text.
    """
    parts: list[str] = []
    while len(text.split()) >= MIN_WORDS and (most > 1 or not parts):
        limit = shortest + zlib.crc32(text.encode()) % (longest - shortest + 1)
        part = cut(text, limit)
        if part:
            parts.append(part)
        # Skip words that contain no sentence end.
        text = text[len(part) :].lstrip() if part else " ".join(text.split()[limit:])
    step = max(1.0, len(parts) / most)
    return [parts[int(i * step)] for i in range(min(most, len(parts)))]


def without_markdown(text: str) -> str:
    """A text without Markdown, a title line and an introductory phrase."""
    for pattern, replacement in _MARKDOWN:
        text = pattern.sub(replacement, text)
    return text


def without_tags(text: str) -> str:
    """Prose from a text with part-of-speech tags (`word/TAG` or `word_TAG`)."""
    return joined_tokens(re.sub(r"(\S+)[/_]\S+", r"\1", text))


def joined_tokens(text: str) -> str:
    """Prose from space-separated tokens in the Penn Treebank convention."""
    text = text.replace("-LRB-", "(").replace("-RRB-", ")")
    text = re.sub(r"`` *", '"', text)
    text = re.sub(r" *''", '"', text)
    text = re.sub(r"([?!;:])(?: \1)+", r"\1", text)
    text = re.sub(r" +(?=[,.;:!?%)\]}]|n't\b|'(?:s|re|ve|ll|d|m)\b)", "", text, flags=re.IGNORECASE)
    return re.sub(r"([(\[{$]) +", r"\1", text)


def without_xml(text: str) -> str:
    """The text of an XML or HTML fragment."""
    return html.unescape(re.sub(r"</?[A-Za-z][^<>]*>", "", text))


MARKUP: dict[str, Callable[[str], str]] = {
    "": str,
    "xml": without_xml,
    "markdown": without_markdown,
    "tagged": without_tags,
    "tokens": joined_tokens,
}


def plain_typography(text: str) -> str:
    """A text with ASCII quotes, dashes and spaces, without invisible characters, and with at most one empty line."""
    text = re.sub(r"\r\n?", "\n", text)
    text = re.sub(r"<br\s*/?>|<newline>", "\n", text, flags=re.IGNORECASE)
    text = re.sub("``|''", '"', text).translate(_TYPOGRAPHY)
    text = re.sub(r"(?<=[^-\n])-{2,3}(?=[^-\n])", " - ", text)
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def without_title(text: str) -> str:
    """A text without its first line if that is short and does not end with punctuation."""
    first, _, rest = text.partition("\n")
    is_title = rest.strip() and len(first.split()) <= 15 and not re.search(r"[.!?:;,][\"')\]]*$", first.rstrip())
    return rest.strip() if is_title else text


def cut(text: str, longest: int) -> str:
    """A text up to the last sentence end within `longest` words; "" if there is none."""
    words = list(re.finditer(r"\S+", text))
    limit = len(text) if len(words) <= longest else words[longest - 1].end()
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if match.end() <= limit]
    return text[: ends[-1]] if ends else ""


def repeats(text: str) -> bool:
    """Whether a text repeats itself."""
    words = text.lower().split()
    sequences = [tuple(words[i : i + 6]) for i in range(len(words) - 5)]
    return len(set(sequences)) < MIN_DISTINCT * len(sequences)
