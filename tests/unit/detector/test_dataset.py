"""Any file of texts as it is sent: what is found in it, what is told apart, and what is said when it cannot be read."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import ScoreConfig
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.detector import dataset
from detect_ai.detector.dataset import Text, parts, read
from tests.unit.conftest import refusal, write, zstd

ROWS: list[dict[str, Any]] = [
    {"text": "One, with a comma.", "label": 0, "id": "a", "domain": "news", "topic": "t1"},
    {"text": 'Two "quoted"\nin two lines.', "label": 1, "id": "b", "domain": "", "topic": "t2"},
]


def found(data, shares=1, **given) -> list[Text]:
    return [
        text for part in parts(str(data), ScoreConfig(**given), shares) for texts, _ in read(part) for text in texts
    ]


def labels(data, **given):
    return [text.label for text in found(data, **given)]


def csv(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def write_as(path):
    frame, name = pd.DataFrame(ROWS), path.name.lower()
    if ".parquet" in name:
        frame.to_parquet(path)
        return path
    text = frame.to_csv(index=False) if ".csv" in name else frame.to_json(orient="records", lines=".jsonl" in name)
    path.write_bytes({".gz": gzip.compress, ".zst": zstd}.get(path.suffix, bytes)(text.encode()))
    return path


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "X.CSV.gz", "x.jsonl", "x.jsonl.zst", "x.json"])
def test_a_file_of_any_kind_gives_its_texts_as_they_are(tmp_path, name):
    path = write_as(tmp_path / name)
    texts = found(path)
    assert [(text.text, text.label, text.id) for text in texts] == [(r["text"], r["label"], r["id"]) for r in ROWS]
    assert [text.values["domain"] for text in texts] == ["news", ""]
    assert [text.values["group"] for text in texts] == ["t1", "t2"]
    assert texts[0].values["generator"] == ""


def test_a_file_in_a_bucket_is_read(gcs_root, tmp_path):
    storage = Storage(gcs_root)
    storage.write_bytes("in/x.csv", write_as(tmp_path / "x.csv").read_bytes())
    for data in (storage.uri("in/x.csv"), storage.uri("in")):
        assert [text.text for text in found(data)] == [row["text"] for row in ROWS]


def test_a_folder_gives_all_files_of_its_commonest_kind(tmp_path):
    for name in ("b/2.jsonl", "a.jsonl"):
        write(tmp_path / name, {"text": f"Text of {name}.", "id": "same"})
    write(tmp_path / "notes.csv", "text", "No text of ours")
    texts = found(tmp_path)
    assert [(text.row, text.id, text.text) for text in texts] == [
        ("0-0", "same", "Text of a.jsonl."),
        ("1-0", "same", "Text of b/2.jsonl."),
    ]


def test_a_parquet_file_beside_a_json_that_describes_it_is_what_is_read(tmp_path):
    write_as(tmp_path / "x.parquet")
    write(tmp_path / "info.json", {"features": 3})
    assert len(found(tmp_path)) == 2


def test_texts_without_an_id_are_named_by_file_and_row_and_by_their_content(tmp_path):
    csv(tmp_path / "1.csv", text=["One.", "", "Two."])
    csv(tmp_path / "2.csv", text=["One."])
    texts = found(tmp_path)
    assert [text.id for text in texts] == ["0-0", "0-2", "1-0"]
    assert texts[0].digest == texts[2].digest != texts[1].digest


def test_whole_numbers_stay_whole_where_a_column_of_floats_holds_them(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"text": ["One.", "Two."], "id": [7.0, None], "label": [1.0, None]}).to_parquet(path)
    assert [(text.id, text.label) for text in found(path)] == [("7", 1), ("0-1", None)]


# Shares


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_shares_of_a_file_hold_every_row_once_and_differ(tmp_path, monkeypatch, shares):
    monkeypatch.setattr(dataset, "BATCH_ROWS", 4)
    write(tmp_path / "x.jsonl", *({"text": f"Text {i}."} for i in range(30)))
    each = [
        [text.row for texts, _ in read(part) for text in texts]
        for part in parts(str(tmp_path), ScoreConfig(), shares=shares)
    ]
    assert len(each) == shares
    assert sorted(row for rows in each for row in rows) == sorted(f"0-{i}" for i in range(30))
    assert all(len(rows) < 30 for rows in each) or shares == 1


def test_a_batch_is_bounded_by_its_rows_and_by_its_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "BATCH_ROWS", 4)
    monkeypatch.setattr(dataset, "BATCH_CHARS", 1000)
    write(tmp_path / "x.jsonl", *({"text": "x" * (600 if i < 4 else 1)} for i in range(10)))
    (part,) = parts(str(tmp_path), ScoreConfig())
    assert [len(texts) for texts, _ in read(part)] == [2, 2, 4, 2]


def test_rows_without_a_text_are_counted(tmp_path):
    write(tmp_path / "x.jsonl", {"text": "One."}, {"text": "  \n"}, {"text": None}, {"text": 5}, {"id": 1}, "{broken")
    (part,) = parts(str(tmp_path), ScoreConfig())
    assert [(len(texts), skipped) for texts, skipped in read(part)] == [(1, 5)]


# Labels


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], [0, 1]),
        ([0.0, 1.0], [0, 1]),
        ([False, True], [0, 1]),
        (["human", "ai"], [0, 1]),
        (["Human", " AI "], [0, 1]),
        (["", "1"], [None, 1]),
    ],
)
def test_a_label_has_many_spellings(tmp_path, values, expected):
    assert labels(csv(tmp_path / "x.csv", text=["One.", "Two."], label=values)) == expected
    write(tmp_path / "x.jsonl", *({"text": "One.", "label": value} for value in values))
    assert labels(tmp_path / "x.jsonl") == expected


def test_without_a_column_of_labels_none_is_known(tmp_path):
    assert labels(csv(tmp_path / "x.csv", text=["One."], generator=["human"])) == [None]


def test_a_label_that_comes_late_in_json_is_found(tmp_path):
    write(tmp_path / "x.jsonl", *[{"text": "One."}] * 150, {"text": "Two.", "label": 1})
    assert labels(tmp_path / "x.jsonl") == [None] * 150 + [1]


def test_columns_and_labels_of_other_names_are_mapped(tmp_path):
    path = csv(tmp_path / "x.csv", content=["One.", "Two."], model=["Human", "gpt"], text=["no", "no"])
    given = {"columns": {"text": "content", "label": "model", "generator": "model"}, "labels": {"human": 0, "gpt": 1}}
    texts = found(path, **given)
    assert [(text.text, text.label, text.values["generator"]) for text in texts] == [
        ("One.", 0, "Human"),
        ("Two.", 1, "gpt"),
    ]
    assert labels(path, columns={"text": "content", "label": ""}) == [None, None]


@pytest.mark.parametrize(
    ("value", "shown"), [("maybe", "'maybe'"), ("A whole sentence of a user.", "a value of 27 characters")]
)
def test_an_unknown_label_is_refused_and_a_text_in_its_place_is_not_repeated(tmp_path, value, shown):
    path = csv(tmp_path / "x.csv", text=["One.", "Two."], label=["0", value])
    assert refusal(found, path) == (
        f"data={path}: column 'label' holds {shown}; expected one of 0 (human), 1 (ai), human (human), ai (ai). "
        f"Map others with +score.labels={{value: 0 or 1}}"
    )


def test_a_row_behind_a_broken_one_may_be_a_part_of_it_and_is_no_unknown_label(tmp_path):
    path = write(tmp_path / "x.csv", "text,label", '"not closed,0', "secret words,of a user", "Two.,1")
    assert [(text.text, text.label) for text in found(path)] == [("Two.", 1)]


# What Arrow cannot hold


def test_characters_that_no_text_may_hold_are_replaced_one_by_one(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a\ud800b", "id": "i\udfff", "domain": "d\udc00"}))
    (tmp_path / "y.csv").write_bytes(b"text\nna\xefve\n")
    (text,) = found(tmp_path / "x.jsonl")
    assert (text.text, text.id, text.values["domain"]) == ("a\ufffdb", "i\ufffd", "d\ufffd")
    assert text.digest
    assert found(tmp_path / "y.csv")[0].text == "na\ufffdve"


# What cannot be read


def test_a_missing_file_is_named_with_what_is_expected(tmp_path):
    path = tmp_path / "none.csv"
    assert refusal(found, path) == (
        f"data={path}: no such file or folder; expected Parquet, CSV or JSON lines (.parquet, .csv, .jsonl, .json; "
        f".gz and .zst). Under `ray job submit` give an absolute path or a gs:// URI that every node can read"
    )


def test_a_folder_of_other_files_is_refused(tmp_path):
    write(tmp_path / "x.txt", "One.")
    assert refusal(found, tmp_path).startswith(f"data={tmp_path}: 1 files of other kinds; expected Parquet, CSV or")


def test_a_bucket_of_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match=r"nosuch://bucket/x\.csv: expected a local path or a URI"):
        found("nosuch://bucket/x.csv")


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_without_a_column_of_texts_those_that_there_are_are_named(tmp_path, name):
    path = tmp_path / name
    frame = pd.DataFrame({"content": ["One."], "label": [0]})
    {
        "x.csv": lambda: frame.to_csv(path, index=False),
        "x.jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "x.parquet": lambda: frame.to_parquet(path),
    }[name]()
    assert refusal(found, path) == (
        f"data={path}: no column 'text'; found 'content', 'label'. Name yours with +score.columns.text=…"
    )


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_a_later_file_without_a_column_of_texts_is_refused(tmp_path, name):
    frames = {"1": pd.DataFrame({"text": ["One."]}), "2": pd.DataFrame({"content": ["Two."]})}
    for number, frame in frames.items():
        path = tmp_path / f"{number}.{name}"
        frame.to_csv(path, index=False) if name == "csv" else frame.to_parquet(path)
    assert refusal(found, tmp_path) == f"source {tmp_path}, 2.{name}: no column 'text'; found 'content'"


def test_a_column_of_another_type_than_text_is_refused(tmp_path):
    pd.DataFrame({"text": [1, 2]}).to_parquet(tmp_path / "x.parquet")
    assert refusal(found, tmp_path) == (
        f"source {tmp_path}, x.parquet: column 'text' is of type int64; expected string"
    )


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    if name == "csv":
        write(tmp_path / "x.csv", "text,text", "One.,Two.")
    else:
        column = pa.array(["One."])
        pq.write_table(pa.Table.from_arrays([column, column], ["text", "text"]), tmp_path / "x.parquet")
    assert refusal(found, tmp_path) == f"source {tmp_path}, x.{name}: expected columns of different names"


def test_a_column_that_is_mapped_and_not_there_is_refused(tmp_path):
    path = csv(tmp_path / "x.csv", text=["One."])
    assert refusal(found, path, columns={"label": "y"}) == (
        f"data={path}: no column 'y' (score.columns.label); found 'text'"
    )
    assert refusal(found, path, columns={"subject": "text"}).startswith(
        "score.columns.subject: expected one of text, label"
    )


def test_an_empty_file_is_refused_and_one_beside_others_is_not(tmp_path):
    (tmp_path / "1.csv").write_text("")
    assert refusal(found, tmp_path).startswith(f"source {tmp_path}: empty, expected rows of text")
    csv(tmp_path / "2.csv", text=["One."])
    assert [text.row for text in found(tmp_path)] == ["1-0"]


def test_a_broken_file_is_refused_without_a_word_of_it(tmp_path):
    path = write_as(tmp_path / "x.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    said = refusal(found, path)
    assert said.startswith(f"source {path}: cannot be read as parquet (ArrowInvalid): expected a whole file")
    assert "comma" not in said
