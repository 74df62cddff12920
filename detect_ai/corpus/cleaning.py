"""Clean the rows of a batch, and find exact duplicates among all rows. What is wrong with a row stands in `problem`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai.core.config import CorpusConfig
from detect_ai.corpus import boilerplate
from detect_ai.corpus.dedup import NUM_PERM, signatures
from detect_ai.text.language import code as _code
from detect_ai.text.language import detect_language
from detect_ai.text.normalize import normalise

if TYPE_CHECKING:
    from ftfy import TextFixerConfig

CLEAN_FIELDS = [
    pa.field("normalised", pa.string()),
    pa.field("digest", pa.uint64()),
    pa.field("num_words", pa.int32()),
    pa.field("signature", pa.list_(pa.uint32(), NUM_PERM)),
]


def clean(table: pa.Table, corpus: CorpusConfig) -> pa.Table:
    """Repair, cut away boilerplate, normalise and check each text.

    Args:
        table: rows with at least `text`, `language` and `problem`, as reading leaves them.
        corpus: what to do and which texts to keep.

    Returns:
        The same rows in their order, with the columns of `CLEAN_FIELDS`; `problem` and `language` filled in. A row that
        has a problem keeps it: read without one, it is not cleaned. Rows with a problem have an empty signature.
    """
    given = zip(table["text"].to_pylist(), table["problem"].to_pylist(), strict=True)
    cleaned = [("", problem) if problem else _clean(text, corpus) for text, problem in given]
    texts, problems = [text for text, _ in cleaned], [problem for _, problem in cleaned]
    if corpus.language:
        languages = [
            own or ("" if problem else detect_language(text, corpus.language))
            for own, text, problem in zip(table["language"].to_pylist(), texts, problems, strict=True)
        ]
        problems = [
            problem or ("language" if language and _code(language) != _code(corpus.language) else "")
            for language, problem in zip(languages, problems, strict=True)
        ]
        table = _replace(table, "language", languages)
    return _with_fields(_replace(table, "problem", problems), texts, problems)


def _clean(text: str, corpus: CorpusConfig) -> tuple[str, str]:
    """The text that stays, normalised, and what is wrong with it ("" for nothing)."""
    if corpus.repair:
        text = repair(text)
    if corpus.boilerplate != "keep":
        found = boilerplate.find(text)
        if found.kind == "whole" or (found.kind and corpus.boilerplate == "drop"):
            return normalised_text(text), "boilerplate"
        text = text[found.start : found.stop]
    text = normalised_text(text)
    if not text:
        return text, "empty"
    if num_words(text) < corpus.min_words:
        return text, "too_short"
    return text, "too_long" if len(text) > corpus.max_chars else ""


def repair(text: str) -> str:
    """Undo wrong decoding (UTF-8 read as Latin-1 or Windows-1252, once or more often), line by line.

    What the normaliser does is left to it. HTML entities stay: in a text about HTML they are the text.
    """
    if text.isascii():
        return text
    from ftfy import fix_text
    from ftfy.badness import is_bad

    return fix_text(text, _encoding_only()) if is_bad(text) else text


@cache
def _encoding_only() -> TextFixerConfig:
    from ftfy import TextFixerConfig

    return TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )


def normalised_text(text: str) -> str:
    """`normalise(text).text`; without its offset maps where squeezing white space is all there is to do."""
    squeezed = " ".join(text.split())
    return squeezed if squeezed.isascii() and squeezed.isprintable() else normalise(text).text


def num_words(normalised: str) -> int:
    """Words of a normalised text: what stands between single spaces."""
    return normalised.count(" ") + 1 if normalised else 0


def _replace(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))


def _with_fields(table: pa.Table, texts: list[str], problems: list[str]) -> pa.Table:
    sketched = signatures(["" if problem else text for text, problem in zip(texts, problems, strict=True)])
    columns = [
        pa.array(texts, pa.string()),
        pa.array([_digest(text) for text in texts], pa.uint64()),
        pa.array([num_words(text) for text in texts], pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(sketched.ravel()), NUM_PERM),
    ]
    for field, column in zip(CLEAN_FIELDS, columns, strict=True):
        table = table.append_column(field, column)
    return table


def _digest(normalised: str) -> int:
    return int.from_bytes(hashlib.sha256(normalised.casefold().encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True, eq=False)
class Exact:
    """Which of all rows have the text of another one.

    Attributes:
        both_labels: rows whose text carries both labels: none of them can stay; shape (rows,).
        duplicate: rows that are not the one that stays of their text; shape (rows,).
        twin: position of the row that stays of a duplicate, of the first row with the other label of a text with both,
            else -1; shape (rows,).
    """

    both_labels: NDArray[np.bool_]
    duplicate: NDArray[np.bool_]
    twin: NDArray[np.int64]


def exact(digests: NDArray[np.uint64], labels: NDArray[np.int8], keys: NDArray[np.uint64 | np.str_]) -> Exact:
    """Find exact duplicates. Of the rows of a text the one with the smallest key stays, whatever their order.

    Args:
        digests: of the texts, shape (rows,).
        labels: 0 or 1, shape (rows,).
        keys: unique among the rows of a text, shape (rows,).
    """
    order = np.argsort(keys, kind="stable")
    order = order[np.argsort(digests[order], kind="stable")]
    digests, labels = digests[order], labels[order]
    starts = np.ones(len(order), np.bool_)
    starts[1:] = digests[1:] != digests[:-1]
    text = np.cumsum(starts) - 1
    first = np.full((2, int(starts.sum())), -1, np.int64)  # of each label and text
    for label in (0, 1):
        mine = np.flatnonzero(labels == label)[::-1]  # of repeated places the last one written stays
        first[label, text[mine]] = order[mine]
    has_both: NDArray[np.bool_] = np.all(first >= 0, axis=0)
    both = has_both[text]
    duplicate = ~both & ~starts
    twin = np.where(both, first[1 - labels, text], np.where(duplicate, first[labels, text], -1))
    back = np.argsort(order)
    return Exact(both[back], duplicate[back], twin[back])
