"""Parsers of CSV, JSON lines, Parquet and text files, row by row. Pure.

A broken row is a `Row` with a problem, a broken file a SourceReadError. Memory is bounded by the longest row.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

MAX_ROW = 32 << 20  # bytes or characters; a longer row is a file without line ends
MAX_ARRAY = 1 << 30  # bytes of a JSON array
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 2000, 16 << 20  # of Parquet
_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as "surrogateescape" leaves them
_JSON = json.JSONDecoder(strict=False)  # a raw tab or NUL inside a text does not lose the text
_FOREIGN = {
    b"\x1f\x8b": "gzip data: name it .gz",
    b"\x28\xb5\x2f\xfd": "zstd data: name it .zst",
    b"PK\x03\x04": "a ZIP archive or an Excel file: unpack it, or export it as CSV",
    b"PAR1": "Parquet: name it .parquet",
    codecs.BOM_UTF16_LE: "UTF-16: convert it to UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16: convert it to UTF-8",
}


class Row(NamedTuple):
    """One row as its file has it.

    Attributes:
        values: by column of the file; empty if the row could not be parsed.
        problem: "", `bad_row` or `bad_encoding`.
        raw: what could not be parsed, for the quarantine.
    """

    values: dict[str, Any]
    problem: str = ""
    raw: str = ""


class SourceReadError(Exception):
    """A whole file cannot be read; the message says what was expected. It holds no text of a document."""


def refuse_foreign(head: bytes) -> None:
    """Raise SourceReadError if a file starts like one of another format."""
    for magic, description in _FOREIGN.items():
        if head.startswith(magic):
            raise SourceReadError(f"the file holds {description}")
    if head.count(0) * 4 > len(head):
        raise SourceReadError("the file holds UTF-16 or binary data: convert it to UTF-8")


def csv_rows(stream: io.BufferedReader, check_header: Callable[[list[str]], Any]) -> Iterator[Row]:
    """Rows of a CSV file (RFC 4180, UTF-8). Python's parser: pyarrow's accepts stray quotes and mangles the text."""
    csv.field_size_limit(MAX_ROW)  # the default, 128 kB, is shorter than a long document
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    record: list[str] = []
    reader = csv.reader(_remembered(text, record), strict=True)
    try:
        header = next(filter(None, reader), None)
    except csv.Error:
        raise SourceReadError("expected a header of column names in its first line") from None
    if header is None:
        return
    check_header(header)
    while True:
        record.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            if len(record) > 1 and not text.read(1):
                line = reader.line_num - len(record) + 1
                raise SourceReadError(f"a quote is opened in line {line} and never closed") from None
            fields = []
        if len(fields) == len(header):
            bad = any(not field.isascii() and _ESCAPED.search(field) for field in fields)
            yield Row(dict(zip(header, fields, strict=True)), "bad_encoding" if bad else "")
        elif "".join(record).strip("\r\n"):  # an empty line is not a row
            yield Row({}, "bad_row", "".join(record))


def _remembered(text: io.TextIOWrapper, record: list[str]) -> Iterator[str]:
    while line := text.readline(MAX_ROW):
        record.append(line)
        yield line


def json_rows(stream: io.BufferedReader) -> Iterator[Row]:
    """Rows of a JSON file (UTF-8): one object on each line, or one array of objects."""
    if stream.peek(64)[:64].removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        data = stream.read(MAX_ARRAY + 1)
        if len(data) > MAX_ARRAY:
            raise SourceReadError(f"a JSON array of more than {MAX_ARRAY >> 20} MB: write one object on each line")
        try:
            values = _JSON.decode(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise SourceReadError("expected one whole JSON array of objects in UTF-8, or an object a line") from error
        yield from (Row(v) if isinstance(v, dict) else Row({}, "bad_row", json.dumps(v)) for v in values)
        return
    is_first = True
    while line := stream.readline(MAX_ROW):
        is_whole = line.endswith(b"\n") or len(line) < MAX_ROW
        if is_first:
            line, is_first = line.removeprefix(codecs.BOM_UTF8), False
        if not is_whole:
            while (rest := stream.readline(MAX_ROW)) and not rest.endswith(b"\n"):
                pass
            yield Row({}, "bad_row", line.decode(errors="replace"))
        elif line.strip():  # an empty line is not a row
            yield _json_row(line)


def _json_row(line: bytes) -> Row:
    problem = ""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text, problem = line.decode(errors="replace"), "bad_encoding"
    try:
        values = _JSON.decode(text)
    except (ValueError, RecursionError):
        values = None
    return Row(values, problem) if isinstance(values, dict) else Row({}, problem or "bad_row", text)


def text_row(stream: io.BufferedReader, file: str) -> Row:
    """One text file as a row: the first folder is its label."""
    *folders, name = file.split("/")
    data = stream.read(MAX_ROW + 1)
    problem = "bad_row" if len(data) > MAX_ROW else ""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text, problem = data.decode("utf-8-sig", "replace"), problem or "bad_encoding"
    label = folders[0] if folders else None
    values = {"text": text, "label": label, "generator": label}
    return Row({**values, "folder": "/".join(folders[1:]), "file": name.rpartition(".")[0]}, problem)


def parquet_batches(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file in batches of bounded size, whatever the size of its rows and row groups."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    rows = min(_ROWS_AT_ONCE, max(1, _BYTES_AT_ONCE // max(1, row_bytes)))
    yield from file.iter_batches(rows, columns=list(columns), use_threads=False)


def table_rows(tables: Iterable[pa.Table | pa.RecordBatch], columns: Sequence[str]) -> Iterator[Row]:
    """Rows of Arrow tables with some of their columns."""
    for table in tables:
        for values in zip(*(_column_values(table.column(name)) for name in columns), strict=True):
            bad = any(isinstance(value, str) and not value.isascii() and _ESCAPED.search(value) for value in values)
            yield Row(dict(zip(columns, values, strict=True)), "bad_encoding" if bad else "")


def _column_values(column: Any) -> list[Any]:
    try:
        return cast(list[Any], column.to_pylist())
    except UnicodeDecodeError:  # not every writer of Parquet checks that its strings are UTF-8
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode(errors="surrogateescape") for value in raw]


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
