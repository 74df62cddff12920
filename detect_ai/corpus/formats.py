"""Parsers of CSV, JSON lines and text files, row by row. Pure.

A broken row is a `Row` with a problem, a broken file a SourceReadError. Memory is bounded by the longest row.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

MAX_ROW = 32 << 20  # bytes or characters; a longer row is a file without line ends
MAX_ARRAY = 1 << 30  # bytes of a JSON array
_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as "surrogateescape" leaves them
_JSON = json.JSONDecoder(strict=False)  # a raw tab or NUL inside a text does not lose the text
_FOREIGN = {
    b"\x1f\x8b": "gzip data: name it .gz",
    b"\x28\xb5\x2f\xfd": "zstd data: name it .zst",
    b"PK\x03\x04": "a ZIP archive or an Excel file: unpack it, or export it as CSV",
    b"PAR1": "Parquet: name it .parquet",
}


class Row(NamedTuple):
    """One row as it is in its file."""

    values: dict[str, Any]  # by column of the file; empty if the row could not be parsed
    problem: str = ""  # or `bad_row`, `bad_encoding`
    raw: str = ""  # the unparsed row, for the quarantine


class SourceReadError(Exception):
    """A whole file cannot be read. The message says what was expected and contains no document text."""


def refuse_foreign(head: bytes) -> None:
    """Raise SourceReadError if a file starts with the signature of another format."""
    for magic, description in _FOREIGN.items():
        if head.startswith(magic):
            raise SourceReadError(f"the file contains {description}")
    if head.count(0) * 4 > len(head):
        raise SourceReadError("the file contains UTF-16 or binary data: convert it to UTF-8")


def csv_rows(stream: io.BufferedReader, check_header: Callable[[list[str]], Any]) -> Iterator[Row]:
    """Rows of a CSV file (RFC 4180, UTF-8). Uses Python's parser: pyarrow accepts stray quotes and mangles the text."""
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
            is_bad = any(not field.isascii() and _ESCAPED.search(field) for field in fields)
            yield Row(dict(zip(header, fields, strict=True)), "bad_encoding" if is_bad else "")
        elif "".join(record).strip("\r\n"):  # an empty line is not a row
            yield Row({}, "bad_row", "".join(record))


def _remembered(text: io.TextIOWrapper, record: list[str]) -> Iterator[str]:
    """Yield the lines of a file and append each to `record`, the raw form of the current row."""
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
    bom = codecs.BOM_UTF8
    while line := stream.readline(MAX_ROW):
        if len(line) == MAX_ROW:
            raise SourceReadError(f"a line of more than {MAX_ROW >> 20} MB: write one object on each line")
        text, problem = _decode(line.removeprefix(bom), "utf-8")
        bom = b""
        try:
            value = _JSON.decode(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield Row(value, problem)
        elif text.strip():  # an empty line is not a row
            yield Row({}, problem or "bad_row", text)


def text_row(stream: io.BufferedReader, file: str) -> Row:
    """One text file as a row: the first folder is its label."""
    *folders, name = file.split("/")
    data = stream.read(MAX_ROW + 1)
    text, problem = _decode(data, "utf-8-sig")
    label = folders[0] if folders else None
    values = {"text": text, "label": label, "generator": label}
    values |= {"folder": "/".join(folders[1:]), "file": name.rpartition(".")[0]}
    return Row(values, "bad_row" if len(data) > MAX_ROW else problem)


def _decode(data: bytes, encoding: str) -> tuple[str, str]:
    """The decoded text and its problem ("" for none)."""
    try:
        return data.decode(encoding), ""
    except UnicodeDecodeError:
        return data.decode(encoding, "replace"), "bad_encoding"
