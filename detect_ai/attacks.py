"""Changes that readers hardly notice and detectors fall for, from the definitions of RAID (Dugan et al. 2024).

arXiv:2405.07940, appendix E: each changes a share of the places where it can act. An attack is a function of a text and
a generator of random numbers. Of RAID's eleven these are the ones that need no list of words and no model.
"""

import re
from collections.abc import Callable

import numpy as np

from detect_ai.text import sentences

Attack = Callable[[str, np.random.Generator], str]

# Letters of other scripts that look like a Latin one (UTS #39).
_HOMOGLYPHS = str.maketrans("ABCEHIJKMNOPSTXYZaceiopsxyhj", "ΑВСЕНІЈКΜΝОРЅТХΥΖасеіорѕхуһј")
_ARTICLE = re.compile(r"\b(?:the|a|an)\s+", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]+")
_LETTER = re.compile(r"[^\W\d_]")


def article_deletion(text: str, rng: np.random.Generator) -> str:
    """Delete half of the articles."""
    return _at(_ARTICLE, text, rng, 0.5, lambda _: "")


def homoglyph(text: str, rng: np.random.Generator) -> str:
    """Exchange every letter that has a look-alike in another script."""
    return text.translate(_HOMOGLYPHS)


def insert_paragraphs(text: str, rng: np.random.Generator) -> str:
    """Begin a new paragraph after half of the sentences."""
    spans = sentences(text)
    breaks = rng.random(len(spans)) < 0.5
    parts = [text[start:end] + ("\n\n" if broken else " ") for (start, end), broken in zip(spans, breaks, strict=True)]
    return "".join(parts).strip()


def number_swap(text: str, rng: np.random.Generator) -> str:
    """Draw the digits of half of the numbers anew."""
    return _at(_NUMBER, text, rng, 0.5, lambda number: "".join(str(rng.integers(10)) for _ in number))


def upper_lower(text: str, rng: np.random.Generator) -> str:
    """Swap the case of the first letter of one word in twenty."""
    return _at(_WORD, text, rng, 0.05, lambda word: word[0].swapcase() + word[1:])


def whitespace(text: str, rng: np.random.Generator) -> str:
    """Double a fifth of the spaces."""
    return _at(re.compile(" "), text, rng, 0.2, lambda space: 2 * space)


def zero_width_space(text: str, rng: np.random.Generator) -> str:
    """Put a zero-width space behind every letter."""
    return _at(_LETTER, text, rng, 1.0, lambda letter: letter + "\u200b")


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        article_deletion,
        homoglyph,
        insert_paragraphs,
        number_swap,
        upper_lower,
        whitespace,
        zero_width_space,
    )
}


def _at(pattern: re.Pattern[str], text: str, rng: np.random.Generator, share: float, new: Callable[[str], str]) -> str:
    """Replace a share of the matches, each drawn by itself."""
    return pattern.sub(lambda match: new(match[0]) if rng.random() < share else match[0], text)
