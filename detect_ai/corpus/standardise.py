"""Rows of any source to rows of one form. What is wrong with a row stands in its `problem`. Pure of Ray."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.formats import Row, is_text
from detect_ai.corpus.manifest import ORIGINAL
from detect_ai.corpus.presets import preset_of

ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("label", pa.int8()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("generator", pa.string()),
        ("group", pa.string()),
        ("language", pa.string()),
        ("split", pa.string()),
        ("attack", pa.string()),
        ("weight", pa.float32()),
        ("problem", pa.string()),
    ]
)
StandardRow = tuple[Any, ...]  # in the order of `ROW_SCHEMA`

_SURROGATE = re.compile("[\ud800-\udfff]")  # Arrow holds none
_SPELLINGS = {"true": "1", "1.0": "1", "false": "0", "0.0": "0", "nan": ""}


class Standard:
    """Maps rows of a source, and remembers which columns they had.

    Args:
        source: with its preset applied.
        name: of the source, for its rows.
        unlabelled: a label is not expected.

    Attributes:
        count: rows so far.
    """

    def __init__(self, source: SourceConfig, name: str, unlabelled: bool) -> None:
        self._source, self._name, self._unlabelled = source, name, unlabelled
        self._preset = preset = preset_of(source)
        self._labels = {spelling(value): label for value, label in source.labels.items()}
        self._lost = False  # the row before could not be parsed: this one may be a part of it
        self._needed = [*preset.needs, source.text, *([] if unlabelled else [source.label])]
        named = (source.id, source.group, source.domain, source.generator, source.language, source.split, source.attack)
        self._named = [name for name in named if name]
        self._seen: set[str] = set()
        self.count = 0

    def rows(self, rows: Iterable[Row], file: str) -> Iterator[StandardRow]:
        """The rows of one file. Raises CorpusError for a label that the configuration does not have."""
        for number, row in enumerate(self._exploded(rows), 1):
            self.count += 1
            yield self._standard(row, f"{file}#{number}")

    def _exploded(self, rows: Iterable[Row]) -> Iterator[Row]:
        make = self._preset.rows
        for row in rows:
            self._seen |= row.values.keys()
            if not make or not row.values:
                yield row
                continue
            for values in make(row.values):
                self._seen |= values.keys()
                yield Row(values, row.problem, row.raw)

    def header(self, names: Iterable[str]) -> None:
        """Take note of the columns that all rows of a file have. Raises CorpusError when one is missing."""
        self._seen.update(names)
        self._require(self._preset.needs if self._preset.rows else self._needed)

    def columns(self, schema: pa.Schema) -> list[str]:
        """Columns to read of typed rows. Raises CorpusError when one is missing, or the text is of another type."""
        self.header(schema.names)
        text = self._source.text
        if text in schema.names and not is_text(kind := schema.field(text).type):
            raise CorpusError(f"source {self._source.path}: column {text!r} is of type {kind}; expected string")
        wanted = {*self._needed, *self._named, self._source.label}
        return [name for name in schema.names if self._preset.rows or name in wanted]

    def check(self, whole: bool) -> None:
        """Raise CorpusError when rows were read and none of them had a column that the source should have.

        Args:
            whole: all rows were read. Before that, an optional column may still come: JSON leaves out what is empty.
        """
        named = self._named if whole and not self._unlabelled else []
        self._require([*self._needed, *named] if self.count else self._preset.needs)

    def _require(self, columns: Iterable[str]) -> None:
        missing = [name for name in dict.fromkeys(columns) if name not in self._seen]
        if self._seen and missing:
            found = ", ".join(repr(name[:40]) for name in sorted(self._seen)[:30])
            schema = f" of the preset {self._source.preset!r}" if self._source.preset else ""
            raise CorpusError(
                f"source {self._source.path}: no column {', '.join(map(repr, missing))}{schema}; found {found}. "
                f"Map yours with corpus.sources.N.text=…, .label=…"
            )

    def _standard(self, row: Row, place: str) -> StandardRow:
        """One row in the order of `ROW_SCHEMA`. `place` names it where neither an id nor a text does."""
        source = self._source

        def named(column: str) -> str:
            # An unnamed column, such as an index that pandas wrote, is none that an empty name asks for.
            return _plain(row.values.get(column)) if column else ""

        text = row.values.get(source.text)
        problem = row.problem
        if not isinstance(text, str) or not text:
            text, problem = row.raw, problem or "no_text"
        label, wrong = self._label(row)
        problem = problem or wrong
        self._lost = problem == "bad_row"
        text, digest = _digested(text)
        row_id = named(source.id) or f"{self._name}-{digest if text else place}"
        return (
            row_id,
            text,
            label,
            self._name,
            named(source.domain),
            "" if label == 0 else named(source.generator),  # a human text has none
            named(source.group) or row_id,
            named(source.language),
            named(source.split),
            named(source.attack) or ORIGINAL,
            source.weight,
            problem,
        )

    def _label(self, row: Row) -> tuple[int | None, str]:
        """The label of a row and its problem. Raises CorpusError for a value that `labels` does not have."""
        value = row.values.get(self._source.label)
        spelled = spelling(value)
        label = self._labels.get(spelled)
        if label is not None or row.problem or self._unlabelled:
            return label, ""
        if not spelled:
            return None, "no_label"
        if self._lost:
            return None, "bad_row"
        found = repr(str(value)) if len(str(value)) <= 20 else f"a value of {len(str(value))} characters"
        known = ", ".join(f"{name} ({'ai' if label else 'human'})" for name, label in self._source.labels.items())
        raise CorpusError(
            f"source {self._source.path}: column {self._source.label!r} holds {found}; expected one of {known}. "
            f"Map others with corpus.sources.N.labels"
        )


def spelling(value: Any) -> str:
    """A label as text: 1, 1.0, "1", "1.0" and true are one label; "" where there is none."""
    text = _plain(int(value) if isinstance(value, bool) else value)
    return _SPELLINGS.get(text.lower(), text)


def _plain(value: Any) -> str:
    """A value as text, "" for none. A whole number stays whole where a column of floats holds it."""
    if isinstance(value, str):
        return value.strip()
    if value is None or value != value:  # NaN
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _digested(text: str) -> tuple[str, str]:
    """A text as Arrow can hold it, and what names it."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        text = _SURROGATE.sub("\ufffd", text)
        data = text.encode()
    return text, hashlib.sha256(data).hexdigest()[:16]


def table_of(rows: Sequence[StandardRow]) -> pa.Table:
    """Rows as a table with `ROW_SCHEMA`."""
    columns = zip(*rows, strict=True)
    arrays = [_array(values, field.type) for values, field in zip(columns, ROW_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)


def _array(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([_SURROGATE.sub("\ufffd", value) for value in values], kind)
