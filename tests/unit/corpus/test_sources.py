"""Sources: every format gives the same rows; broken files are rejected, broken rows counted."""

import csv
import gzip
import hashlib
import io
import json
import pickle
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import Storage
from detect_ai.corpus import formats
from detect_ai.corpus.columns import ROW_SCHEMA
from detect_ai.corpus.sources import list_pieces, read_piece, source_digest, source_name
from tests.unit.conftest import refusal, rows, some, tables, write, zstd

ROW = {"text": "a", "label": 0}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_every_format_gives_the_same_rows(tmp_path):
    values = [{"text": "One, two\nthree é", "label": 0, "g": "a"}, {"text": "Four", "label": 1, "g": "b"}]
    lines = "".join(json.dumps(row) + "\n" for row in values).encode()
    text = 'text,label,g\n"One, two\nthree é",0,a\nFour,1,b\n'.encode()
    files = {
        "a.jsonl": lines, "b.ndjson.gz": gzip.compress(lines, mtime=0), "c.JSONL.ZST": zstd(lines), "f.json": lines,
        "d.json": json.dumps(values, indent=2).encode(), "e.jsonl": b"\xef\xbb\xbf" + json.dumps(values).encode(),
        "a.csv": text, "B.CSV.GZ": gzip.compress(text, mtime=0),
        "c.csv": b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    expected = rows(tmp_path / "a.parquet", kind="parquet", group="g", name="n")
    names = ("text", "label", "group", "problem")
    assert some(expected, *names) == [("One, two\nthree é", 0, "a", ""), ("Four", 1, "b", "")]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        table = rows(tmp_path / name, kind="csv" if "csv" in name.lower() else "jsonl", group="g", name="n")
        assert some([{**row, "text": row["text"].replace("\r", "")} for row in table], *names) == some(expected, *names)


def test_mapped_columns(tmp_path):
    row = {
        "body": "Text.", "ai": 1, "key": 7, "prompt": "p", "topic": "news", "model": "m", "tongue": "en", "part": "dev",
        "how": "homoglyph", "other": "x",
    }  # fmt: skip
    (record,) = rows(
        write(tmp_path / "a.jsonl", row), text="body", label="ai", id="key", group="prompt", domain="topic",
        generator="model", language="tongue", split="part", attack="how", name="mine", weight=2.5,
    )  # fmt: skip
    assert list(record.values()) == ["7", "Text.", 1, "mine", "news", "m", "p", "en", "dev", "homoglyph", 2.5, ""]
    assert list(record) == ROW_SCHEMA.names


@pytest.mark.parametrize("nothing", [None, "", "  ", float("nan")])
def test_missing_values_are_filled_in(tmp_path, nothing):
    row = {"text": "a", "label": 0, "i": nothing, "g": nothing, "how": nothing}
    given = [{**row, "i": "x", "g": "y"}, row]
    first, second = rows(write(tmp_path / "n.jsonl", *given), id="i", group="g", attack="how")
    row_id = f"n-{hashlib.sha256(b'a').hexdigest()[:16]}"
    assert (first["id"], first["group"]) == ("x", "y")
    assert (second["id"], second["group"], second["attack"], second["weight"]) == (row_id, row_id, "none", 1.0)


def test_whole_numbers_of_float_columns_stay_whole(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=["a", "b"], label=[0, 1], g=[7.0, None])
    first, second = rows(path, kind="parquet", group="g")
    assert (first["group"], second["group"]) == ("7", second["id"])


def test_tables_are_bounded_and_in_order(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"text": str(i), "label": i % 2} for i in range(4100)))
    batches = tables(path)
    assert [len(table) for table in batches] == [2000, 2000, 100]
    assert [text for table in batches for text in table["text"].to_pylist()] == [str(i) for i in range(4100)]
    path = write(tmp_path / "b.jsonl", *({"text": "w" * 3_000_000, "label": i % 2} for i in range(7)))
    assert [len(table) for table in tables(path)] == [3, 3, 1]


OWN = {"human": 0, "polished": 1, "0": 1}


@pytest.mark.parametrize(
    ("labels", "values", "expected"),
    [
        ({}, [0, "0", 0.0, False, "0.0", "False", "human"], (0, "")),
        ({}, [1, " 1 ", 1.0, True, "1.0", "TRUE", "AI"], (1, "")),
        (OWN, ["human", "Human"], (0, "")),
        (OWN, ["polished", 0], (1, "")),
        ({}, [None, float("nan"), "", "nan", " "], (None, "no_label")),
    ],
)
def test_label_values(tmp_path, labels, values, expected):
    path = write(tmp_path / "a.jsonl", *({"text": "a", "label": value} for value in values))
    assert some(rows(path, labels=labels), "label", "problem") == [expected] * len(values)


@pytest.mark.parametrize(
    ("value", "shown"), [(2, "'2'"), (0.5, "'0.5'"), ("x" * 21, "21 characters"), ({"0": 1}, "lines=True")]
)
def test_unknown_label_is_refused(tmp_path, value, shown):
    path = write(tmp_path / "a.jsonl", {"text": "a", "label": 1}, {"text": "Secret.", "label": value})
    message = refusal(rows, path)
    assert shown in message
    assert "Secret" not in message


def test_label_after_a_broken_row_is_not_trusted(tmp_path):
    path = write(tmp_path / "a.csv", "text,label", '"broken" here,0', "the text goes on, with a comma", "last,1")
    assert some(rows(path, kind="csv"), "label", "problem") == [(None, "bad_row"), (None, "bad_row"), (1, "")]


def test_unlabelled_source_keeps_the_labels_it_has(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b", "label": 1}, {"text": "c", "label": "perhaps"})
    assert some(rows(path, unlabelled=True), "label", "problem") == [(None, ""), (1, ""), (None, "")]


@pytest.mark.parametrize("value", [None, "", 5, ["a"], True])
def test_missing_text_is_a_problem(tmp_path, value):
    path = write(tmp_path / "a.jsonl", {"text": "first", "label": 1}, {"text": value, "label": 0})
    assert some(rows(path), "text", "label", "problem")[1:] == [("", 0, "no_text")]


def test_broken_json_rows_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "label": 0}\n{"text": broken\n{"text": "ol\xe9", "label": 1}\n')
    expected = [("a", 0, ""), ('{"text": broken\n', None, "bad_row"), ("ol\ufffd", 1, "bad_encoding")]
    assert some(rows(path), "text", "label", "problem") == expected


@pytest.mark.parametrize("line", ["one,two,0", "one", '"one" and,0', '"one \\"two\\" three",0'])
def test_broken_csv_row_is_kept_alone(tmp_path, line):
    records = rows(write(tmp_path / "a.csv", "text,label", "first,0", line, "last,1"), kind="csv")
    assert some(records, "text", "problem") == [("first", ""), (f"{line}\n", "bad_row"), ("last", "")]


@pytest.mark.parametrize(
    ("kind", "line", "advice"),
    [
        ("csv", '"he said \\"one, two\\" and left",1', "doubled"),
        ("csv", "na\xefve,1", "UTF-8"),
        ("jsonl", "{'text': 'a', 'label': 1}", "one JSON object on each line"),
    ],
)
def test_many_broken_rows_stop_the_job(tmp_path, kind, line, advice):
    path = tmp_path / f"a.{kind}"
    good = "text,label\n" + "good,0\n" * 27 if kind == "csv" else '{"text": "good", "label": 0}\n' * 27
    path.write_bytes((good + f"{line}\n" * 3).encode("latin-1"))
    assert len(rows(path, kind=kind)) == 30
    path.write_bytes((good + f"{line}\n" * 4).encode("latin-1"))
    message = refusal(rows, path, kind=kind)
    assert "4 of 31 rows" in message
    assert advice in message


def test_lone_surrogates_become_replacement_characters(tmp_path):
    row = r'{"text": "a\ud800b \ud83d\ude00", "label": 1, "g": "\udfff", "i": "\udc80"}'
    (entry,) = rows(write(tmp_path / "a.jsonl", row), group="g", id="i")
    assert (entry["text"], entry["group"], entry["id"], entry["problem"]) == ("a\ufffdb 😀", "\ufffd", "\ufffd", "")


@pytest.mark.parametrize("text", ["a\x00b", "w" * 5_000_000])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_unusual_texts_are_read(tmp_path, text, kind):
    lines = ["text,label", f"{text},1"] if kind == "csv" else [{"text": text, "label": 1}]
    assert some(rows(write(tmp_path / f"a.{kind}", *lines), kind=kind), "text", "problem") == [(text, "")]


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_csv_round_trip(values, end):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *values])
    records = list(formats.csv_rows(io.BufferedReader(io.BytesIO(file.getvalue().encode())), lambda names: None))
    assert records == [formats.Row({"text": text, "label": label}) for text, label in values]


@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl"]))
def test_any_bytes_give_rows_or_one_error(tmp_path_factory, data, kind):
    path = tmp_path_factory.mktemp("any") / f"a.{kind}"
    path.write_bytes((b"text,label\n" if kind == "csv" else b"") + data)
    records, message = [], f"source {path}"
    try:
        records = rows(path, kind=kind)
    except CorpusError as error:
        message = str(error)
    assert message.startswith(f"source {path}")
    assert "\n" not in message
    assert {row["problem"] for row in records} <= {"", "bad_row", "bad_encoding", "no_text", "no_label"}


def test_missing_columns_are_refused(tmp_path):
    csv_file, json_file = write(tmp_path / "a.csv", "text,label", "a,0"), write(tmp_path / "a.jsonl", ROW)
    for path in (csv_file, json_file, parquet(tmp_path / "a.parquet", text=["a"], label=[0])):
        for column in ("text", "label", "group"):
            message = refusal(rows, path, kind=path.suffix[1:], **{column: "body"})
            assert "no column 'body'; found 'label', 'text'" in message


def test_json_may_leave_out_optional_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", *[ROW] * 3000, {"text": "b", "label": 1, "model": "gpt"})
    assert rows(path, generator="model")[-1]["generator"] == "gpt"


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(), pa.date32()])
def test_text_column_of_another_type_is_refused(tmp_path, kind):
    path = parquet(tmp_path / "a.parquet", text=pa.nulls(2, kind), label=[0, 1])
    assert str(kind) in refusal(rows, path, kind="parquet")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_string_type_is_read(tmp_path, kind):
    text, label = pa.array(["a", None]).cast(kind), pa.array(["0", "1"]).dictionary_encode()
    records = rows(parquet(tmp_path / "a.parquet", text=text, label=label), kind="parquet")
    assert some(records, "text", "label", "problem") == [("a", 0, ""), ("", 1, "no_text")]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("csv", ["a.csv", "in/b.CSV", "k.csv.zst"]),
        ("jsonl", ["c.json", "h.ndjson", "in/d.jsonl"]),
        ("parquet", ["e.parquet"]),
    ],
)
def test_folder_is_all_its_files_of_a_kind(tmp_path, kind, expected):
    hidden = ("._a.csv", ".ipynb_checkpoints/a-checkpoint.csv", "__MACOSX/in/b.csv", ".c.json", "in/._e.parquet")
    names = ("in/b.CSV", "a.csv", "c.json", "in/d.jsonl", "e.parquet", "README.md", "h.ndjson", "k.csv.zst")
    for name in (*names, *hidden):
        write(tmp_path / name, "x" * 9)
    pieces = list_pieces(SourceConfig(kind=kind, path=f"{tmp_path}/"))
    assert [piece.files for piece in pieces] == [(name,) for name in expected]
    assert {piece.size for piece in pieces} == {10}


def test_piece_is_read_in_another_process_and_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", ROW)
    monkeypatch.chdir(tmp_path)
    (piece,) = list_pieces(SourceConfig(kind="jsonl", path="a.jsonl"))
    monkeypatch.chdir("/")
    assert [table.to_pylist() for table in read_piece(pickle.loads(pickle.dumps(piece)))] == [rows(path)]


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_source_without_files_is_refused(tmp_path, kind):
    write(tmp_path / "in/a.xml", "x")
    assert "no such file or folder" in refusal(rows, tmp_path / "none", kind=kind)
    assert {"folder": ".txt"}.get(kind, f".{kind}") in refusal(rows, tmp_path, kind=kind)


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.csv", b""), ("a.csv", b"text,label\n"), ("a.json", b"[]"), ("a.jsonl.gz", gzip.compress(b"", mtime=0))],
)
def test_empty_source_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    kind = "csv" if ".csv" in name else "jsonl"
    assert "empty" in refusal(rows, tmp_path / name, kind=kind)
    write(tmp_path / f"z.{kind}", *(["text,label", "a,0"] if kind == "csv" else [ROW]))
    assert some(rows(tmp_path, kind=kind), "text") == [("a",)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_truncated_file_is_refused(tmp_path, name):
    values = [{"text": hashlib.sha256(str(i).encode()).hexdigest(), "label": 0} for i in range(1000)]
    lines = "".join(json.dumps(row) + "\n" for row in values).encode()
    path = tmp_path / "in" / name
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(values), path)
    data = {"gz": gzip.compress(lines), "st": zstd(lines)}.get(name[-2:], path.read_bytes())
    path.write_bytes(data[:-20])
    kind = name.split(".")[1]
    write(tmp_path / f"z.{kind}")
    assert f"in/{name}" in refusal(rows, tmp_path, kind=kind)


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        ("text,label\na,0\n".encode("utf-16"), "csv", "UTF-16"),
        ('{"text": "a"}\n'.encode("utf-16-le"), "jsonl", "UTF-16"),
        (gzip.compress(b"text,label\na,0\n", mtime=0), "csv", ".gz"),
        (b"PK\x03\x04rest of a workbook", "csv", "ZIP"),
        (b'{\n "text": "a",\n "label": 0\n}\n', "jsonl", "one JSON object on each line"),
        (b'[{"text": "a", "label": 0}]\n[]\n', "jsonl", "JSON array"),
        (b'text,"label\n', "csv", "header"),
        (b"text;label\none, two;0\n", "csv", "commas"),
        (b"text,label,text\na,0,b\n", "csv", "two columns"),
        (b'text,label\nfirst,0\n"never closed,1\nmore,0\n', "csv", "line 3"),
    ],
)
def test_file_of_another_format_is_refused(tmp_path, data, kind, expected):
    (tmp_path / f"a.{kind}").write_bytes(data)
    write(tmp_path / f"b.{kind}", "")
    message = refusal(rows, tmp_path, kind=kind)
    assert expected in message
    assert f"a.{kind}" in message


def test_sources_in_an_object_store(gcs_root):
    root, _, query = gcs_root.partition("?")
    storage = Storage(gcs_root)
    with storage.filesystem.open_output_stream(storage.path("data/A.JSONL.GZ"), compression=None) as stream:
        stream.write(gzip.compress(b'{"text": "a", "label": 0}\n'))
    storage.write_bytes("data/in/b.jsonl", b'{"text": "b", "label": 1}\n')
    storage.write_bytes("texts/gpt/1.txt", b"c")
    assert some(rows(f"{root}/data?{query}"), "text", "label", "source") == [("a", 0, "data"), ("b", 1, "data")]
    assert some(rows(f"{root}/texts?{query}", kind="folder", labels={"gpt": 1}), "text", "label") == [("c", 1)]
    digest = source_digest(SourceConfig(kind="jsonl", path=f"{root}/data/in/b.jsonl?{query}"))
    assert digest == hashlib.sha256(b'{"text": "b", "label": 1}\n').hexdigest()
    assert refusal(rows, f"{root}/none.jsonl?{query}").startswith(f"source {root}/none.jsonl")


# Folders of text files

FOLDER = {"kind": "folder", "labels": {"human": 0, "gpt": 1}}


def test_folder_names_are_labels(tmp_path):
    for name in ("human/1.txt", "human/deep/er/2.md", "gpt/1.txt", "README.md", "human/._1.txt"):
        write(tmp_path / name, name)
    records = rows(tmp_path, **FOLDER, domain="folder", group="file")
    names = ("text", "label", "generator", "domain", "group", "problem")
    assert some(records, *names) == [
        ("README.md\n", None, "", "", "README", "no_label"),
        ("gpt/1.txt\n", 1, "gpt", "", "1", ""),
        ("human/1.txt\n", 0, "", "", "1", ""),
        ("human/deep/er/2.md\n", 0, "", "deep/er", "2", ""),
    ]
    write(tmp_path / "claude/1.txt", "C")
    assert "'claude'" in refusal(rows, tmp_path, **FOLDER)


def test_small_files_share_a_piece(tmp_path):
    (tmp_path / "gpt").mkdir()
    for i in range(1100):
        (tmp_path / f"gpt/{i:04d}.txt").write_text(str(i))
    assert [len(piece.files) for piece in list_pieces(SourceConfig(path=str(tmp_path), **FOLDER))] == [512, 512, 76]
    assert [row["text"] for row in rows(tmp_path, **FOLDER)] == [str(i) for i in range(1100)]


# The hub

TRAIN = [f"train {i} {j}" for i in range(3) for j in range(300)]


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A data set in the hub's format: three files of `train`, one of `validation`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "essays"
    (root / "data").mkdir(parents=True)
    for i in range(3):
        path, texts = root / f"data/train-{i:05d}-of-00003.parquet", TRAIN[300 * i : 300 * (i + 1)]
        parquet(path, text=texts, label=[j % 2 for j in range(300)], n=range(300))
    parquet(root / "data/validation-00000-of-00001.parquet", text=["v"], label=[1], n=[0])
    write(root / "README.md", "---", "configs:", "- config_name: main", "  data_files:", "  - split: train",
          "    path: data/train-*", "  - split: validation", "    path: data/validation-*", "---")  # fmt: skip
    return root


def test_hub_data_set_is_read_in_order_and_parts(data_set):
    records = rows(data_set, kind="hub", subset="main", group="n")
    assert [row["text"] for row in records] == TRAIN
    assert some(records, "label", "group", "source", "problem")[:2] == [(0, "0", "essays", ""), (1, "1", "essays", "")]
    (_, second, _) = pickle.loads(pickle.dumps(list_pieces(SourceConfig(kind="hub", path=str(data_set)))))
    assert [text for table in read_piece(second) for text in table["text"].to_pylist()] == TRAIN[300:600]
    assert some(rows(data_set, kind="hub", hub_split="validation"), "text", "label") == [("v", 1)]


def test_changed_file_of_a_local_data_set_is_noticed(data_set):
    before = source_digest(SourceConfig(kind="hub", path=str(data_set))), rows(data_set, kind="hub")
    parquet(data_set / "data/train-00000-of-00003.parquet", text=["new"], label=[1], n=[0])
    assert rows(data_set, kind="hub")[0]["text"] == "new"
    assert source_digest(SourceConfig(kind="hub", path=str(data_set))) != before[0]


@pytest.mark.parametrize("revision", ["", "main", "A" * 40])
def test_hub_data_set_needs_a_pinned_revision(revision):
    message = refusal(list_pieces, SourceConfig(kind="hub", path="org/essays", revision=revision))
    assert repr(revision) in message


def test_unreadable_data_sets_are_refused(data_set):
    assert "['train', 'validation']" in refusal(rows, data_set, kind="hub", hub_split="tset")
    assert "int64" in refusal(rows, data_set, kind="hub", text="n")
    assert "no column 'body'" in refusal(rows, data_set, kind="hub", text="body")
    assert "org/essays" in refusal(list_pieces, SourceConfig(kind="hub", path="org/essays", revision="b" * 40))
    path = data_set / "data/train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert "part 1" in refusal(rows, data_set, kind="hub")


def test_source_name():
    assert source_name(SourceConfig(path="/data/essays.csv.gz")) == "essays"
    assert source_name(SourceConfig(path="gs://bucket/data/essays/?scheme=http")) == "essays"
    assert source_name(SourceConfig(path="train.csv", preset="raid")) == "raid"
    assert source_name(SourceConfig(path="train.csv", preset="raid", name="mine")) == "mine"
    assert source_name(SourceConfig(kind="sample")) == "sample"


def test_digest_depends_on_bytes_and_names(tmp_path):
    source = SourceConfig(path=str(write(tmp_path / "gpt/1.txt", "x").parents[1]), **FOLDER)
    seen = {source_digest(source)}
    (tmp_path / "gpt/1.txt").write_text("g")
    seen.add(source_digest(source))
    (tmp_path / "gpt").rename(tmp_path / "human")  # another label, the same bytes
    seen.add(source_digest(source))
    pinned = SourceConfig(kind="hub", path="org/essays", revision="a" * 40)
    changes = ({}, {"revision": "b" * 40}, {"subset": "x"}, {"hub_split": "test"}, {"path": "org/other"})
    assert len(seen | {source_digest(pinned.model_copy(update=change)) for change in changes}) == 8


def test_sample_is_pairs_of_human_and_ai_stories():
    records = rows("", kind="sample")
    assert len(records) == 2 * 293 == len({row["text"] for row in records}) == len({row["id"] for row in records})
    for human, ai in zip(records[::2], records[1::2], strict=True):
        assert (human["label"], ai["label"], human["generator"], ai["generator"]) == (0, 1, "", "claude")
        assert human["group"] == ai["group"] == human["id"]


def test_sample_is_read_without_importing_gensim(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "gensim"]:
        monkeypatch.delitem(sys.modules, name)
    rows("", kind="sample")
    assert "gensim" not in sys.modules
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "detect-ai[sample]" in refusal(rows, "", kind="sample")
