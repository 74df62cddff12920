"""Texts that a detector is run on: files of Parquet, CSV or JSON lines, labelled or not, local or in a bucket.

Unlike a source of a corpus nothing is dropped or repaired: what a user sends is what is judged. Pure of Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count, islice

from detect_ai.config import ScoreConfig, SourceConfig
from detect_ai.corpus import formats
from detect_ai.corpus.formats import Row, UnreadableError
from detect_ai.corpus.read import Piece, pieces, readable, suffixes
from detect_ai.corpus.standardise import spelling
from detect_ai.errors import CorpusError
from detect_ai.storage import open_uri

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
BATCH_ROWS = 256


@dataclass(frozen=True)
class Text:
    """One text to judge.

    Attributes:
        id: its own, or file and number.
        label: 0 human, 1 ai, None where none is given.
        values: of the columns of `SLICES` and `group`, "" where there is none.
    """

    id: str
    text: str
    label: int | None
    values: dict[str, str]


@dataclass(frozen=True)
class Part:
    """A share of the rows of a file, read apart from the others: every `shares`-th batch from `share` on.

    Attributes:
        piece: the file.
        number: of the piece among those of the data.
        columns: our names to those of the file.
        labels: value of the label column to 0 or 1.
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
    names = column_names(found[0])
    columns = _mapped(data, config.columns, names)
    labels = {spelling(value): label for value, label in (config.labels or LABELS).items()}
    whole = [Part(piece, number, columns, labels) for number, piece in enumerate(found)]
    return [replace(part, share=share, shares=shares) for part in whole for share in range(shares)]


def kind_of(data: str) -> str:
    """`parquet`, `csv` or `jsonl`, by the names of the files. Raises CorpusError."""
    from pyarrow import fs as pafs

    filesystem, path = open_uri(data)
    with readable(SourceConfig(path=data), ""):
        info = filesystem.get_file_info(path.rstrip("/"))
        if info.type == pafs.FileType.File:
            names = [path]
        else:
            selector = pafs.FileSelector(path.rstrip("/"), recursive=True, allow_not_found=True)
            names = [f.path for f in filesystem.get_file_info(selector) if f.type == pafs.FileType.File]
    counts = {kind: sum(name.lower().endswith(ends) for name in names) for kind, ends in suffixes().items()}
    kind = max(counts, key=lambda name: counts[name])
    if not counts[kind]:
        state = f"{len(names)} files of other kinds" if names else "no such file or folder"
        raise CorpusError(
            f"data={data}: {state}; expected Parquet, CSV or JSON lines (.parquet, .csv, .jsonl, .json; .gz and .zst). "
            f"Under `ray job submit` give an absolute path or a gs:// URI that every node can read"
        )
    return kind


def column_names(piece: Piece) -> list[str]:
    """Names of the columns of a file: of Parquet from its schema, else those of its first rows."""
    rows = list(islice(_rows(piece, None), 100))
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _mapped(data: str, given: Mapping[str, str], names: list[str]) -> dict[str, str]:
    if unknown := sorted(set(given) - set(NAMES)):
        raise CorpusError(f"score.columns.{unknown[0]}: expected one of {', '.join(NAMES)}")
    for ours, theirs in given.items():
        if theirs and theirs not in names:
            raise CorpusError(f"data={data}: no column {theirs!r} (score.columns.{ours}); found {_listed(names)}")
    columns = {ours: next((name for name in usual if name in names), "") for ours, usual in NAMES.items()} | dict(given)
    if not columns["text"]:
        raise CorpusError(
            f"data={data}: no column 'text'; found {_listed(names)}. Name yours with score.columns.text=…"
        )
    return {ours: theirs for ours, theirs in columns.items() if theirs}


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:30]) or "no columns"


def read(part: Part) -> Iterator[tuple[list[Text], int]]:
    """The texts of a part in batches of `BATCH_ROWS` rows, and how many rows of each batch have no text.

    Raises:
        CorpusError: the file is broken, or a label is none of `labels`.
    """
    rows = enumerate(_rows(part.piece, set(part.columns.values())))
    for number in count():
        batch = list(islice(rows, BATCH_ROWS))
        if not batch:
            return
        if number % part.shares == part.share:
            texts = [text for place, row in batch if (text := _text(part, place, row))]
            yield texts, len(batch) - len(texts)


def _text(part: Part, place: int, row: Row) -> Text | None:
    def value(name: str) -> str:
        found = row.values.get(part.columns.get(name, ""))
        return "" if found is None or found != found else str(found).strip()

    text = row.values.get(part.columns["text"])
    if not isinstance(text, str) or not text.strip():
        return None
    values = {name: value(name) for name in (*SLICES, "group")}
    return Text(value("id") or f"{part.number}-{place}", text, _label(part, row), values)


def _label(part: Part, row: Row) -> int | None:
    name = part.columns.get("label")
    found = spelling(row.values.get(name)) if name else ""
    if not found:
        return None
    if found not in part.labels:
        shown = repr(found) if len(found) <= 20 else f"a value of {len(found)} characters"
        known = ", ".join(f"{value} ({'ai' if label else 'human'})" for value, label in part.labels.items())
        raise CorpusError(
            f"data={part.piece.source.path}: column {name!r} holds {shown}; expected one of {known}. "
            f"Map others with score.labels={{value: 0 or 1}}"
        )
    return part.labels[found]


def _rows(piece: Piece, wanted: set[str] | None) -> Iterator[Row]:
    """Rows of a piece with some of its columns; with all of them where None are wanted."""
    filesystem, _ = open_uri(piece.source.path)
    for file in piece.files:
        path = f"{piece.root}/{file}"
        with readable(piece.source, file):
            if piece.source.kind == "parquet":
                data = formats.parquet_file(filesystem, path)
                columns = [name for name in data.schema_arrow.names if wanted is None or name in wanted]
                yield from formats.table_rows(formats.parquet_tables(data, columns), columns)
                continue
            with filesystem.open_input_stream(path) as stream:
                is_csv = piece.source.kind == "csv"
                yield from formats.csv_rows(stream, _header) if is_csv else formats.json_rows(stream, file)


def _header(names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise UnreadableError("expected a header of different column names")
