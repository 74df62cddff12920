import gzip
import hashlib
import json
import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.config import SourceConfig
from detect_ai.corpus import hub, read
from detect_ai.corpus.read import ROW_SCHEMA, pieces, read_piece, source_digest, source_name
from detect_ai.errors import CorpusError
from detect_ai.storage import Storage

ABSOLUTE = (
    "Under `ray job submit` a relative path is one of the working directory: "
    "give an absolute path or a gs:// URI that every node can read"
)
MAP = "Map yours with corpus.sources.N.text=…, .label=…"
LABELS = "expected one of 0 (human), 1 (ai). Map others with corpus.sources.N.labels"


def tables(path, unlabelled=False, **given):
    kind = given.pop("kind", "jsonl")
    found = pieces(SourceConfig(kind=kind, path=str(path), **given), unlabelled)
    return [table for piece in found for table in read_piece(piece)]


def rows(path, unlabelled=False, **given):
    return [row for table in tables(path, unlabelled, **given) for row in table.to_pylist()]


def some(found, *names):
    return [tuple(row[name] for name in names) for row in found]


def refusal(call, *arguments, **options):
    with pytest.raises(CorpusError) as refused:
        call(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


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


# Files


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("csv", ["a.csv", "in/b.CSV", "k.csv.zst"]),
        ("jsonl", ["c.json", "h.ndjson", "in/d.jsonl", "j.jsonl.gz"]),
        ("parquet", ["e.parquet"]),
    ],
)
def test_a_folder_is_a_source_of_all_its_files_of_the_kind_in_order(tmp_path, kind, expected):
    for name in (
        "in/b.CSV",
        "a.csv",
        "c.json",
        "in/d.jsonl",
        "e.parquet",
        "README.md",
        "h.ndjson",
        "j.jsonl.gz",
        "k.csv.zst",
    ):
        write(tmp_path / name, "x" * 9)
    found = pieces(SourceConfig(kind=kind, path=f"{tmp_path}/"))
    assert [piece.files for piece in found] == [(name,) for name in expected]
    assert {piece.size for piece in found} == {10}


def test_a_piece_can_be_read_in_another_process(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "a", "label": 0})
    (piece,) = pieces(SourceConfig(kind="jsonl", path=str(path)))
    assert [t.to_pylist() for t in read_piece(pickle.loads(pickle.dumps(piece)))] == [[*rows(path)]]


def test_a_piece_of_a_relative_path_can_be_read_from_another_folder(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", {"text": "a", "label": 0})
    monkeypatch.chdir(tmp_path)
    (piece,) = pieces(SourceConfig(kind="jsonl", path="a.jsonl"))
    monkeypatch.chdir("/")
    assert [len(table) for table in read_piece(piece)] == [1]


def test_a_path_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "none.csv"
    assert refusal(rows, path, kind="csv") == f"source {path}: no such file or folder. {ABSOLUTE}"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("csv", "file that ends in .csv or .csv.gz or .csv.zst"),
        ("parquet", "file that ends in .parquet"),
        ("folder", "text file (.txt or .md) in a folder named after its label"),
    ],
)
def test_a_folder_without_files_of_the_kind_is_refused(tmp_path, kind, expected):
    write(tmp_path / "a.xml", "x")
    assert refusal(rows, tmp_path, kind=kind) == f"source {tmp_path}: no {expected}. {ABSOLUTE}"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b""),
        ("a.csv", b"text,label\n"),
        ("a.csv", b"\n\n"),
        ("a.jsonl", b"\n"),
        ("a.json", b"[]"),
        ("a.jsonl.gz", gzip.compress(b"")),
    ],
)
def test_a_source_without_rows_is_refused(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    kind = "csv" if ".csv" in name else "jsonl"
    assert refusal(rows, path, kind=kind) == f"source {path}: empty, expected rows of text and label"


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), path)
    assert refusal(rows, path, kind="parquet") == f"source {path}: empty, expected rows of text and label"


def test_an_empty_file_among_others_is_no_reason_to_stop(tmp_path):
    write(tmp_path / "a.csv", "text,label")
    write(tmp_path / "b.csv", "text,label", "a,0")
    (tmp_path / "c.csv").touch()
    assert some(rows(tmp_path, kind="csv"), "text") == [("a",)]


@pytest.mark.parametrize("cut", [1, 20, 4000])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz"])
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path, name, cut):
    lines = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(1000)]
    if ".csv" in name:
        data = "".join(["text,label\n", *(f"{line},0\n" for line in lines)])
    else:
        data = "".join(json.dumps({"text": line, "label": 0}) + "\n" for line in lines)
    path = tmp_path / name
    path.write_bytes((gzip.compress if name.endswith("gz") else zstd)(data.encode())[:-cut])
    kind = "csv" if ".csv" in name else "jsonl"
    assert refusal(rows, path, kind=kind) == (
        f"source {path}: cannot be read as {kind} (OSError): expected a whole file of that kind; "
        f"it may be cut off, damaged or not open to you: copy it again"
    )


@pytest.mark.parametrize("damage", ["cut", "middle", "other"])
def test_a_parquet_file_that_is_damaged_is_refused_and_named(tmp_path, damage):
    write(tmp_path / "a.txt", "x")
    path = tmp_path / "in/a.parquet"
    path.parent.mkdir()
    texts = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(5000)]
    pq.write_table(pa.table({"text": texts, "label": [0] * 5000}), path, compression="zstd")
    data = path.read_bytes()
    broken = {"cut": data[:-10], "middle": data[:100] + bytes(5000) + data[5100:], "other": b"text,label\na,0\n"}
    path.write_bytes(broken[damage])
    message = refusal(rows, tmp_path, kind="parquet")
    assert message.startswith(f"source {tmp_path}, in/a.parquet: cannot be read as parquet (")


def test_a_file_that_is_not_open_to_us_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", {"text": "a", "label": 0})
    (piece,) = pieces(SourceConfig(kind="jsonl", path=str(path)))
    path.unlink()
    assert refusal(list, read_piece(piece)).startswith(f"source {path}: cannot be read as jsonl (FileNotFoundError)")


def test_a_reader_that_is_left_early_says_nothing(tmp_path):
    path = write(tmp_path / "a.csv", "text,label", *(f"{i},0" for i in range(5000)))
    (piece,) = pieces(SourceConfig(path=str(path)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader = read_piece(piece)
        next(reader)
        reader.close()


def test_ten_thousand_long_rows_are_read_in_a_second(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"text": f"{i} " + "word é " * 300, "label": i % 2} for i in range(10_000)))
    started = time.process_time()
    assert sum(map(len, tables(path))) == 10_000
    assert time.process_time() - started < 1


def test_reading_loads_neither_ray_nor_torch_nor_datasets():
    heavy = {"ray", "torch", "transformers", "datasets", "pandas"}
    code = f"import detect_ai.corpus.read, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Object stores


def at(gcs_root, name):
    uri, _, query = gcs_root.partition("?")
    return f"{uri}/{name}?{query}"


def test_files_in_an_object_store_are_a_source(gcs_root):
    storage = Storage(gcs_root)
    with storage.filesystem.open_output_stream(storage.path("data/a.jsonl.gz"), compression=None) as stream:
        stream.write(gzip.compress(b'{"text": "a", "label": 0}\n'))
    storage.write_bytes("data/in/b.jsonl", b'{"text": "b", "label": 1}\n')
    assert some(rows(at(gcs_root, "data")), "text", "label", "source") == [("a", 0, "data"), ("b", 1, "data")]
    assert some(rows(at(gcs_root, "data/in/b.jsonl")), "text", "source") == [("b", "b")]
    digest = source_digest(SourceConfig(kind="jsonl", path=at(gcs_root, "data/in/b.jsonl")))
    assert digest == hashlib.sha256(b'{"text": "b", "label": 1}\n').hexdigest()


def test_parquet_and_folders_in_an_object_store_are_sources(gcs_root):
    storage = Storage(gcs_root)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), sink)
    storage.write_bytes("data/a.parquet", sink.getvalue().to_pybytes())
    storage.write_bytes("texts/gpt/1.txt", b"b")
    assert some(rows(at(gcs_root, "data"), kind="parquet"), "text") == [("a",)]
    assert some(rows(at(gcs_root, "texts"), kind="folder", labels={"gpt": 1}), "text", "label") == [("b", 1)]


def test_what_is_not_in_an_object_store_is_refused(gcs_root):
    for uri in (at(gcs_root, "none.jsonl"), at(gcs_root.replace("bucket", "elsewhere", 1), "none.jsonl")):
        assert refusal(rows, uri).startswith(f"source {uri}: ")


# Folders of text files


def folder(root):
    for name, text in {"human/1.txt": "H", "human/deep/er/2.md": "D", "gpt/1.txt": "G", "gpt/1.json": "{}"}.items():
        write(root / name)
        (root / name).write_text(text)
    return root


FOLDER = {"kind": "folder", "labels": {"human": 0, "gpt": 1}}


def test_the_first_folder_is_the_label_and_the_generator_of_ai(tmp_path):
    assert some(rows(folder(tmp_path), **FOLDER), "text", "label", "generator", "problem") == [
        ("G", 1, "gpt", ""),
        ("H", 0, "", ""),
        ("D", 0, "", ""),
    ]


def test_deeper_folders_and_file_names_can_be_columns(tmp_path):
    found = rows(folder(tmp_path), **FOLDER, domain="folder", group="file")
    assert some(found, "domain", "group") == [("", "1"), ("", "1"), ("deep/er", "2")]


def test_a_folder_that_is_no_label_is_refused(tmp_path):
    write(folder(tmp_path) / "claude/1.txt", "C")
    assert refusal(rows, tmp_path, **FOLDER) == (
        f"source {tmp_path}: column 'label' holds 'claude'; expected one of human (human), gpt (ai). "
        f"Map others with corpus.sources.N.labels"
    )


def test_a_text_outside_the_folders_has_no_label(tmp_path):
    write(folder(tmp_path) / "README.md", "R")
    assert some(rows(tmp_path, **FOLDER), "text", "problem")[0] == ("R\n", "no_label")
    assert some(rows(tmp_path, unlabelled=True, **FOLDER), "text", "problem")[0] == ("R\n", "")


def test_an_empty_or_wrongly_encoded_text_file_has_a_problem_and_a_name(tmp_path):
    (folder(tmp_path) / "gpt/1.txt").write_bytes(b"ol\xe9")
    (tmp_path / "human/1.txt").write_bytes(b"")
    found = rows(tmp_path, **FOLDER, name="n")
    assert some(found, "text", "problem")[:2] == [("ol\ufffd", "bad_encoding"), ("", "no_text")]
    assert found[1]["id"] == "n-human/1.txt#1"


def test_many_small_files_are_few_pieces(tmp_path):
    for i in range(1100):
        (tmp_path / "gpt").mkdir(exist_ok=True)
        (tmp_path / f"gpt/{i:04d}.txt").write_text(str(i))
    found = pieces(SourceConfig(path=str(tmp_path), **FOLDER))
    assert [len(piece.files) for piece in found] == [512, 512, 76]
    assert [row["text"] for row in rows(tmp_path, **FOLDER)] == [str(i) for i in range(1100)]


# The hub


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A data set in the hub's format: three files of `train`, one of `validation`."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "essays"
    (root / "data").mkdir(parents=True)
    for i in range(3):
        texts, labels = [f"train {i} {j}" for j in range(300)], [j % 2 for j in range(300)]
        table = pa.table({"text": texts, "label": labels, "n": range(300)})
        pq.write_table(table, root / f"data/train-{i:05d}-of-00003.parquet")
    pq.write_table(pa.table({"text": ["v"], "label": [1], "n": [0]}), root / "data/validation-00000-of-00001.parquet")
    write(root / "README.md", "---", "configs:", "- config_name: main", "  data_files:", "  - split: train",
          "    path: data/train-*", "  - split: validation", "    path: data/validation-*", "---")  # fmt: skip
    return root


TRAIN = [f"train {i} {j}" for i in range(3) for j in range(300)]


def test_a_data_set_in_the_hubs_format_is_read_in_its_order(data_set):
    found = rows(data_set, kind="hub", subset="main", group="n")
    assert [row["text"] for row in found] == TRAIN
    assert some(found, "label", "group", "source", "problem")[:2] == [(0, "0", "essays", ""), (1, "1", "essays", "")]
    assert some(rows(data_set, kind="hub", hub_split="validation"), "text", "label") == [("v", 1)]


def test_every_part_of_a_data_set_is_read_once(data_set):
    found = pieces(SourceConfig(kind="hub", path=str(data_set)))
    assert [(piece.part, piece.parts) for piece in found] == [(0, 3), (1, 3), (2, 3)]
    (table,) = read_piece(found[1])
    assert table["text"].to_pylist() == TRAIN[300:600]


def test_a_data_set_of_the_hub_is_read_in_parts_of_its_cache(data_set, monkeypatch):
    """Here the folder plays the hub's part: with a revision, and not streamed."""
    monkeypatch.setattr(hub, "is_local", lambda source: False)
    monkeypatch.setattr(hub, "_PART_BYTES", 4000)
    given = {"kind": "hub", "revision": "a" * 40}
    assert len(pieces(SourceConfig(path=str(data_set), **given))) > 2
    assert [row["text"] for row in rows(data_set, **given)] == TRAIN
    assert [row["text"] for row in rows(data_set, streaming=True, **given)] == TRAIN


def test_a_data_set_may_come_with_a_preset(tmp_path, data_set):
    src = ["cmv_human", "cmv_machine_topical_gpt_j"]
    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 0], "src": src}), tmp_path / "mage.parquet")
    for path in (data_set / "README.md", *data_set.glob("data/*")):
        path.unlink()
    (tmp_path / "mage.parquet").rename(data_set / "data/train-00000-of-00001.parquet")
    found = rows(data_set, kind="hub", preset="mage")
    assert some(found, "label", "domain", "generator", "source") == [
        (0, "cmv", "", "mage"),
        (1, "cmv", "gpt_j", "mage"),
    ]


def test_a_changed_file_of_a_data_set_is_seen(data_set):
    source = SourceConfig(kind="hub", path=str(data_set))
    before, _ = source_digest(source), rows(data_set, kind="hub")
    path = data_set / "data/train-00000-of-00003.parquet"
    pq.write_table(pa.table({"text": ["new"], "label": [1], "n": [0]}), path)
    assert rows(data_set, kind="hub")[0]["text"] == "new"
    assert source_digest(source) != before


def test_what_a_download_notes_for_itself_is_no_part_of_a_data_set(data_set):
    source = SourceConfig(kind="hub", path=str(data_set))
    before = source_digest(source)
    write(data_set / ".cache/huggingface/download/a.metadata", "12:00")
    assert source_digest(source) == before


@pytest.mark.parametrize("revision", ["", "main", "a" * 39, "A" * 40])
def test_a_name_of_the_hub_needs_a_pinned_revision(revision):
    source = SourceConfig(kind="hub", path="org/essays", revision=revision)
    assert refusal(pieces, source) == (
        f"source org/essays: no such folder here, so it is a data set of the hub: expected its "
        f"corpus.sources.N.revision, a commit of 40 hex digits; found {revision!r}"
    )


def test_a_wrong_subset_or_split_is_refused_with_those_that_there_are(data_set):
    message = refusal(rows, data_set, kind="hub", hub_split="tset")
    assert message.startswith(f"source {data_set}: cannot be loaded from the hub or as a data set in its format (")
    assert "['train', 'validation']" in message
    assert message.endswith("asked for subset '', split 'tset'")
    assert "['main']" in refusal(rows, data_set, kind="hub", subset="other")


def test_a_data_set_that_cannot_be_reached_is_refused(monkeypatch):
    pytest.importorskip("datasets")
    source = SourceConfig(kind="hub", path="org/essays", revision="a" * 40)
    message = refusal(pieces, source)
    assert message.startswith("source org/essays: cannot be loaded from the hub or as a data set in its format (")


def test_a_damaged_file_of_a_data_set_is_refused(data_set):
    path = data_set / "data/train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert refusal(rows, data_set, kind="hub").startswith(f"source {data_set}: part 1 of 3 cannot be read (")


def test_the_columns_of_a_data_set_are_checked(data_set):
    assert refusal(rows, data_set, kind="hub", text="n") == (
        f"source {data_set}: column 'n' is of type int64; expected string"
    )
    assert refusal(rows, data_set, kind="hub", text="body").startswith(f"source {data_set}: no column 'body'; found ")


def test_without_the_package_the_way_to_the_hub_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal(pieces, SourceConfig(kind="hub", path=str(tmp_path))) == (
        f"source {tmp_path}: kind hub needs the package datasets: pip install 'detect-ai[hub]'"
    )


# Names and digests


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"path": "/data/essays.csv.gz"}, "essays"),
        ({"path": "gs://bucket/data/essays/?scheme=http"}, "essays"),
        ({"path": "org/essays", "kind": "hub"}, "essays"),
        ({"path": "train.csv", "preset": "raid"}, "raid"),
        ({"path": "train.csv", "preset": "raid", "name": "mine"}, "mine"),
        ({"kind": "sample"}, "sample"),
    ],
)
def test_a_source_has_a_name(given, expected):
    assert source_name(SourceConfig(**given)) == expected


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n"))
    assert source_digest(SourceConfig(path=str(path))) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_of_a_folder_changes_with_every_byte_and_name(tmp_path):
    source = SourceConfig(path=str(folder(tmp_path)), **FOLDER)
    seen = {source_digest(source)}
    (tmp_path / "gpt/1.txt").write_text("g")
    seen.add(source_digest(source))
    (tmp_path / "gpt/1.txt").rename(tmp_path / "human/0.txt")  # another label, and no other byte or order
    seen.add(source_digest(source))
    assert len(seen) == 3
    assert source_digest(source) in seen


def test_the_digest_of_a_pinned_data_set_is_that_of_its_name(monkeypatch):
    source = SourceConfig(kind="hub", path="org/essays", revision="a" * 40)
    digests = {source_digest(source)}
    for change in ({"revision": "b" * 40}, {"subset": "x"}, {"hub_split": "test"}, {"path": "org/other"}):
        digests.add(source_digest(SourceConfig(**{**source.__dict__, **change})))
    assert len(digests) == 5


# The sample


@pytest.fixture(scope="module")
def sample():
    pytest.importorskip("gensim")
    return list(read._sample_rows("lee-mirrors"))


def test_the_sample_is_pairs_of_distinct_human_and_ai_stories(sample):
    assert len(sample) == 2 * 293
    assert len({row["text"] for row in sample}) == len({row["id"] for row in sample}) == len(sample)
    for human, ai in zip(sample[::2], sample[1::2], strict=True):
        assert (human["label"], ai["label"]) == (0, 1)
        assert human["group"] == ai["group"] == human["id"]
        assert (human["generator"], ai["generator"]) == ("", "claude")
        assert min(len(human["text"]), len(ai["text"])) > 100


def test_the_sample_is_read_as_it_is(sample):
    found = [
        row
        for piece in pieces(SourceConfig(kind="sample", name="lee"))
        for t in read_piece(piece)
        for row in t.to_pylist()
    ]
    names = ("id", "text", "label", "generator", "group", "domain")
    assert some(found, *names) == some(sample, *names)
    assert {(row["source"], row["problem"]) for row in found} == {("lee", "")}


def test_a_mirror_is_on_the_topic_of_its_story(sample):
    """A shifted pairing would part a story from its mirror, and leak topics over the splits."""
    words = [{word for word in row["text"].lower().split() if len(word) > 6} for row in sample]
    pairs = list(zip(words[::2], words[1::2], strict=True))
    own = sum(len(human & ai) for human, ai in pairs)
    shifted = sum(len(human & pairs[i - 1][1]) for i, (human, _) in enumerate(pairs))
    assert own > 5 * shifted


def test_the_sample_is_read_without_importing_gensim(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "gensim"]:
        monkeypatch.delitem(sys.modules, name)
    list(read._sample_rows("x"))
    assert "gensim" not in sys.modules


def test_without_the_package_the_way_to_the_sample_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(lambda: list(read._sample_rows("x"))) == (
        "source sample: the human half comes with the package gensim: pip install 'detect-ai[sample]'"
    )


def test_the_digest_of_the_sample_changes_with_its_texts(monkeypatch):
    before = source_digest(SourceConfig(kind="sample"))
    stories = read._lee_stories()
    monkeypatch.setattr(read, "_lee_stories", lambda: [story.replace("the", "one") for story in stories])
    assert source_digest(SourceConfig(kind="sample")) != before


def test_the_datasheet_lies_beside_the_sample():
    folder = Path(read.__file__).parents[1] / "data/sample"
    lines = (folder / "ai_mirrors.jsonl").read_text("utf-8").splitlines()
    assert all({"id", "mirror_of", "text"} <= set(json.loads(line)) for line in lines)
    assert "CC0" in (folder / "README.md").read_text("utf-8")
