"""Column mapping: rows of any source to rows with `ROW_SCHEMA`, labels to 0 (human) and 1 (AI). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.formats import Row
from detect_ai.corpus.manifest import ORIGINAL
from detect_ai.corpus.presets import preset_of
from detect_ai.text.normalize import SURROGATE

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
LABELS = {"0": 0, "1": 1, "human": 0, "ai": 1}
_SPELLINGS = {"true": "1", "1.0": "1", "false": "0", "0.0": "0", "nan": ""}


def plain_text(value: Any) -> str:
    """A value as stripped text, "" for none. A whole number stays whole if a column of floats holds it."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value.strip())
    if value is None or value != value:  # NaN
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def label_text(value: Any) -> str:
    """The normal form of a label: 1, 1.0, "1", "1.0" and true are "1"; words are lower case; "" if there is none."""
    text = plain_text(int(value) if isinstance(value, bool) else value).lower()
    return _SPELLINGS.get(text, text)


def label_map(labels: Mapping[str, int]) -> dict[str, int]:
    """The configured labels, or the usual ones if none are, in normal form."""
    return {label_text(value): label for value, label in (labels or LABELS).items()}


def unknown_label(where: str, column: str, value: Any, labels: Mapping[str, int], option: str) -> CorpusError:
    """The error for a label that is not mapped. A long value is not repeated: it may be a text."""
    text = plain_text(value)
    shown = repr(text) if len(text) <= 20 else f"a value of {len(text)} characters"
    if isinstance(value, (dict, list)):
        shown = f"a nested value ({type(value).__name__}); from pandas use to_json(orient='records', lines=True)"
    known = ", ".join(f"{name} ({'ai' if label else 'human'})" for name, label in labels.items())
    return CorpusError(f"{where}: column {column!r} holds {shown}; expected one of {known}. Map others with {option}")


def shown_names(names: Iterable[str]) -> str:
    """Column names for an error."""
    return ", ".join(repr(name[:40]) for name in list(names)[:30]) or "no columns"


class ColumnMapper:
    """Maps the rows of a source and checks that its columns exist.

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
        self._labels = label_map(source.labels)
        self._required = [*preset.needs, source.text, *([] if unlabelled else [source.label])]
        optional = (source.id, source.group, source.domain, source.generator, source.language, source.split)
        self._optional = [name for name in (*optional, source.attack) if name]
        self._after_bad_row = False  # a row after a broken one may be a part of it
        self._seen: set[str] = set()
        self.count = 0

    def select(self, names: Sequence[str], where: str) -> list[str]:
        """Check the header of a file and choose the columns to read. Raises CorpusError for a missing column."""
        self._seen.update(names)
        self._require(self._preset.needs if self._preset.rows else self._required, where)
        wanted = {*self._required, *self._optional, self._source.label}
        return [name for name in names if self._preset.rows or name in wanted]

    def rows(self, rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[Any, ...]]:
        """Rows in the order of `ROW_SCHEMA`, from pairs of (file, row). Raises CorpusError for an unknown label."""
        last_file, number = "", 0
        for file, row in rows:
            number = number if file == last_file else 0
            last_file = file
            self._seen |= row.values.keys()
            expanded = self._preset.rows(row.values) if self._preset.rows and row.values else [row.values]
            for values in expanded:
                self._seen |= values.keys()
                self.count, number = self.count + 1, number + 1
                yield self._mapped(row._replace(values=values), f"{file}#{number}")

    def check(self, whole: bool, where: str) -> None:
        """Raise CorpusError if rows were read and none of them had a column that the source should have.

        Args:
            whole: all rows were read. Before, an optional column may still appear: JSON leaves out what is empty.
            where: the source and its file, for the error.
        """
        optional = self._optional if whole and not self._unlabelled else []
        self._require([*self._required, *optional] if self.count else self._preset.needs, where)

    def _require(self, columns: Iterable[str], where: str) -> None:
        missing = [name for name in dict.fromkeys(columns) if name not in self._seen]
        if self._seen and missing:
            schema = f" of the preset {self._source.preset!r}" if self._source.preset else ""
            raise CorpusError(
                f"{where}: no column {', '.join(map(repr, missing))}{schema}; found {shown_names(sorted(self._seen))}. "
                f"Map yours with corpus.sources.N.text=…, .label=…{separator_hint(self._seen)}"
            )

    def _mapped(self, row: Row, place: str) -> tuple[Any, ...]:
        """One row in the order of `ROW_SCHEMA`. `place` names it if it has neither an id nor a text."""
        source = self._source

        def value(column: str) -> str:
            return plain_text(row.values.get(column)) if column else ""

        text = row.values.get(source.text)
        problem = row.problem
        if not isinstance(text, str) or not text:
            text, problem = row.raw, problem or "no_text"
        label, label_problem = self._label(row)
        self._after_bad_row = problem == "bad_row"
        text, digest = _digested(text)
        row_id = value(source.id) or f"{self._name}-{digest if text else place}"
        return (
            row_id,
            text,
            label,
            self._name,
            value(source.domain),
            "" if label == 0 else value(source.generator),  # a human text has none
            value(source.group) or row_id,
            value(source.language),
            value(source.split),
            value(source.attack) or ORIGINAL,
            source.weight,
            problem or label_problem,
        )

    def _label(self, row: Row) -> tuple[int | None, str]:
        """The label of a row and its problem. Raises CorpusError for a value that is not mapped."""
        value = row.values.get(self._source.label)
        text = label_text(value)
        label = self._labels.get(text)
        if label is not None or row.problem or self._unlabelled:
            return label, ""
        if not text:
            return None, "no_label"
        if self._after_bad_row:
            return None, "bad_row"
        raise unknown_label(
            f"source {self._source.path}", self._source.label, value, self._labels, "corpus.sources.N.labels"
        )


def separator_hint(names: Iterable[str]) -> str:
    """Advice for a header that was not split at commas."""
    is_whole = len(list(names)) == 1 and any(mark in name for name in names for mark in ";\t|")
    return ". The header is separated by another character: save the file with commas" if is_whole else ""


def _digested(text: str) -> tuple[str, str]:
    """A text as Arrow can hold it, and the digest that names it."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        text = SURROGATE.sub("\ufffd", text)
        data = text.encode()
    return text, hashlib.sha256(data).hexdigest()[:16]


def table_of(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Rows as a table with `ROW_SCHEMA`."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, ROW_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=ROW_SCHEMA)
