"""Texts to evaluate or score: Parquet, CSV, JSON lines (with or without labels) or plain text. Does not use Ray.

They are read by `corpus/sources.py` like training sources, but not cleaned: a text is scored as it is in its file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from detect_ai.core.config import ScoreConfig, SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.columns import label_map, label_text, plain_text, shown_names, unknown_label
from detect_ai.corpus.formats import Row
from detect_ai.corpus.sources import SUFFIXES, Piece, list_files, list_pieces, raw_rows
from detect_ai.text.characters import SURROGATE, is_blank

SLICES = ("source", "domain", "generator", "language", "attack", "subset")  # columns to report metrics by
# Our columns and their default names in a file; `score.columns` maps other names.
NAMES = {name: (name,) for name in ("text", "label", "id", "key", *SLICES)} | {"group": ("group", "topic")}
BATCH_ROWS, BATCH_CHARS = 256, 4 << 20


@dataclass(frozen=True)
class Text:
    """One text."""

    row: str  # numbers of its file and row; unique in the data, unlike `id`
    id: str  # from the column `id`, else `row`
    text: str
    label: int | None  # 0 human, 1 AI, None if unknown
    values: dict[str, str]  # of the columns in `SLICES` and `group`, "" if missing
    key: str = ""  # who vouches for the label, "" if unknown


@dataclass(frozen=True)
class Part:
    """A fraction of the rows of a file: every `step`-th batch, starting with batch `offset`."""

    piece: Piece  # the file
    number: int  # of the piece in the data
    columns: dict[str, str]  # our name: name in the file
    labels: dict[str, int]  # label in normal form: 0 or 1
    offset: int = 0
    step: int = 1


def parts(data: str, config: ScoreConfig, step: int = 1) -> list[Part]:
    """The `step` parts of a file, or of every file of a folder (a path or URI), for workers to read independently.

    In a folder with only text files (.txt, .md), each file is an unlabelled text; its id is its name.
    Raises CorpusError if there is nothing to read, files have different formats, or no column has texts.
    """
    files = [name for name, _ in list_files(data)[1]]
    kinds = ("parquet", "csv", "jsonl")
    by_kind = {kind: name for kind in kinds for name in files if name.lower().endswith(SUFFIXES[kind])}
    if not by_kind and any(name.lower().endswith(".txt") for name in files):
        by_kind = {"folder": data}
    if len(by_kind) > 1:
        raise CorpusError(f"data={data}: files of several kinds ({', '.join(by_kind.values())}): expected one kind")
    if not by_kind:
        state = f"{len(files)} files of other kinds" if files else "no such file or folder"
        raise CorpusError(
            f"data={data}: {state}; expected Parquet, CSV, JSON lines (.parquet, .csv, .jsonl, .json; .gz and .zst) or "
            f"text (.txt, .md). Under `ray job submit` give an absolute path or a gs:// URI that every node can read"
        )
    pieces = list_pieces(SourceConfig.model_validate({"kind": next(iter(by_kind)), "path": data}), unlabelled=True)
    if "folder" in by_kind:
        columns = {"text": "text", "id": "file"}
    else:  # an empty file has no columns; `list_pieces` rejects data if all files are empty
        columns = _column_map(data, config.columns, next(filter(None, map(_column_names, pieces)), []))
    labels = label_map(config.labels)
    pieces = [replace(p, source=p.source.model_copy(update={"text": columns["text"]})) for p in pieces]
    return [
        Part(piece, number, columns, labels, offset, step)
        for number, piece in enumerate(pieces)
        for offset in range(step)
    ]


def _column_names(piece: Piece) -> list[str]:
    """Columns of a file: from its schema or header, for JSON from the first 100 rows."""
    names: list[str] = []

    def select(header: Sequence[str], _: str) -> list[str]:
        names.extend(header)
        return []

    is_json = piece.source.kind == "jsonl"
    for _, row in islice(raw_rows(piece, select), 100 if is_json else 1):
        names.extend(row.values if is_json else [])
    return list(dict.fromkeys(names))


def _column_map(data: str, given: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    if unknown := sorted(set(given) - set(NAMES)):
        raise CorpusError(f"score.columns.{unknown[0]}: expected one of {', '.join(NAMES)}")
    for ours, theirs in given.items():
        if theirs and theirs not in names:
            raise CorpusError(f"data={data}: no column {theirs!r} (score.columns.{ours}); found {shown_names(names)}")
    # JSON omits empty fields, so a column may appear after the first rows.
    columns = {ours: next((name for name in usual if name in names), usual[0]) for ours, usual in NAMES.items()}
    columns |= given
    if columns["text"] not in names:
        raise CorpusError(
            f"data={data}: no column 'text'; found {shown_names(names)}. Name yours with +score.columns.text=…"
        )
    return {ours: theirs for ours, theirs in columns.items() if theirs}


def read(part: Part) -> Iterator[tuple[list[Text], int]]:
    """The texts of a part in batches of at most `BATCH_ROWS` rows, and the number of skipped rows in each batch.

    Rows without a text, and rows that cannot be parsed or are not UTF-8, are skipped. Raises CorpusError if the file is
    unreadable, too many rows are broken, the column of texts is missing, or a label is unknown.
    """
    text_column = part.columns["text"]

    def select(names: Sequence[str], where: str) -> list[str]:
        if text_column not in names:
            raise CorpusError(f"{where}: no column {text_column!r}; found {shown_names(names)}")
        return [name for name in names if name in part.columns.values()]

    texts: list[Text] = []
    rows = chars = batch = 0
    after_bad = False  # a row after a broken row may be part of the broken one
    for place, (_, row) in enumerate(raw_rows(part.piece, select)):
        is_own = batch % part.step == part.offset
        if is_own and (text := _text(part, place, row, after_bad)):
            texts.append(text)
        after_bad = row.problem == "bad_row"
        rows, chars = rows + 1, chars + sum(len(value) for value in row.values.values() if isinstance(value, str))
        if rows == BATCH_ROWS or chars >= BATCH_CHARS:
            if is_own:
                yield texts, rows - len(texts)
            texts, rows, chars, batch = [], 0, 0, batch + 1
    if rows and batch % part.step == part.offset:
        yield texts, rows - len(texts)


def _text(part: Part, place: int, row: Row, after_bad: bool) -> Text | None:
    values = {ours: row.values.get(theirs) for ours, theirs in part.columns.items()}
    text, label = values["text"], label_text(values.get("label"))
    if row.problem or not isinstance(text, str) or is_blank(text):
        return None
    if label and label not in part.labels:
        if after_bad:
            return None
        where, option = f"data={part.piece.source.path}", "+score.labels={value: 0 or 1}"
        raise unknown_label(where, part.columns["label"], values["label"], part.labels, option)
    name = f"{part.number}-{place}"
    strings = {column: plain_text(values.get(column)) for column in (*SLICES, "group")}
    row_id = plain_text(values.get("id")) or name
    label_key = plain_text(values.get("key"))
    return Text(name, row_id, SURROGATE.sub("\ufffd", text), part.labels.get(label), strings, label_key)


def texts_of(data: str, config: ScoreConfig) -> Iterator[Text]:
    """All texts of a file or folder."""
    for part in parts(data, config):
        for texts, _ in read(part):
            yield from texts


def texts_at(data: str, config: ScoreConfig, rows: Iterable[str]) -> dict[str, str]:
    """The texts of the given rows of a file or folder, by row."""
    wanted = set(rows)
    return {text.row: text.text for text in texts_of(data, config) if text.row in wanted}


def require_labels(data: str, config: ScoreConfig) -> None:
    """Raise CorpusError if no text has a label."""
    if all(text.label is None for text in texts_of(data, config)):
        raise CorpusError(
            f"data={data}: no text has a label; expected a column 'label' of 0 (human) and 1 (ai). Name yours with "
            f"+score.columns.label=…"
        )
