"""Published files to rows of our corpora. Pure: bytes in, rows out; the same files give the same rows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from detect_ai.core.errors import CorpusError
from detect_ai.corpus.formats import MAX_ROW
from detect_ai.corpus.prose import MIN_WORDS, clean_prose, cut
from detect_ai.corpus.published import PublishedFile, PublishedSource

PUBLISHED_SCHEMA = pa.schema(
    [("id", pa.string()), ("text", pa.string()), ("label", pa.int8())]
    + [(name, pa.string()) for name in ("source", "domain", "generator", "split", "topic", "license")]
)
HUMAN = "human"
VAL_FRACTION = 0.1  # of the topics of a training source
MAX_LENGTH_RATIO = 1.2  # to a length of the other class; longer texts are cut to it


class PublishedText(NamedTuple):
    """A text as published."""

    text: str
    generator: str  # `human` or a model
    topic: str
    domain: str


def published_rows(source: PublishedSource, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Rows with `PUBLISHED_SCHEMA` from the content of a source's files, cleaned and without duplicates.

    Raises CorpusError, without text of the files, if one is not in the format that the source describes.
    """
    try:
        texts = list(_READERS[source.convert.format](source, files))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise CorpusError(
            f"source {source.name}: expected files in the format {source.convert.format!r} with the described columns "
            f"({type(error).__name__})"
        ) from None
    rows: dict[str, dict[str, Any]] = {}
    for text in texts:
        label = int(text.generator != HUMAN)
        cleaned = clean_prose(text.text, label, source.convert.longest)
        if cleaned is not None:
            digest = hashlib.sha256(re.sub(r"\W+", "", cleaned.lower()).encode()).hexdigest()[:14]
            rows.setdefault(digest, _row(source, text, cleaned, label, digest))
    result = list(rows.values())
    if source.convert.match_lengths:
        _match_lengths(result)
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


def _match_lengths(rows: list[dict[str, Any]]) -> None:
    """Cut texts that are longer than a length drawn, by their id, from the other class of the domain."""
    lengths: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        lengths.setdefault((row["domain"], row["label"]), []).append(len(row["text"].split()))
    for row in rows:
        if others := sorted(lengths.get((row["domain"], 1 - row["label"]), [])):
            drawn = others[int(_fraction(row["id"]) * len(others))]
            if len(row["text"].split()) > MAX_LENGTH_RATIO * drawn:
                shortened = cut(row["text"], drawn)
                row["text"] = shortened if len(shortened.split()) >= MIN_WORDS else row["text"]


# Formats


def _text_columns(source: PublishedSource, files: Mapping[str, bytes]) -> Iterator[PublishedText]:
    """CSV files with a column of texts for each generator; a row is a topic."""
    for file in source.files:
        for i, row in _chosen(file, _csv_rows(files[file.path])):
            topic = row[source.convert.topic] if source.convert.topic else str(i)
            for column, generator in source.convert.columns.items():
                yield PublishedText(row[column], generator, topic, file.domain)


def _labelled_rows(source: PublishedSource, files: Mapping[str, bytes]) -> Iterator[PublishedText]:
    """CSV files with a text and a label in each row."""
    convert = source.convert
    for file in source.files:
        for i, row in _chosen(file, _csv_rows(files[file.path])):
            topic = row[convert.topic] if convert.topic else str(i)
            generator = convert.generator if convert.labels[row[convert.label]] else HUMAN
            yield PublishedText(row[convert.text], generator, topic, file.domain)


def _parallel_json(source: PublishedSource, files: Mapping[str, bytes]) -> Iterator[PublishedText]:
    """JSON arrays, or JSON lines, of texts or objects; each file has one generator, and equal positions one topic."""
    for file in source.files:
        data = files[file.path].decode("utf-8-sig")
        values = json.loads(data) if data.lstrip()[:1] == "[" else map(json.loads, data.splitlines())
        own = "" if file.aligned else file.generator.removesuffix("+paraphrase")
        prefix = "_".join(filter(None, [file.domain, own]))
        for i, value in _chosen(file, values):
            text = value if isinstance(value, str) else value[file.text or source.convert.text]
            yield PublishedText(text, file.generator, f"{prefix}_{i}" if prefix else str(i), file.domain)


def _csv_rows(data: bytes) -> Iterator[dict[str, str]]:
    csv.field_size_limit(MAX_ROW)  # the default, 128 kB, is shorter than a long document
    yield from csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)


def _chosen(file: PublishedFile, values: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Position and value of the rows of a file that the corpus contains."""
    return ((i, value) for i, value in enumerate(values) if file.positions is None or i in file.positions)


_READERS: dict[str, Callable[[PublishedSource, Mapping[str, bytes]], Iterator[PublishedText]]] = {
    "text_columns": _text_columns,
    "labelled_rows": _labelled_rows,
    "parallel_json": _parallel_json,
}
