"""Column mapping: converts rows of any source to `ROW_SCHEMA` and labels to 0 (human) and 1 (AI). Pure."""

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
from detect_ai.text.characters import SURROGATE

ROW_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "text")),
        ("label", pa.int8()),
        *((name, pa.string()) for name in ("source", "domain", "generator", "group", "language", "split", "attack")),
        ("weight", pa.float32()),
        ("problem", pa.string()),
    ]
)
LABELS = {"0": 0, "1": 1, "human": 0, "ai": 1}
_SPELLINGS = {"true": "1", "1.0": "1", "false": "0", "0.0": "0", "nan": ""}


def plain_text(value: Any) -> str:
    """A value as stripped text, "" for a missing value. A whole number in a column of floats has no decimal point."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value.strip())
    if value is None or value != value:  # NaN
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def label_text(value: Any) -> str:
    """The normal form of a label: 1, 1.0, "1", "1.0" and true are "1"; words are lower case; "" if there is none."""
    text = plain_text(value).lower()
    return _SPELLINGS.get(text, text)


def label_map(labels: Mapping[str, int]) -> dict[str, int]:
    """The configured labels in normal form, or the default ones if none are configured."""
    return {label_text(value): label for value, label in (labels or LABELS).items()}


def unknown_label(where: str, column: str, value: Any, labels: Mapping[str, int], option: str) -> CorpusError:
    """The error for an unmapped label. It does not quote a long value, which may be document text."""
    text = plain_text(value)
    shown = repr(text) if len(text) <= 20 else f"a value of {len(text)} characters"
    if isinstance(value, (dict, list)):
        shown = f"a nested value ({type(value).__name__}); from pandas use to_json(orient='records', lines=True)"
    known = ", ".join(f"{name} ({'ai' if label else 'human'})" for name, label in labels.items())
    return CorpusError(f"{where}: column {column!r} holds {shown}; expected one of {known}. Map others with {option}")


def shown_names(names: Iterable[str]) -> str:
    """Column names for an error message."""
    return ", ".join(repr(name[:40]) for name in list(names)[:30]) or "no columns"


class ColumnMapper:
    """Maps the rows of a source whose preset is applied, counts them, and checks that its columns exist."""

    def __init__(self, source: SourceConfig, name: str, unlabelled: bool) -> None:
        self._source, self._name, self._unlabelled = source, name, unlabelled
        self._preset = preset = preset_of(source)
        self._labels = label_map(source.labels)
        self._required = [*preset.needs, source.text, *([] if unlabelled else [source.label])]
        optional = (source.id, source.group, source.domain, source.generator, source.language, source.split)
        self._optional = [name for name in (*optional, source.attack) if name]
        self._after_bad_row = False  # a row after a broken row may be part of the broken one
        self._seen: set[str] = set()
        self.count = 0

    def select(self, names: Sequence[str], where: str) -> list[str]:
        """Check the header of a file and choose the columns to read. Raises CorpusError for a missing column."""
        self._seen.update(names)
        self._require(self._preset.needs if self._preset.rows else self._required, where)
        wanted = {*self._required, *self._optional, self._source.label}
        return [name for name in names if self._preset.rows or name in wanted]

    def rows(self, rows: Iterable[tuple[str, Row]]) -> Iterator[dict[str, Any]]:
        """Rows with `ROW_SCHEMA`, from pairs of (file, row). Raises CorpusError for an unknown label."""
        for file, row in rows:
            self._seen |= row.values.keys()
            expanded = self._preset.rows(row.values) if self._preset.rows and row.values else [row.values]
            for values in expanded:
                self._seen |= values.keys()
                self.count += 1
                yield self._mapped(row._replace(values=values), f"{file}#{self.count}")

    def check(self, whole: bool, where: str) -> None:
        """Raise CorpusError if rows were read and none of them had a column that the source should have."""
        # An optional column may still appear until all rows are read: JSON omits empty fields.
        optional = self._optional if whole and not self._unlabelled else []
        self._require([*self._required, *optional] if self.count else self._preset.needs, where)

    def _require(self, columns: Iterable[str], where: str) -> None:
        missing = [name for name in dict.fromkeys(columns) if name not in self._seen]
        if self._seen and missing:
            schema = f" of the preset {self._source.preset!r}" if self._source.preset else ""
            names = sorted(self._seen)
            is_whole = len(names) == 1 and any(mark in names[0] for mark in ";\t|")
            hint = ". The header is separated by another character: save the file with commas" if is_whole else ""
            raise CorpusError(
                f"{where}: no column {', '.join(map(repr, missing))}{schema}; found {shown_names(names)}. "
                f"Map yours with corpus.sources.N.text=…, .label=…{hint}"
            )

    def _mapped(self, row: Row, place: str) -> dict[str, Any]:
        """One row with `ROW_SCHEMA`. `place` identifies a row that has neither an id nor a text."""
        source = self._source

        def value(column: str) -> str:
            return plain_text(row.values.get(column)) if column else ""

        text, problem = row.values.get(source.text), row.problem
        if not isinstance(text, str) or not text:
            text, problem = row.raw, problem or "no_text"
        text = text if text.isascii() else SURROGATE.sub("\ufffd", text)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        row_id = value(source.id) or f"{self._name}-{digest if text else place}"
        spelling = label_text(row.values.get(source.label))
        label = self._labels.get(spelling)
        if label is None and not row.problem and not self._unlabelled:
            if spelling and not self._after_bad_row:
                where, option = f"source {source.path}", "corpus.sources.N.labels"
                raise unknown_label(where, source.label, row.values[source.label], self._labels, option)
            problem = problem or ("bad_row" if spelling else "no_label")
        self._after_bad_row = row.problem == "bad_row"
        return {
            "id": row_id,
            "text": text,
            "label": label,
            "source": self._name,
            "domain": value(source.domain),
            "generator": "" if label == 0 else value(source.generator),  # a human text has none
            "group": value(source.group) or row_id,
            "language": value(source.language),
            "split": value(source.split),
            "attack": value(source.attack) or ORIGINAL,
            "weight": source.weight,
            "problem": problem,
        }
