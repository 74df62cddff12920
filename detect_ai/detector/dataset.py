"""Texts that a detector is run on: files of Parquet, CSV or JSON lines, labelled or not, local or in a bucket.

Unlike a source of a corpus nothing is dropped or repaired: what a user sends is what is judged. Pure of Ray.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from detect_ai.core.config import ScoreConfig, SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import open_uri
from detect_ai.corpus import formats
from detect_ai.corpus.formats import Row, UnreadableError
from detect_ai.corpus.sources import Piece, pieces, readable, suffixes
from detect_ai.corpus.standardise import spelling

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LABELS = {"0": 0, "1": 1, "human": 0, "ai": 1}
# Columns that are kept beside the text: by these a report is sliced. A name of another column is mapped to ours by
# `score.columns`; without that, these are looked for.
NAMES = {
    "text": ("text",),
    "label": ("label",),
    "id": ("id",),
    "source": ("source",),
    "domain": ("domain",),
    "generator": ("generator",),
    "group": ("group", "topic"),
    "language": ("language",),
    "attack": ("attack",),
    "subset": ("subset",),
}
SLICES = ("source", "domain", "generator", "language", "attack", "subset")
BATCH_ROWS, BATCH_CHARS = 256, 4 << 20
_LOOKED_AT = 100  # rows of JSON, for the names of its columns
_SURROGATE = re.compile("[\ud800-\udfff]")  # Arrow holds none


@dataclass(frozen=True)
class Text:
    """One text to judge.

    Attributes:
        row: number of its file and of its row: names it among the others, whatever its id.
        id: its own, else `row`.
        label: 0 human, 1 ai, None where none is given.
        values: of the columns of `SLICES` and `group`, "" where there is none.
    """

    row: str
    id: str
    text: str
    label: int | None
    values: dict[str, str]

    @property
    def digest(self) -> str:
        """Names the text by its content."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Part:
    """A share of the rows of a file, read apart from the others: every `shares`-th batch from `share` on.

    Attributes:
        piece: the file.
        number: of the piece among those of the data.
        columns: our names to those of the file.
        labels: value of the label column, in small letters, to 0 or 1.
    """

    piece: Piece
    number: int
    columns: dict[str, str]
    labels: dict[str, int]
    share: int = 0
    shares: int = 1


def parts(data: str, config: ScoreConfig, shares: int = 1) -> list[Part]:
    """What can be read apart of a file or a folder.

    Args:
        data: a path or a URI of a file or a folder; of a folder all files of the commonest kind are read.
        config: `columns` and `labels` say what is called otherwise.
        shares: of each file, for workers beside each other.

    Raises:
        CorpusError: nothing to read there, or no column of texts.
    """
    found = pieces(SourceConfig(kind=kind_of(data), path=data), unlabelled=True)
    # A file without a byte has no names; `pieces` refuses data of such files only.
    names = next(filter(None, map(column_names, found)), [])
    columns = _mapped(data, config.columns, names)
    labels = {_lower(value): label for value, label in (config.labels or LABELS).items()}
    whole = [Part(piece, number, columns, labels) for number, piece in enumerate(found)]
    return [replace(part, share=share, shares=shares) for part in whole for share in range(shares)]


def kind_of(data: str) -> str:
    """`parquet`, `csv` or `jsonl`, by the names of the files. Raises CorpusError."""
    from pyarrow import fs as pafs

    filesystem, path = open_uri(data)
    path = path.rstrip("/")
    with readable(SourceConfig(path=data), ""):
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            names = [path]
        else:
            selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
            names = [f.path for f in filesystem.get_file_info(selector) if f.type == pafs.FileType.File]
    ends = suffixes()
    counts = {kind: sum(name.lower().endswith(ends[kind]) for name in names) for kind in ("parquet", "csv", "jsonl")}
    kind = max(counts, key=lambda name: counts[name])  # the first of equals: a .json beside a .parquet describes it
    if not counts[kind]:
        state = f"{len(names)} files of other kinds" if names else "no such file or folder"
        raise CorpusError(
            f"data={data}: {state}; expected Parquet, CSV or JSON lines (.parquet, .csv, .jsonl, .json; .gz and .zst). "
            f"Under `ray job submit` give an absolute path or a gs:// URI that every node can read"
        )
    return kind


def column_names(piece: Piece) -> list[str]:
    """Names of the columns of a file: of Parquet from its schema, of CSV from its header, else those of first rows."""
    names: list[str] = []
    rows = _rows(piece, {}, names.extend)
    if piece.source.kind == "jsonl":
        return list(dict.fromkeys(name for row in islice(rows, _LOOKED_AT) for name in row.values))
    next(rows, None)
    return names


def _mapped(data: str, given: Mapping[str, str], names: list[str]) -> dict[str, str]:
    if unknown := sorted(set(given) - set(NAMES)):
        raise CorpusError(f"score.columns.{unknown[0]}: expected one of {', '.join(NAMES)}")
    for ours, theirs in given.items():
        if theirs and theirs not in names:
            raise CorpusError(f"data={data}: no column {theirs!r} (score.columns.{ours}); found {_listed(names)}")
    # JSON leaves out what is empty: a column may come later than its first rows.
    columns = {ours: next((name for name in usual if name in names), usual[0]) for ours, usual in NAMES.items()}
    columns |= given
    if columns["text"] not in names:
        raise CorpusError(
            f"data={data}: no column 'text'; found {_listed(names)}. Name yours with +score.columns.text=…"
        )
    return {ours: theirs for ours, theirs in columns.items() if theirs}


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:30]) or "no columns"


def read(part: Part) -> Iterator[tuple[list[Text], int]]:
    """The texts of a part in batches of at most `BATCH_ROWS` rows, and how many rows of each batch have no text.

    Raises:
        CorpusError: the file is broken or has no column of texts, or a label is none of `labels`.
    """

    def check(names: list[str]) -> None:
        if part.columns["text"] not in names:
            raise UnreadableError(f"no column {part.columns['text']!r}; found {_listed(names)}")

    for number, batch in enumerate(_batches(_rows(part.piece, part.columns, check))):
        if number % part.shares == part.share:
            texts = [text for place, row, torn in batch if (text := _text(part, place, row, torn))]
            yield texts, len(batch) - len(texts)


def texts_of(data: str, config: ScoreConfig) -> Iterator[Text]:
    """Every text of a file or folder that has one."""
    for part in parts(data, config):
        for texts, _ in read(part):
            yield from texts


def texts_at(data: str, config: ScoreConfig, rows: Iterable[str]) -> dict[str, str]:
    """The texts of some rows of a file or folder, by row."""
    wanted = set(rows)
    return {text.row: text.text for text in texts_of(data, config) if text.row in wanted}


def require_labels(data: str, config: ScoreConfig) -> None:
    """Raise CorpusError when no text has a label: before all of them are judged for nothing."""
    if all(text.label is None for text in texts_of(data, config)):
        raise CorpusError(
            f"data={data}: no text has a label; expected a column 'label' of 0 (human) and 1 (ai). Name yours with "
            f"+score.columns.label=…"
        )


def _batches(rows: Iterable[Row]) -> Iterator[list[tuple[int, Row, bool]]]:
    """Rows with their numbers, and whether the one before could not be parsed: such a row may be a part of it."""
    batch: list[tuple[int, Row, bool]] = []
    chars, torn = 0, False
    for place, row in enumerate(rows):
        batch.append((place, row, torn))
        torn = row.problem == "bad_row"
        chars += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if len(batch) == BATCH_ROWS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _text(part: Part, place: int, row: Row, torn: bool) -> Text | None:
    def value(name: str) -> str:
        return _plain(row.values.get(part.columns.get(name, "")))

    text = row.values.get(part.columns["text"])
    if not isinstance(text, str) or not text.strip():
        return None
    label = _spelled(part, row)
    if label and label not in part.labels:
        if torn:
            return None
        raise _unknown_label(part, label)
    name = f"{part.number}-{place}"
    values = {column: value(column) for column in (*SLICES, "group")}
    return Text(name, value("id") or name, _SURROGATE.sub("\ufffd", text), part.labels.get(label), values)


def _plain(value: object) -> str:
    """A value as text, "" for none. A whole number stays whole where a column of floats holds it."""
    if value is None or value != value:  # NaN
        return ""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return _SURROGATE.sub("\ufffd", text.strip())


def _spelled(part: Part, row: Row) -> str:
    """The label of a row as `part.labels` spells it, "" for none."""
    name = part.columns.get("label")
    return _lower(row.values.get(name)) if name else ""


def _lower(value: object) -> str:
    return spelling(value).lower()


def _unknown_label(part: Part, found: str) -> CorpusError:
    shown = repr(found) if len(found) <= 20 else f"a value of {len(found)} characters"
    known = ", ".join(f"{value} ({'ai' if label else 'human'})" for value, label in part.labels.items())
    return CorpusError(
        f"data={part.piece.source.path}: column {part.columns['label']!r} holds {shown}; expected one of {known}. "
        f"Map others with +score.labels={{value: 0 or 1}}"
    )


def _rows(piece: Piece, columns: Mapping[str, str], check: Callable[[list[str]], None]) -> Iterator[Row]:
    """Rows of a piece with some of its columns; `check` is given all names of a file that says them."""
    filesystem, _ = open_uri(piece.source.path)
    for file in piece.files:
        path = f"{piece.root}/{file}"
        with readable(piece.source, file):
            if piece.source.kind == "parquet":
                yield from _parquet_rows(formats.parquet_file(filesystem, path), columns, check)
                continue
            with filesystem.open_input_stream(path) as stream:
                if piece.source.kind == "csv":
                    yield from formats.csv_rows(stream, partial(_checked, check))
                else:
                    yield from formats.json_rows(stream, file)


def _parquet_rows(
    file: pq.ParquetFile, columns: Mapping[str, str], check: Callable[[list[str]], None]
) -> Iterator[Row]:
    schema = file.schema_arrow
    _checked(check, schema.names)
    text = columns.get("text")
    if text and not formats.is_text(kind := schema.field(text).type):
        raise UnreadableError(f"column {text!r} is of type {kind}; expected string")
    wanted = [name for name in schema.names if name in columns.values()]
    if wanted:
        yield from formats.table_rows(formats.parquet_tables(file, wanted), wanted)


def _checked(check: Callable[[list[str]], None], names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise UnreadableError("expected columns of different names")
    check(names)
