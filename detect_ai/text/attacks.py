"""Text attacks of RAID (Dugan et al. 2024, arXiv:2405.07940, appendix E) that need no model.

An attack is a function of a text and a random generator; it changes a fraction of the places where it applies. RAID's
synonyms come from a masked language model, ours from a word list.
"""

import re
from collections.abc import Callable

import numpy as np

from detect_ai.text.sentences import sentences
from detect_ai.text.wordlists import misspellings, spellings, synonyms

Attack = Callable[[str, np.random.Generator], str]

# Letters of other scripts that look like a Latin letter (UTS #39).
_HOMOGLYPHS = str.maketrans("ABCEHIJKMNOPSTXYZaceiopsxyhj", "ΑВСЕНІЈКΜΝОРЅТХΥΖасеіорѕхуһј")
# Excludes parts of contractions (don't, we'll); in a possessive, matches the word before 's.
_WHOLE_WORD = re.compile(r"(?<!\w)(?<!\w['’])[^\W\d_]++(?![\d_]|['’](?!s\b)[^\W\d_])")
# A word and its article. Excludes compounds (long-term) and names: capitals after a lower-case letter or a comma.
_PHRASE = re.compile(
    r"(?:(?<![\w'’-])(?P<article>(?!(?<=[a-z,] )A)[Aa][Nn]?)(?P<gap>\s+))?"
    r"(?<![\w'’-])(?P<word>(?!(?<=[a-z,] )[A-Z])[^\W\d_]++)(?![\d_-]|['’](?!s\b)[^\W\d_])"
)
# Words that take the article `an`: they begin with a vowel sound.
_VOWEL = re.compile(r"(?!uni(?![mn])|us[aeiu]|uti|eu|once|one\b|ubi)[aeiou]|hour|hono|honest|heir")


def alternative_spelling(text: str, rng: np.random.Generator) -> str:
    """Swap the British and American spelling of every word whose spellings differ."""
    table = spellings()
    return _WHOLE_WORD.sub(lambda match: _match_case(match[0], table.get(match[0].lower(), match[0])), text)


def insert_paragraphs(text: str, rng: np.random.Generator) -> str:
    """Insert a paragraph break after half of the sentences."""
    spans = sentences(text)
    gaps = np.where(rng.random(len(spans)) < 0.5, "\n\n", " ")
    return "".join(text[start:end] + gap for (start, end), gap in zip(spans, gaps, strict=True)).strip()


def misspelling(text: str, rng: np.random.Generator) -> str:
    """Misspell a fifth of the words that have a common misspelling."""
    table = misspellings()

    def misspell(match: re.Match[str]) -> str:
        word = match[0]
        choices = table.get(word.lower())
        return _match_case(word, _one_of(choices, rng)) if choices and rng.random() < 0.2 else word

    return _WHOLE_WORD.sub(misspell, text)


def synonym(text: str, rng: np.random.Generator) -> str:
    """Replace half of the words that have a synonym, and adjust a preceding article."""
    table = synonyms()

    def swap(match: re.Match[str]) -> str:
        article, gap, word = match.group("article", "gap", "word")
        choices = table.get(word.lower())
        if not choices or rng.random() >= 0.5:
            return match[0]
        new = _one_of(choices, rng)
        if not article:
            return _match_case(word, new)
        n = ("N" if word.isupper() else "n") if _VOWEL.match(new) else ""
        return article[0] + n + gap + _match_case(word, new)

    return _PHRASE.sub(swap, text)


def _at(pattern: str, text: str, rng: np.random.Generator, fraction: float, new: Callable[[str], str]) -> str:
    """Replace a fraction of the matches."""
    return re.sub(pattern, lambda match: new(match[0]) if rng.random() < fraction else match[0], text)


def _one_of(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _match_case(word: str, new: str) -> str:
    """The lower-case `new` in the case of the `word` it replaces; a mixed-case word (iPhone) stays unchanged."""
    if word.islower():
        return new
    if word.isupper() and len(word) > 1:
        return new.upper()
    return new.capitalize() if word == word.capitalize() else word


# A fraction is the fraction of matches to change, sampled independently.
ATTACKS: dict[str, Attack] = {
    "alternative_spelling": alternative_spelling,
    "article_deletion": lambda text, rng: _at(r"(?i)\b(?:the|a|an)\s+", text, rng, 0.5, lambda _: ""),
    "homoglyph": lambda text, rng: text.translate(_HOMOGLYPHS),
    "insert_paragraphs": insert_paragraphs,
    "misspelling": misspelling,
    "number_swap": lambda text, rng: _at(
        r"\d+", text, rng, 0.5, lambda number: "".join(str(rng.integers(10)) for _ in number)
    ),
    "synonym": synonym,
    "upper_lower": lambda text, rng: _at(r"[^\W\d_]+", text, rng, 0.05, lambda word: word[0].swapcase() + word[1:]),
    "whitespace": lambda text, rng: _at(" ", text, rng, 0.2, lambda space: 2 * space),
    "zero_width_space": lambda text, rng: re.sub(r"([^\W\d_])", "\\1\u200b", text),
}
