"""Texts to evaluate or score: columns, labels, parts, and refusals."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pandas as pd
import pytest

from detect_ai.core.config import ScoreConfig
from detect_ai.core.errors import ConfigError
from detect_ai.detector import dataset
from detect_ai.detector.dataset import Text, parts, read, require_labels, texts_at, texts_of
from tests.unit.conftest import refusal, write, zstd

ROWS: list[dict[str, Any]] = [
    {"text": "One, with a comma.", "label": 0, "id": "a", "domain": "news", "topic": "t1"},
    {"text": 'Two "quoted"\nin two lines.', "label": 1, "id": "b", "domain": "", "topic": "t2"},
]


def texts(data, **options) -> list[Text]:
    return list(texts_of(str(data), ScoreConfig(**options)))


def counts(data):
    return [(len(batch), skipped) for part in parts(str(data), ScoreConfig()) for batch, skipped in read(part)]


def csv(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def write_as(path, rows=ROWS):
    frame, name = pd.DataFrame(rows), path.name.lower()
    if ".parquet" in name:
        frame.to_parquet(path)
        return path
    text = frame.to_csv(index=False) if ".csv" in name else frame.to_json(orient="records", lines=".jsonl" in name)
    path.write_bytes({".gz": gzip.compress, ".zst": zstd}.get(path.suffix.lower(), bytes)(text.encode()))
    return path


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "X.CSV.GZ", "x.jsonl", "x.jsonl.zst", "x.json"])
def test_every_format_gives_the_same_texts(tmp_path, name):
    records = texts(write_as(tmp_path / name))
    assert [(text.text, text.label, text.id) for text in records] == [(r["text"], r["label"], r["id"]) for r in ROWS]
    assert [(text.values["domain"], text.values["group"]) for text in records] == [("news", "t1"), ("", "t2")]
    assert records[0].values["generator"] == ""


def test_rows_name_file_and_place(tmp_path):
    csv(tmp_path / "1.csv", text=["One.", "", "Two."])
    (tmp_path / "b").mkdir()
    csv(tmp_path / "b/2.csv", text=["One."])
    records = texts(tmp_path)
    assert [text.id for text in records] == [text.row for text in records] == ["0-0", "0-2", "1-0"]
    assert texts_at(str(tmp_path), ScoreConfig(), ["1-0"]) == {"1-0": "One."}


def test_text_files_are_texts_without_labels(tmp_path):
    (tmp_path / "humans").mkdir()
    for name in ("humans/b.txt", "a.md", "c.pdf"):
        write(tmp_path / name, f"Text {name}.")
    assert [(t.id, t.text.strip(), t.label) for t in texts(tmp_path)] == [
        ("a", "Text a.md.", None),
        ("b", "Text humans/b.txt.", None),
    ]


def test_a_text_has_the_key_of_its_contributor(tmp_path):
    path = csv(tmp_path / "x.csv", text=["One.", "Two."], key=["k1", None], by=["k2", "k3"])
    assert [text.key for text in texts(path)] == ["k1", ""]
    assert [text.key for text in texts(path, columns={"key": "by"})] == ["k2", "k3"]


@pytest.mark.parametrize("step", [1, 3, 7])
def test_parts_hold_every_row_once(tmp_path, monkeypatch, step):
    monkeypatch.setattr(dataset, "BATCH_ROWS", 4)
    write(tmp_path / "x.jsonl", *({"text": f"Text {i}."} for i in range(30)))
    work = parts(str(tmp_path), ScoreConfig(), step=step)
    rows_by_part = [[text.row for batch, _ in read(part) for text in batch] for part in work]
    assert sorted(row for rows in rows_by_part for row in rows) == sorted(f"0-{i}" for i in range(30))
    assert len(rows_by_part) == step
    assert all(len(rows) < 30 for rows in rows_by_part) or step == 1


def test_batches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "BATCH_ROWS", 4)
    monkeypatch.setattr(dataset, "BATCH_CHARS", 1000)
    write(tmp_path / "x.jsonl", *({"text": "x" * (600 if i < 4 else 1)} for i in range(10)))
    assert [count for count, _ in counts(tmp_path)] == [2, 2, 4, 2]


def test_rows_without_a_text_are_skipped(tmp_path):
    write(tmp_path / "x.jsonl", {"text": "One."}, {"text": "  \n"}, {"text": None}, {"text": 5}, {"id": 1}, "{broken")
    assert counts(tmp_path) == [(1, 5)]


def test_lone_surrogates_are_replaced(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a\ud800b", "id": "i\udfff", "domain": "d\udc00"}))
    (text,) = texts(tmp_path / "x.jsonl")
    assert (text.text, text.id, text.values["domain"]) == ("a\ufffdb", "i\ufffd", "d\ufffd")


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1], [0, 1]), ([False, True], [0, 1]), (["Human", " AI "], [0, 1]), (["", "1"], [None, 1])],
)
def test_label_spellings(tmp_path, values, expected):
    path = csv(tmp_path / "x.csv", text=["One.", "Two."], label=values)
    assert [text.label for text in texts(path)] == expected


def test_late_labels_of_json_are_read(tmp_path):
    write(tmp_path / "x.jsonl", *[{"text": "One."}] * 150, {"text": "Two.", "label": 1})
    assert [text.label for text in texts(tmp_path)] == [None] * 150 + [1]
    require_labels(str(tmp_path), ScoreConfig())
    write(tmp_path / "x.jsonl", {"text": "One."})
    assert "label" in refusal(require_labels, str(tmp_path), ScoreConfig())


def test_mapped_columns_and_labels(tmp_path):
    path = csv(tmp_path / "x.csv", content=["One.", "Two."], model=["Human", "gpt"], text=["no", "no"])
    columns = {"text": "content", "label": "model", "generator": "model"}
    records = texts(path, columns=columns, labels={"human": 0, "gpt": 1})
    assert [(text.text, text.label) for text in records] == [("One.", 0), ("Two.", 1)]
    assert [text.values["generator"] for text in records] == ["Human", "gpt"]
    assert [text.label for text in texts(path, columns={"text": "content", "label": ""})] == [None, None]


@pytest.mark.parametrize(("value", "shown"), [("maybe", "'maybe'"), ("A whole sentence of a user.", "27 characters")])
def test_unknown_label_is_refused(tmp_path, value, shown):
    message = refusal(texts, csv(tmp_path / "x.csv", text=["One.", "Two."], label=["0", value]))
    assert shown in message
    assert "whole" not in message


def test_label_after_a_broken_row_is_not_trusted(tmp_path):
    path = write(tmp_path / "x.csv", "text,label", '"closed" early,0', "secret words,of a user", "Two.,1")
    assert [(text.text, text.label) for text in texts(path)] == [("Two.", 1)]


def test_missing_files_and_files_of_two_kinds_are_refused(tmp_path):
    assert "no such file" in refusal(texts, tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="nosuch://"):
        texts("nosuch://bucket/x.csv")
    write(tmp_path / "x.pdf", "One.")
    assert "1 files of other kinds" in refusal(texts, tmp_path)
    csv(tmp_path / "a.csv", text=["One."])
    write(tmp_path / "b.jsonl", {"text": "Two."})
    assert "a.csv, b.jsonl" in refusal(texts, tmp_path)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_missing_text_column_is_refused(tmp_path, name):
    path = write_as(tmp_path / name, {"content": ["One."], "label": [0]})
    assert "no column 'text'; found 'content', 'label'" in refusal(texts, path)


def test_later_file_without_the_column_is_refused(tmp_path):
    csv(tmp_path / "1.csv", text=["One."])
    csv(tmp_path / "2.csv", content=["Two."])
    assert "2.csv: no column 'text'" in refusal(texts, tmp_path)


@pytest.mark.parametrize("columns", [{"label": "y"}, {"subject": "text"}])
def test_impossible_column_map_is_refused(tmp_path, columns):
    path = csv(tmp_path / "x.csv", text=["One."])
    assert f"score.columns.{next(iter(columns))}" in refusal(texts, path, columns=columns)


def test_only_data_of_empty_files_is_refused(tmp_path):
    (tmp_path / "1.csv").write_text("")
    assert "empty" in refusal(texts, tmp_path)
    csv(tmp_path / "2.csv", text=["One."])
    assert [text.row for text in texts(tmp_path)] == ["1-0"]
