"""Rows of a source: their columns, their labels, and what is wrong with them."""

import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.errors import CorpusError
from detect_ai.corpus.sources import ROW_SCHEMA
from tests.unit.conftest import refusal, rows, some, tables, write, zstd

MAP = "Map yours with corpus.sources.N.text=…, .label=…"
LABELS = "expected one of 0 (human), 1 (ai). Map others with corpus.sources.N.labels"


# One form


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    given = [{"text": "One, two\nthree é", "label": 0, "g": "a"}, {"text": "Four", "label": 1, "g": "b"}]
    lines = "".join(json.dumps(row) + "\n" for row in given).encode()
    text = 'text,label,g\n"One, two\nthree é",0,a\nFour,1,b\n'.encode()
    files = {
        "a.jsonl": lines, "b.ndjson.gz": gzip.compress(lines), "c.jsonl.zst": zstd(lines),
        "d.json": json.dumps(given, indent=2).encode(), "e.json.zst": zstd(json.dumps(given).encode()), "f.json": lines,
        "a.csv": text, "b.csv.gz": gzip.compress(text), "c.csv.zst": zstd(text),
    }  # fmt: skip
    expected = None
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        found = rows(tmp_path / name, kind="csv" if ".csv" in name else "jsonl", group="g", name="n")
        expected = expected or found
        assert found == expected, name
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet", kind="parquet", group="g", name="n") == expected
    assert some(expected, "text", "label", "group", "problem") == [
        ("One, two\nthree é", 0, "a", ""),
        ("Four", 1, "b", ""),
    ]


def test_the_columns_of_a_source_become_ours(tmp_path):
    row = {
        "body": "Text.", "ai": 1, "key": 7, "prompt": "p", "topic": "news", "model": "m", "tongue": "en", "part": "dev",
        "other": "x",
    }  # fmt: skip
    (found,) = rows(
        write(tmp_path / "a.jsonl", row), text="body", label="ai", id="key", group="prompt", domain="topic",
        generator="model", language="tongue", split="part", name="mine", weight=2.5,
    )  # fmt: skip
    assert found == {
        "id": "7",
        "text": "Text.",
        "label": 1,
        "source": "mine",
        "domain": "news",
        "generator": "m",
        "group": "p",
        "language": "en",
        "split": "dev",
        "attack": "none",
        "weight": 2.5,
        "problem": "",
    }


def test_what_a_source_does_not_have_is_filled_in(tmp_path):
    (found,) = rows(write(tmp_path / "mine.jsonl", {"text": "a", "label": 0}))
    row_id = f"mine-{hashlib.sha256(b'a').hexdigest()[:16]}"
    assert found == {
        "id": row_id,
        "text": "a",
        "label": 0,
        "source": "mine",
        "domain": "",
        "generator": "",
        "group": row_id,
        "language": "",
        "split": "",
        "attack": "none",
        "weight": 1.0,
        "problem": "",
    }


@pytest.mark.parametrize("nothing", [None, "", "  ", float("nan")])
def test_a_row_without_id_or_group_gets_one_from_its_text(tmp_path, nothing):
    row = {"text": "a", "label": 0, "i": nothing, "g": nothing}
    first, second = rows(write(tmp_path / "n.jsonl", {**row, "i": "x", "g": "y"}, row), id="i", group="g")
    assert (first["id"], first["group"]) == ("x", "y")
    assert second["id"] == second["group"] == f"n-{hashlib.sha256(b'a').hexdigest()[:16]}"


def test_a_row_without_id_and_text_is_named_by_its_place(tmp_path):
    found = rows(write(tmp_path / "in/n.jsonl", {"text": "a", "label": 0}, {"label": 1}, {"label": 1}).parent, name="s")
    assert [row["id"] for row in found][1:] == ["s-n.jsonl#2", "s-n.jsonl#3"]


def test_a_number_that_parquet_holds_as_a_float_keeps_its_name(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1], "g": [7.0, None]}), tmp_path / "a.parquet")
    first, second = rows(tmp_path / "a.parquet", kind="parquet", group="g")
    assert (first["group"], second["group"]) == ("7", second["id"])


def test_a_human_text_has_no_generator(tmp_path):
    given = [{"text": "a", "label": 0, "m": "human"}, {"text": "b", "label": 1, "m": "gpt"}]
    assert some(rows(write(tmp_path / "a.jsonl", *given), generator="m"), "generator") == [("",), ("gpt",)]


def test_an_unnamed_column_is_not_taken_for_a_column_that_is_not_given(tmp_path):
    (found,) = rows(write(tmp_path / "a.csv", ",text,label", "17,a,0"), kind="csv")
    assert (found["domain"], found["id"]) == ("", found["group"])
    assert found["id"] != "17"


def test_every_table_has_the_row_schema(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "a", "label": 0}, "{", {"text": None})
    assert [table.schema for table in tables(path)] == [ROW_SCHEMA]
    assert ROW_SCHEMA.field("label").type == pa.int8()


def test_tables_are_small_and_in_the_order_of_the_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"text": str(i), "label": i % 2} for i in range(4100)))
    found = tables(path)
    assert [len(table) for table in found] == [2000, 2000, 100]
    assert [text for table in found for text in table["text"].to_pylist()] == [str(i) for i in range(4100)]


def test_long_texts_make_shorter_tables(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"text": "w" * 3_000_000, "label": i % 2} for i in range(7)))
    assert [len(table) for table in tables(path)] == [3, 3, 1]


# Labels


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 1],
        ["0", "1", " 1 "],
        [0.0, 1.0, 1.0],
        [False, True, True],
        ["0.0", "1.0", "1"],
        ["False", "true", "TRUE"],
    ],
    ids=["ints", "texts", "floats", "bools", "texts of floats", "texts of bools"],
)
def test_a_label_is_0_or_1_however_it_is_written(tmp_path, values):
    path = write(tmp_path / "a.jsonl", *({"text": "a", "label": value} for value in values))
    assert some(rows(path), "label", "problem") == [(0, ""), (1, ""), (1, "")]


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.float32(), pa.bool_(), pa.string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_a_label_of_any_type_of_parquet_is_read(tmp_path, kind):
    labels = pa.array(["0", "1"]).cast(pa.int64()).cast(kind) if kind != pa.dictionary(pa.int8(), pa.string()) else None
    labels = labels if labels is not None else pa.array(["0", "1"]).dictionary_encode()
    pq.write_table(pa.table({"text": ["a", "b"], "label": labels}), tmp_path / "a.parquet")
    assert some(rows(tmp_path / "a.parquet", kind="parquet"), "label") == [(0,), (1,)]


def test_words_are_labels_where_the_configuration_says_so(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"text": "a", "label": word} for word in ("ai", "human", "polished")))
    assert some(rows(path, labels={"human": 0, "ai": 1, "polished": 1}), "label") == [(1,), (0,), (1,)]


def test_zero_may_stand_for_ai(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "a", "label": 0}, {"text": "b", "label": 1})
    assert some(rows(path, labels={"0": 1, "1": 0}), "label") == [(1,), (0,)]


@pytest.mark.parametrize(
    "line", ['{"text": "a"}', *(f'{{"text": "a", "label": {v}}}' for v in ("null", "NaN", '""', '"nan"', '" "'))]
)
def test_a_row_without_label_has_a_problem(tmp_path, line):
    path = write(tmp_path / "a.jsonl", {"text": "first", "label": 1}, line)
    assert some(rows(path), "text", "label", "problem")[1:] == [("a", None, "no_label")]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (2, "'2'"),
        (-1, "'-1'"),
        (0.5, "'0.5'"),
        ("yes", "'yes'"),
        ([0], "'[0]'"),
        ("x" * 20, repr("x" * 20)),
        ("x" * 21, "a value of 21 characters"),
    ],
)
def test_an_unknown_label_is_refused_with_its_value(tmp_path, value, found):
    path = write(tmp_path / "a.jsonl", {"text": "a", "label": 1}, {"text": "Secret.", "label": value})
    assert refusal(rows, path) == f"source {path}: column 'label' holds {found}; {LABELS}"


def test_a_label_behind_a_broken_row_is_not_trusted_to_be_one(tmp_path):
    """The rest of a broken text may look like a row."""
    path = write(tmp_path / "a.csv", "text,label", '"broken" here,0', "the text goes on, with a comma", "last,1")
    assert some(rows(path, kind="csv"), "label", "problem") == [(None, "bad_row"), (None, "bad_row"), (1, "")]


def test_an_unlabelled_source_misses_no_label_and_takes_those_it_has(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "label": 1}, {"text": "c", "label": "perhaps"})
    expected = [("a", None, ""), ("b", 1, ""), ("c", None, "")]
    assert some(rows(path, unlabelled=True, generator="model"), "text", "label", "problem") == expected


# Bad rows


@pytest.mark.parametrize("value", [None, "", 5, ["a"], {"a": 1}, True])
def test_a_text_that_is_none_has_a_problem(tmp_path, value):
    path = write(tmp_path / "a.jsonl", {"text": "first", "label": 1}, {"text": value, "label": 0})
    assert some(rows(path), "text", "label", "problem")[1:] == [("", 0, "no_text")]


def test_broken_rows_are_kept_with_what_stood_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "label": 0}\n{"text": broken\n{"text": "ol\xe9", "label": 1}\n')
    assert some(rows(path), "text", "label", "problem") == [
        ("a", 0, ""),
        ('{"text": broken\n', None, "bad_row"),
        ("ol\ufffd", 1, "bad_encoding"),
    ]


def test_a_file_of_nothing_but_broken_rows_has_its_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes(range(1, 256)) * 3)
    found = rows(path)
    assert {row["problem"] for row in found} <= {"bad_row", "bad_encoding"}
    assert len(found) == 4


def test_lone_surrogates_become_replacement_characters(tmp_path):
    row = r'{"text": "a\ud800b \ud83d\ude00", "label": 1, "g": "\udfff", "i": "\udc80"}'
    (found,) = rows(write(tmp_path / "a.jsonl", row), group="g", id="i")
    assert (found["text"], found["group"], found["id"], found["problem"]) == ("a\ufffdb 😀", "\ufffd", "\ufffd", "")


def test_nul_bytes_and_a_word_of_five_megabytes_pass(tmp_path):
    texts = ["a\x00b", "w" * 5_000_000]
    path = write(tmp_path / "a.jsonl", *({"text": text, "label": 1} for text in texts))
    assert some(rows(path), "text", "problem") == [(text, "") for text in texts]


@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl"]))
def test_whatever_bytes_a_file_holds_it_gives_rows_or_one_clear_line(tmp_path_factory, data, kind):
    path = tmp_path_factory.mktemp("any") / f"a.{kind}"
    path.write_bytes((b"text,label\n" if kind == "csv" else b"") + data)
    found, said = [], f"source {path}"
    try:
        found = rows(path, kind=kind)
    except CorpusError as error:
        said = str(error)
    assert said.startswith(f"source {path}")
    assert "\n" not in said
    assert {row["problem"] for row in found} <= {"", "bad_row", "bad_encoding", "no_text", "no_label"}


# Columns


def test_missing_columns_are_named_with_those_that_there_are(tmp_path):
    write(tmp_path / "a.csv", "text,label", "a,0")
    write(tmp_path / "a.jsonl", {"text": "a", "label": 0})
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "a.parquet")
    for kind in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"a.{kind}"
        assert refusal(rows, path, kind=kind, text="body", label="ai") == (
            f"source {path}: no column 'body', 'ai'; found 'label', 'text'. {MAP}"
        )
        assert refusal(rows, path, kind=kind, group="prompt") == (
            f"source {path}: no column 'prompt'; found 'label', 'text'. {MAP}"
        )


def test_another_separator_is_seen_at_the_header(tmp_path):
    path = write(tmp_path / "a.csv", "text;label", "one, two;0", "three, four;1")
    assert refusal(rows, path, kind="csv") == f"source {path}: no column 'text', 'label'; found 'text;label'. {MAP}"


def test_a_missing_column_is_said_before_a_long_file_is_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress((b'{"text": "' + b"w" * 1000 + b'", "labe": 0}\n') * 5000)[:-20])
    assert refusal(rows, path) == f"source {path}: no column 'label'; found 'labe', 'text'. {MAP}"


def test_json_rows_may_leave_out_what_is_empty(tmp_path):
    human, ai = {"text": "a", "label": 0}, {"text": "b", "label": 1, "model": "gpt"}
    path = write(tmp_path / "a.jsonl", *[human] * 3000, ai)
    assert rows(path, generator="model")[-1]["generator"] == "gpt"


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(), pa.null(), pa.date32()])
def test_a_text_column_of_another_type_is_refused_with_its_type(tmp_path, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.nulls(2, kind), "label": [0, 1]}), path)
    assert refusal(rows, path, kind="parquet") == f"source {path}: column 'text' is of type {kind}; expected string"


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_type_of_text_is_read(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array(["a", None], kind), "label": [0, 1]}), tmp_path / "a.parquet")
    expected = [("a", ""), ("", "no_text")]
    assert some(rows(tmp_path / "a.parquet", kind="parquet"), "text", "problem") == expected


def test_a_column_may_name_the_attack_on_a_text(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "A", "label": 1, "how": "homoglyph"}, {"text": "B", "label": 1})
    assert some(rows(path, kind="jsonl", attack="how"), "text", "attack") == [("A", "homoglyph"), ("B", "none")]
