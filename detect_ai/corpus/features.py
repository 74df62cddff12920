"""Trivial features of a text: what a detector could go by without reading it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from detect_ai.text.sentences import sentences

Floats = NDArray[np.float64]

PER = 1000.0  # rates are per 1,000 characters
FIRST_WORDS = 100  # the type-token ratio falls with length, so that all texts are measured on as many words

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_PARAGRAPH = re.compile(r"\n\s*\n")
_CURLY = "‘’“”„«»‹›"
_DASHES = "–—"
_MARKDOWN = re.compile(r"\*\*|__|^\s*(?:#+|[-*•]|\d+[.)])\s|```", re.MULTILINE)
_BOILERPLATE = re.compile(
    r"\bas an? (?:large |ai |artificial intelligence )+(?:language )?(?:model|assistant)\b"
    r"|\bi(?:'m| am) (?:sorry|afraid),? (?:but )?i (?:can(?:no|')t|am unable)"
    r"|\bi can(?:not|'t) (?:fulfil|assist|comply|provide|help with)"
    r"|\A\W*(?:sure|certainly|of course|absolutely)\b[!,.]"
    r"|\bhere(?:'s| is) (?:an?|the|your|my) (?:\w+ ){0,3}(?:essay|article|story|text|version|rewrite|draft|letter)\b"
    r"|\bi hope (?:this|that) helps\b"
    r"|\[(?:your|insert|name|date|address|school|teacher|student|city|state|company|recipient)\b[^\]\n]{0,40}\]",
    re.IGNORECASE,
)


class Parts:
    """A text and its pieces, each found once.

    Args:
        text: any text, the empty one too.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.size = len(text)

    @cached_property
    def words(self) -> list[str]:
        """Runs of letters and digits, with the apostrophes inside."""
        return _WORD.findall(self.text.replace("_", " "))

    @cached_property
    def sentence_words(self) -> list[int]:
        """Words of each sentence, by white space."""
        return [len(sentence.split()) for sentence in self.sentences]

    @cached_property
    def sentences(self) -> list[str]:
        """Sentences by their punctuation."""
        return [self.text[start:end] for start, end in sentences(self.text)]

    @cached_property
    def letters(self) -> int:
        """Letters of any script."""
        return sum(map(str.isalpha, self.text))

    def rate(self, marks: str) -> float:
        """How often any of these characters stands in 1,000."""
        return PER * sum(map(self.text.count, marks)) / max(1, self.size)

    def matches(self, pattern: re.Pattern[str]) -> float:
        """How often a pattern stands in 1,000 characters."""
        return PER * sum(1 for _ in pattern.finditer(self.text)) / max(1, self.size)


@dataclass(frozen=True)
class Feature:
    """One number of a text.

    Attributes:
        name: in a reader's words.
        family: what it belongs to; a warning speaks of a family.
        measure: from the parts of a text to a finite number.
    """

    name: str
    family: str
    measure: Callable[[Parts], float]


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(1, len(values))


def _share(count: int, total: int) -> float:
    return count / max(1, total)


def _rate(name: str, family: str, marks: str) -> Feature:
    return Feature(name, family, lambda parts: parts.rate(marks))


FEATURES = (
    Feature("characters", "length", lambda p: p.size),
    Feature("words", "length", lambda p: len(p.words)),
    Feature("sentences", "length", lambda p: len(p.sentences)),
    Feature("mean word length", "word choice", lambda p: _mean([len(word) for word in p.words])),
    Feature(
        f"distinct words of first {FIRST_WORDS}",
        "word choice",
        lambda p: _share(len({word.lower() for word in p.words[:FIRST_WORDS]}), len(p.words[:FIRST_WORDS])),
    ),
    Feature("words in a sentence", "sentence length", lambda p: _mean(p.sentence_words)),
    Feature("spread of sentence lengths", "sentence length", lambda p: float(np.std(p.sentence_words or [0]))),
    Feature("longest sentence", "sentence length", lambda p: max(p.sentence_words, default=0)),
    _rate("commas", "punctuation", ","),
    _rate("full stops", "punctuation", "."),
    _rate("question marks", "punctuation", "?"),
    _rate("exclamation marks", "punctuation", "!"),
    _rate("semicolons", "punctuation", ";"),
    _rate("colons", "punctuation", ":"),
    _rate("apostrophes", "punctuation", "'’"),
    _rate("double quotes", "punctuation", '"“”„'),
    _rate("hyphens", "punctuation", "-"),
    _rate("brackets", "punctuation", "()[]"),
    _rate("curly quotes", "typography", _CURLY),
    _rate("long dashes", "typography", _DASHES),
    _rate("ellipsis characters", "typography", "…"),
    Feature("dots in a row", "typography", lambda p: p.matches(re.compile(r"\.\.+"))),
    Feature("characters beyond ASCII", "typography", lambda p: PER * _share(_beyond_ascii(p.text), p.size)),
    Feature("double spaces", "typography", lambda p: p.matches(re.compile("  +"))),
    Feature("Markdown", "typography", lambda p: p.matches(_MARKDOWN)),
    _rate("line breaks", "layout", "\n"),
    Feature("paragraphs", "layout", lambda p: 1 + sum(1 for _ in _PARAGRAPH.finditer(p.text.strip()))),
    Feature("capitals among letters", "casing", lambda p: _share(sum(map(str.isupper, p.text)), p.letters)),
    Feature(
        "lower-case sentence starts",
        "casing",
        lambda p: _share(sum(sentence[:1].islower() for sentence in p.sentences), len(p.sentences)),
    ),
    Feature("words in capitals", "casing", lambda p: _share(sum(_shouts(word) for word in p.words), len(p.words))),
    Feature("digits", "digits", lambda p: PER * _share(sum(map(str.isdigit, p.text)), p.size)),
    Feature("phrases of assistants", "boilerplate", lambda p: p.matches(_BOILERPLATE)),
)

CATEGORIES = (("first word", "openings"), ("first two words", "openings"), ("last character", "endings"))
END = "\0"  # the category of a text that has no such word


def measure(texts: Sequence[str]) -> Floats:
    """Every feature of every text, shape (texts, FEATURES), finite."""
    rows = [[feature.measure(parts) for feature in FEATURES] for parts in map(Parts, texts)]
    return np.asarray(rows, dtype=np.float64).reshape(len(texts), len(FEATURES))


def categories(texts: Sequence[str]) -> dict[str, list[str]]:
    """The categories of `CATEGORIES` by name, one value a text."""
    heads = [text.lstrip()[:200].split()[:2] for text in texts]
    return {
        "first word": [" ".join(head[:1]) or END for head in heads],
        "first two words": [" ".join(head) or END for head in heads],
        "last character": [text.rstrip()[-1:] or END for text in texts],
    }


def _beyond_ascii(text: str) -> int:
    return 0 if text.isascii() else sum(char > "\x7f" for char in text)


def _shouts(word: str) -> bool:
    return len(word) > 1 and word.isupper()
