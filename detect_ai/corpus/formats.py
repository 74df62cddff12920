"""Files to rows, one by one: a broken row is a row with a problem, a broken file an error. Pure of Ray.

Memory is bounded by the longest row, never by the file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

Values = dict[str, Any]

MAX_ROW = 32 << 20  # bytes or characters: what is longer is no document, but a file without ends of rows
_MAX_REPEATED = 8 * MAX_ROW  # characters of a CSV file that may be read once more after broken rows
_CHUNK = 1 << 20  # bytes
_BATCH_ROWS = 2000
_BATCH_BYTES = 16 << 20
# Bytes that are not UTF-8, as the error handler "surrogateescape" leaves them.
_ESCAPED = re.compile("[\udc80-\udcff]")
_MAY_BE_ARRAY = re.compile(r"\.json(\.gz|\.zst)?$", re.IGNORECASE)
_JSON = json.JSONDecoder(strict=False)  # a raw tab or NUL inside a text is no reason to lose the text
_SPACE = " \t\r\n"
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_ROW_END = re.compile(r"[ \t\r\n]*[,\]]")


class Row(NamedTuple):
    """One row as it stands in a source.

    Attributes:
        values: by the source's own column names; empty when the row could not be parsed.
        problem: "" or `bad_row` or `bad_encoding`.
        raw: what could not be parsed, so that nothing is lost.
    """

    values: Values
    problem: str = ""
    raw: str = ""


class UnreadableError(Exception):
    """A file as a whole cannot be read; the message says what was expected. It holds no text of a document."""


def csv_rows(stream: Any, check: Callable[[list[str]], None]) -> Iterator[Row]:
    """Rows of a CSV file (RFC 4180, UTF-8, with or without a byte order mark) under its header.

    A row with a wrong number of fields, or with a quote that is not closed or not doubled, is a `bad_row`.

    Args:
        stream: binary and decompressed.
        check: is given the header and may refuse it.

    Raises:
        UnreadableError: the header cannot be parsed.
    """
    # The module's own limit, 128 kB, is less than a long document; it has one for the whole process.
    csv.field_size_limit(MAX_ROW)
    lines = _Lines(stream)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        lines.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLong):
            if header is None:
                raise UnreadableError("expected a header of column names in its first line") from None
            yield Row({}, "bad_row", lines.go_back())
            continue
        if header is None:
            if fields:
                check(header := fields)
        elif len(fields) == len(header):
            bad = any(not field.isascii() and _ESCAPED.search(field) for field in fields)
            yield Row(dict(zip(header, fields, strict=True)), "bad_encoding" if bad else "")
        elif fields:  # an empty line is no row
            yield Row({}, "bad_row", "".join(lines.record))


class _TooLong(Exception):  # noqa: N818 - it never leaves this module
    """A record of a CSV file is longer than any document."""


class _Lines:
    """Lines for `csv.reader` that remember the record they belong to.

    A quote that is never closed swallows the rows behind it. Going back costs the file its first line only.
    """

    def __init__(self, stream: Any) -> None:
        self._text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        self._again: deque[str] = deque()
        self._repeated = 0
        self.begin()

    def begin(self) -> None:
        """A new record begins."""
        self.record: list[str] = []
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        if not line:
            raise StopIteration
        self.record.append(line)
        self._size += len(line)
        if self._size >= MAX_ROW:
            raise _TooLong
        return line

    def _read(self) -> str:
        """The next line, cut at the limit: what stands behind it would pass for a row of its own."""
        line = rest = self._text.readline(MAX_ROW)
        while len(rest) == MAX_ROW and not rest.endswith(("\n", "\r")):
            rest = self._text.readline(MAX_ROW)
        return line

    def go_back(self) -> str:
        """Give up the record's first line and read the others again. Returns what is given up."""
        self._repeated += self._size
        kept = 1 if self._repeated <= _MAX_REPEATED else len(self.record)  # else a hostile file would take for ever
        self._again.extendleft(reversed(self.record[kept:]))
        return "".join(self.record[:kept])


def json_rows(stream: Any, name: str) -> Iterator[Row]:
    """Rows of a JSON file (UTF-8): an object on each line, or in a `.json` also one array of objects.

    Args:
        stream: binary and decompressed.
        name: of the file.

    Raises:
        UnreadableError: an array breaks off or is broken: where its next row begins is then unknown.
    """
    file = io.BufferedReader(stream, _CHUNK)
    if _MAY_BE_ARRAY.search(name) and _opens_array(file):
        return _array_rows(file)
    return _line_rows(file)


def _opens_array(file: io.BufferedReader) -> bool:
    return file.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _line_rows(file: io.BufferedReader) -> Iterator[Row]:
    first = True
    while line := file.readline(MAX_ROW):
        whole = line.endswith(b"\n") or len(line) < MAX_ROW
        if first:
            line, first = line.removeprefix(codecs.BOM_UTF8), False
        if not whole:
            while (rest := file.readline(MAX_ROW)) and not rest.endswith(b"\n"):
                pass
            yield Row({}, "bad_row", line.decode(errors="replace"))
        elif line.strip():  # an empty line is no row
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


def _array_rows(file: io.BufferedReader) -> Iterator[Row]:
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    buffer, place, count = text.read(_CHUNK).lstrip(_SPACE)[1:], 0, 0
    while True:
        while (found := _element(buffer, place)) is not None:
            row, place = found
            if row is None:
                return
            count += 1
            yield row
        chunk = text.read(_CHUNK)
        if not chunk or len(buffer) - place > MAX_ROW:
            raise UnreadableError(
                f"expected one whole JSON array of objects; it breaks off or is broken behind row {count}"
            )
        buffer, place = buffer[place:] + chunk, 0


def _element(buffer: str, place: int) -> tuple[Row | None, int] | None:
    """The next row of an array and the place behind it; no row at the array's end; None where the buffer ends first."""
    place = _BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]
    if buffer[place : place + 1] == "]":
        return None, place
    try:
        values, end = _JSON.raw_decode(buffer, place)
    except (ValueError, RecursionError):
        return None
    if not _ROW_END.match(buffer, end):  # a number may go on behind the buffer
        return None
    raw = buffer[place:end]
    problem = "bad_encoding" if not raw.isascii() and _ESCAPED.search(raw) else ""
    return (Row(values, problem) if isinstance(values, dict) else Row({}, "bad_row", raw)), end


def text_row(stream: Any, **values: Any) -> Row:
    """One row for a text file (UTF-8): its `text`, and values from elsewhere.

    Args:
        stream: binary and decompressed.
        values: further columns of the row.
    """
    data = io.BufferedReader(stream).read(MAX_ROW + 1)
    problem = "bad_row" if len(data) > MAX_ROW else ""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text, problem = data.decode("utf-8-sig", "replace"), problem or "bad_encoding"
    return Row({"text": text, **values}, problem)


def parquet_file(filesystem: pafs.FileSystem, path: str) -> pq.ParquetFile:
    """Open a Parquet file. Raises pyarrow.ArrowInvalid when it is not one, or not a whole one."""
    return pq.ParquetFile(filesystem.open_input_file(path), buffer_size=_CHUNK, pre_buffer=False)


def parquet_tables(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file in batches that fit the memory, however long its rows and row groups are."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    longest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, longest)))
    yield from file.iter_batches(rows, columns=list(columns), use_threads=False)


def table_rows(tables: Iterable[pa.Table | pa.RecordBatch], columns: Sequence[str]) -> Iterator[Row]:
    """Rows of Arrow tables, with some of their columns."""
    for table in tables:
        for values in zip(*(_values(table.column(name)) for name in columns), strict=True):
            bad = any(isinstance(value, str) and not value.isascii() and _ESCAPED.search(value) for value in values)
            yield Row(dict(zip(columns, values, strict=True)), "bad_encoding" if bad else "")


def _values(column: Any) -> list[Any]:
    try:
        return cast(list[Any], column.to_pylist())
    except UnicodeDecodeError:  # Parquet says UTF-8 and not every writer keeps its word
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode(errors="surrogateescape") for value in raw]


def is_text(kind: pa.DataType) -> bool:
    """Whether a type of Arrow holds texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
