"""Cleaning: repair, remove boilerplate, normalise and check a batch of texts. Errors go to the column `problem`."""

from __future__ import annotations

import hashlib
import re

import pyarrow as pa

from detect_ai.core.config import CorpusConfig
from detect_ai.corpus.boilerplate import strip_boilerplate
from detect_ai.corpus.dedup import NUM_PERM, signatures
from detect_ai.text.language import code, detect_language
from detect_ai.text.normalize import normalise

CLEANING_VERSION = 2  # version of `clean_text`; a corpus made with an older version is prepared again
MAX_CHARS = 100_000  # per text; longer texts are dropped
CLEAN_FIELDS = [
    pa.field("normalised", pa.string()),
    pa.field("digest", pa.uint64()),
    pa.field("num_words", pa.int32()),
    pa.field("signature", pa.list_(pa.uint32(), NUM_PERM)),
]
_TOKEN = re.compile(r"\S+")
_GLUED = re.compile(r"(?<=[a-z]{2}[.:?!])(?=[A-Z])")
_NO_PROSE = re.compile(r"[@/\\_=<>{}]|www\.|\w\(", re.IGNORECASE)


def clean(table: pa.Table, corpus: CorpusConfig) -> pa.Table:
    """Clean, normalise and check each text of a table with `text`, `language` and `problem`.

    Adds the columns of `CLEAN_FIELDS` and fills in `problem` and `language`. A row that already has a problem keeps it
    and is not cleaned. Rows with a problem have an empty signature.
    """
    texts, problems, languages = [], [], []
    for text, problem, known in zip(
        *(table[name].to_pylist() for name in ("text", "problem", "language")), strict=True
    ):
        text, problem = ("", problem) if problem else _clean(text, corpus)
        if corpus.language and not problem:
            known = known or detect_language(text, corpus.language)
            if known and code(known) != code(corpus.language):
                problem = "language"
        texts.append(text)
        problems.append(problem)
        languages.append(known)
    for name, values in (("problem", problems), ("language", languages)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    sketches = signatures(["" if problem else text for text, problem in zip(texts, problems, strict=True)])
    digests = [int.from_bytes(hashlib.sha256(text.casefold().encode()).digest()[:8], "big") for text in texts]
    columns = [
        pa.array(texts, pa.string()),
        pa.array(digests, pa.uint64()),
        pa.array([len(text.split()) for text in texts], pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(sketches.ravel()), NUM_PERM),
    ]
    for field, column in zip(CLEAN_FIELDS, columns, strict=True):
        table = table.append_column(field, column)
    return table


def _clean(text: str, corpus: CorpusConfig) -> tuple[str, str]:
    """The cleaned and normalised text, and its problem ("" for none)."""
    cleaned = clean_text(text)
    if cleaned is None:
        return normalised_text(repair(text)), "boilerplate"
    text = normalised_text(cleaned)
    if not text:
        return text, "empty"
    if len(text.split()) < corpus.min_words:
        return text, "too_short"
    return text, "too_long" if len(text) > MAX_CHARS else ""


def clean_text(text: str) -> str | None:
    """The text as training reads it, before normalisation; None for a refusal or if it is only boilerplate.

    Undoes wrong decoding, separates glued sentences and removes assistant boilerplate.
    """
    return strip_boilerplate(separate_sentences(repair(text)))


def repair(text: str) -> str:
    """Undo wrong decoding (UTF-8 read as Latin-1 or Windows-1252, once or several times), line by line.

    Normalisation is a separate step. HTML entities stay, because a text about HTML contains them on purpose.
    """
    if text.isascii():
        return text
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    return "\n".join(map(fix_encoding, text.split("\n"))) if is_bad(text) else text


def separate_sentences(text: str) -> str:
    """Insert missing spaces between sentences: "the end.The start" and "summary:Students".

    Corpora lose them where lines are joined, often in one class only. Addresses, paths, calls and abbreviations such as
    "Ph.D" stay; "asyncio.Task" cannot be distinguished from the end of a sentence.
    """
    if not _GLUED.search(text):
        return text
    return _TOKEN.sub(lambda token: token[0] if _NO_PROSE.search(token[0]) else _GLUED.sub(" ", token[0]), text)


def normalised_text(text: str) -> str:
    """`normalise(text).text`; avoids computing the offset maps where collapsing white space is enough."""
    squeezed = " ".join(text.split())
    return squeezed if squeezed.isascii() and squeezed.isprintable() else normalise(text).text
