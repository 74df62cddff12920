"""Cleaning: repair, cut boilerplate, normalise and check the texts of a batch. Errors go to the column `problem`."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

import pyarrow as pa

from detect_ai.core.config import CorpusConfig
from detect_ai.corpus import boilerplate
from detect_ai.corpus.dedup import NUM_PERM, signatures
from detect_ai.text.language import code as _code
from detect_ai.text.language import detect_language
from detect_ai.text.normalize import normalise

if TYPE_CHECKING:
    from ftfy import TextFixerConfig

MAX_CHARS = 100_000  # of a text; longer ones are dropped
CLEAN_FIELDS = [
    pa.field("normalised", pa.string()),
    pa.field("digest", pa.uint64()),
    pa.field("num_words", pa.int32()),
    pa.field("signature", pa.list_(pa.uint32(), NUM_PERM)),
]


def clean(table: pa.Table, corpus: CorpusConfig) -> pa.Table:
    """Repair, cut boilerplate, normalise and check each text.

    Args:
        table: rows with at least `text`, `language` and `problem`, as reading leaves them.
        corpus: what to do and which texts to keep.

    Returns:
        The same rows in their order, with the columns of `CLEAN_FIELDS`; `problem` and `language` filled in. A row that
        came with a problem keeps it and is not cleaned. Rows with a problem have an empty signature.
    """
    pairs = zip(table["text"].to_pylist(), table["problem"].to_pylist(), strict=True)
    cleaned = [("", problem) if problem else _clean(text, corpus) for text, problem in pairs]
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
    """The text that stays, normalised, and its problem ("" for none)."""
    text = repair(text)
    found = boilerplate.find(text)
    if found.kind == "whole":
        return normalised_text(text), "boilerplate"
    text = normalised_text(text[found.start : found.stop])
    if not text:
        return text, "empty"
    if num_words(text) < corpus.min_words:
        return text, "too_short"
    return text, "too_long" if len(text) > MAX_CHARS else ""


def repair(text: str) -> str:
    """Undo wrong decoding (UTF-8 read as Latin-1 or Windows-1252, once or more often), line by line.

    Normalisation is a separate step. HTML entities stay: in a text about HTML they are the text.
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
    """`normalise(text).text`, without its offset maps if only white space has to be squeezed."""
    squeezed = " ".join(text.split())
    return squeezed if squeezed.isascii() and squeezed.isprintable() else normalise(text).text


def num_words(normalised: str) -> int:
    """Words of a normalised text, separated by single spaces."""
    return normalised.count(" ") + 1 if normalised else 0


def _replace(table: pa.Table, name: str, values: list[str]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))


def _with_fields(table: pa.Table, texts: list[str], problems: list[str]) -> pa.Table:
    sketches = signatures(["" if problem else text for text, problem in zip(texts, problems, strict=True)])
    digests = [int.from_bytes(hashlib.sha256(text.casefold().encode()).digest()[:8], "big") for text in texts]
    columns = [
        pa.array(texts, pa.string()),
        pa.array(digests, pa.uint64()),
        pa.array([num_words(text) for text in texts], pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(sketches.ravel()), NUM_PERM),
    ]
    for field, column in zip(CLEAN_FIELDS, columns, strict=True):
        table = table.append_column(field, column)
    return table
