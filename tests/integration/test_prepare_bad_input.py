"""Bad input of `prepare`: a source that is refused in one line, a row that is kept apart, and nothing half-written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import Config
from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import QUARANTINE, Corpus
from detect_ai.corpus.prepare import prepare
from tests.integration.runs import config_for, files_under

SECRET = "Zebulon"  # stands in every text: no error may repeat it
Rows = list[dict[str, Any]]


def refused(config: Config, tmp_path: Path) -> str:
    """The error of a source that cannot be used; nothing may be written, and no text repeated."""
    with pytest.raises(CorpusError) as caught:
        prepare(config, Storage(config.storage.root))
    assert files_under(tmp_path / "store") == []
    assert SECRET not in str(caught.value)
    return str(caught.value)


GOOD = [{"text": f"{SECRET} wrote {i} letters to his aunt", "label": i % 2, "group": f"g{i // 2}"} for i in range(20)]


def with_label(value: object) -> Rows:
    return [*GOOD[:7], {**GOOD[7], "label": value}, *GOOD[8:]]


def csv_of(rows: Rows) -> bytes:
    lines = ["text,label,group", *(f"{row['text']},{row['label']},{row['group']}" for row in rows)]
    return "\n".join(lines).encode() + b"\n"


def jsonl_of(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet_of(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


ONE_CLASS = [{**row, "label": 0} if row["group"] != "g0" else row for row in GOOD]
SWAPPED = [{**row, "text": "a", "label": row["text"]} for row in GOOD]
HALVES = [{**row, "label": row["label"] / 2} for row in GOOD]
WRONG_LABEL = "column 'label' holds {}; expected one of 0 (human), 1 (ai)"
UNREADABLE = "cannot be read as {}"
EMPTY = "empty, expected rows of text and label"
BAD_SOURCES = {
    "other columns": (
        *("csv", csv_of(GOOD).replace(b"text,label", b"body,verdict")),
        "no column 'text', 'label'; found 'body', 'group', 'verdict'",
    ),
    "no group": ("jsonl", jsonl_of([{"text": "a", "label": 0}]), "no column 'group'; found 'label', 'text'"),
    "label yes": ("csv", csv_of(with_label("yes")), WRONG_LABEL.format("'yes'")),
    "label 2": ("jsonl", jsonl_of(with_label(2)), WRONG_LABEL.format("'2'")),
    "label 0.5": ("parquet", parquet_of(HALVES), WRONG_LABEL.format("'0.5'")),
    "texts as labels": (
        "jsonl",
        jsonl_of(SWAPPED),
        WRONG_LABEL.format(f"a value of {len(GOOD[0]['text'])} characters"),
    ),
    "one class in a split": ("jsonl", jsonl_of(ONE_CLASS), "expected both classes in every split"),
    "empty file": ("jsonl", b"", EMPTY),
    "header only": ("csv", b"text,label,group\n", EMPTY),
    "only empty texts": ("jsonl", jsonl_of([{**row, "text": " "} for row in GOOD]), "the sources hold no rows"),
    "truncated parquet": ("parquet", parquet_of(GOOD)[:-100], UNREADABLE.format("parquet")),
}


@pytest.mark.parametrize("what", BAD_SOURCES)
def test_a_bad_source_is_refused_in_one_line_and_nothing_is_written(what: str, encoder: Path, tmp_path: Path) -> None:
    kind, content, expected = BAD_SOURCES[what]
    path = tmp_path / f"texts.{kind}"
    path.write_bytes(content)
    said = refused(config_for(encoder, tmp_path / "store", path, kind), tmp_path)
    assert expected in said
    assert "\n" not in said


def test_a_missing_file_is_named(encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "nowhere.csv"
    assert refused(config_for(encoder, tmp_path / "store", path, "csv"), tmp_path).startswith(
        f"source {path}: no such file or folder. Under `ray job submit` a relative path is one of the working directory"
    )


BAD_ROWS = {
    "label NaN": ("csv", csv_of(with_label("nan")), "no_label"),
    "label missing": ("jsonl", jsonl_of(with_label(None)), "no_label"),
    "text missing": ("jsonl", jsonl_of([*GOOD, {**GOOD[0], "text": None}]), "no_text"),
    "broken JSON": ("jsonl", jsonl_of(GOOD) + b'{"text": "Zebulon', "bad_row"),
    "ragged CSV": ("csv", csv_of(GOOD) + b"Zebulon, too, 1, g3, more\n", "bad_row"),
    "not UTF-8": ("csv", csv_of(GOOD) + b"Zebulon \xff\xfe wrote to his aunt,1,g0\n", "bad_encoding"),
    "one word of 5 MB": ("jsonl", jsonl_of([*GOOD, {**GOOD[0], "text": "Zebulon" * 700_000}]), "too_short"),
    "too long": ("jsonl", jsonl_of([*GOOD, {**GOOD[0], "text": "Zebulon wrote " * 8_000}]), "too_long"),
    "a lone surrogate": ("jsonl", jsonl_of([*GOOD, {**GOOD[0], "text": "\ud800"}]), "too_short"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_counted_and_kept_apart_and_the_others_stay(what: str, encoder: Path, tmp_path: Path) -> None:
    kind, content, reason = BAD_ROWS[what]
    path = tmp_path / f"texts.{kind}"
    path.write_bytes(content)
    config = config_for(encoder, tmp_path / "store", path, kind)
    config.corpus.near_duplicates = "keep"  # these texts differ by one word
    storage = Storage(config.storage.root)
    found = prepare(config, storage)
    assert found["dropped"] == {reason: 1}
    assert found["rows_read"] == sum(found["rows"].values()) + 1
    corpus = Corpus.open(storage, found["corpus"])
    assert corpus.read(QUARANTINE, ["reason"])["reason"].to_pylist() == [reason]


def test_nul_bytes_are_invisible_and_no_reason_to_drop_a_text(encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(jsonl_of([*GOOD[:-1], {**GOOD[-1], "text": "Zebulon\0 wrote\0 to his aunt"}]))
    config = config_for(encoder, tmp_path / "store", path, "jsonl")
    assert prepare(config, Storage(config.storage.root))["dropped"] == {}


def test_a_file_that_is_broken_behind_a_good_one_is_refused(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(jsonl_of(GOOD)))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl_of(GOOD))[:-20])
    said = refused(config_for(encoder, tmp_path / "store", folder, "jsonl"), tmp_path)
    assert said.startswith(f"source {folder}, b.jsonl.gz: cannot be read as jsonl")
