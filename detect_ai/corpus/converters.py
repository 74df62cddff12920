"""Conversion of published files to corpus rows. Pure: bytes in, rows out; the same files give the same rows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from defusedxml import ElementTree

from detect_ai.core.errors import CorpusError
from detect_ai.corpus.formats import MAX_ROW
from detect_ai.corpus.prose import MARKUP, MIN_WORDS, clean_prose, cut, plain_typography, windows
from detect_ai.corpus.published import Conversion, PublishedFile, PublishedSource

PUBLISHED_SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("label", pa.int8())]
    + [(name, pa.string()) for name in ("source", "domain", "generator", "split", "topic", "license")]
)
HUMAN = "human"
VAL_FRACTION = 0.1  # of the topics of a training source
MAX_LENGTH_RATIO = 1.2  # to a length drawn from the other class; longer texts are cut to that length


class PublishedText(NamedTuple):
    """A text as published."""

    text: str
    generator: str  # `human` or a model
    topic: str
    domain: str


def published_rows(source: PublishedSource, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Rows with `PUBLISHED_SCHEMA` from the content of a source's files, cleaned and without duplicates.

    Raises CorpusError, without quoting the files, if a file is not in the format that the source describes.
    """
    try:
        texts = list(_READERS[source.convert.format](source, files))
    except (KeyError, TypeError, ValueError, csv.Error, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise CorpusError(
            f"source {source.name}: expected files in the format {source.convert.format!r} with the described columns "
            f"({type(error).__name__})"
        ) from None
    rows: dict[str, dict[str, Any]] = {}
    for text in texts:
        label = int(text.generator != HUMAN)
        cleaned = clean_prose(text.text, label, source.convert.longest, source.convert.min_words)
        if cleaned is not None:
            digest = hashlib.sha256(re.sub(r"\W+", "", cleaned.lower()).encode()).hexdigest()[:14]
            rows.setdefault(digest, _row(source, text, cleaned, label, digest))
    result = list(rows.values())
    if source.convert.match_lengths:
        _match_lengths(result, source.convert.lengths)
    return result


def check_counts(source: PublishedSource, rows: list[dict[str, Any]]) -> None:
    """Raise CorpusError if the number of rows differs from the published one by more than the tolerance."""
    ai = sum(row["label"] for row in rows)
    for kind, count, expected in (("human", len(rows) - ai, source.rows.human), ("AI", ai, source.rows.ai)):
        if abs(count - expected) > source.tolerance * expected:
            raise CorpusError(
                f"source {source.name}: {count} {kind} texts after conversion; expected {expected} within "
                f"{source.tolerance:.0%}"
            )


def _row(source: PublishedSource, text: PublishedText, cleaned: str, label: int, digest: str) -> dict[str, Any]:
    topic = f"{source.name}_{text.topic}"
    is_val = source.split == "train" and _fraction(topic) < VAL_FRACTION
    return {
        "id": f"{source.name}-{digest}",
        "text": cleaned,
        "label": label,
        "source": source.name,
        "domain": text.domain or source.domain,
        "generator": text.generator,
        "split": "val" if is_val else source.split,
        "topic": topic,
        "license": source.licence,
    }


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _match_lengths(rows: list[dict[str, Any]], quantiles: Mapping[str, list[int]]) -> None:
    """Cut texts longer than `MAX_LENGTH_RATIO` times a length, drawn by their id from the domain's other class."""
    lengths: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        lengths.setdefault((row["domain"], row["label"]), []).append(len(row["text"].split()))
    for row in rows:
        others = quantiles.get(row["domain"]) or sorted(lengths.get((row["domain"], 1 - row["label"]), []))
        if others:
            drawn = others[int(_fraction(row["id"]) * len(others))]
            words = len(row["text"].split())
            if words > MAX_LENGTH_RATIO * drawn:
                # Cut near the drawn length, at a sentence end that leaves enough words.
                parts = (cut(row["text"], longest) for longest in range(drawn, words + 1))
                row["text"] = next(part for part in parts if len(part.split()) >= min(MIN_WORDS, words))


# Formats


def _records(source: PublishedSource, files: Mapping[str, bytes]) -> Iterator[PublishedText]:
    """Texts of tables and lists, one or several per row; rows at the same position in several files share a topic."""
    convert = source.convert
    for file in source.files:
        columns = convert.columns or {file.text or convert.text: file.generator}
        for i, row in _chosen(file, _rows(files[file.path])):
            if isinstance(row, str):
                yield PublishedText(_plain(row, file, convert), file.generator, _topic(file, str(i)), file.domain)
                continue
            topic = _topic(file, row[convert.topic] if convert.topic else str(i))
            for column, generator in columns.items():
                if convert.label:
                    generator = convert.generator if convert.labels[row[convert.label]] else HUMAN
                yield PublishedText(_plain(row[column], file, convert), generator, topic, file.domain)


def _documents(source: PublishedSource, files: Mapping[str, bytes]) -> Iterator[PublishedText]:
    """Windows cut from documents; each document is a topic."""
    convert = source.convert
    for file in source.files:
        for _, (topic, document) in _chosen(file, _split(file, convert, files[file.path])):
            if convert.topic and (match := re.search(convert.topic, f"{topic}\n{document}", re.DOTALL)):
                topic = hashlib.sha256(match[1].strip().encode()).hexdigest()[:12]
            if convert.extract:
                parts = re.findall(convert.extract, document, re.DOTALL | re.MULTILINE)
                document = convert.joint.join(part.strip() for part in parts)
            text = plain_typography(_plain(document, file, convert))
            most = file.windows or convert.windows
            for window in windows(text, convert.shortest or convert.longest, convert.longest, most):
                yield PublishedText(window, file.generator, _topic(file, topic), file.domain)


def _rows(data: bytes) -> Iterator[Any]:
    if data[:4] == b"PK\x03\x04":
        yield from _sheet_rows(data)
        return
    text = data.decode("utf-8-sig")
    if text.lstrip()[:1] == "[":
        yield from json.loads(text)
    elif text.split(maxsplit=1)[:1] == ["{"]:
        columns = json.loads(text)
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    elif text[:1] == "{":
        yield from map(json.loads, text.splitlines())
    else:
        csv.field_size_limit(MAX_ROW)  # the default, 128 kB, is shorter than a long document
        yield from csv.DictReader(io.StringIO(text, newline=""), strict=True)


def _sheet_rows(data: bytes) -> Iterator[dict[str, str]]:
    """The rows of the first sheet of an XLSX file."""
    names = {"": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        strings = ["".join(item.itertext()) for item in ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))]
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    header: dict[str, str] = {}
    for row in sheet.iterfind(".//row", names):
        cells = {}
        for cell in row.iterfind("c", names):
            value = cell.findtext("v", "", names)
            column = cell.attrib["r"].rstrip("0123456789")
            cells[column] = strings[int(value)] if cell.get("t") == "s" and value else value
        if header:
            yield {name: cells.get(column, "") for column, name in header.items()}
        else:
            header = cells


def _split(file: PublishedFile, convert: Conversion, data: bytes) -> Iterator[tuple[str, str]]:
    """Names and texts of the documents of a file."""
    members = {file.path: data}
    if file.path.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in sorted(archive.namelist()) if re.search(file.members, name)]
            members = {name: archive.read(name) for name in names if not name.endswith("/")}
    for name, content in members.items():
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("latin-1")
        if convert.separator:
            parts = re.split(convert.separator, text, flags=re.MULTILINE)
            yield from ((f"{name}_{i}", part) for i, part in enumerate(parts))
        else:
            yield name, text


def _plain(text: str, file: PublishedFile, convert: Conversion) -> str:
    """A text without markup."""
    for pattern in convert.remove:
        text = re.sub(pattern, "", text, flags=re.MULTILINE)
    return MARKUP[file.markup or convert.markup](text)


def _topic(file: PublishedFile, topic: str) -> str:
    return "_".join(filter(None, [file.domain, file.group, topic]))


def _chosen(file: PublishedFile, values: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Positions and values of those rows or documents of a file that belong to the corpus."""
    return ((i, value) for i, value in enumerate(values) if file.positions is None or i in file.positions)


_READERS: dict[str, Callable[[PublishedSource, Mapping[str, bytes]], Iterator[PublishedText]]] = {
    "records": _records,
    "documents": _documents,
}
