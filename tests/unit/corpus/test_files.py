"""Files and folders of a source, on a disk and in an object store: found, read, or refused."""

import gzip
import hashlib
import json
import pickle
import subprocess
import sys
import time
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import SourceConfig
from detect_ai.core.storage import Storage
from detect_ai.corpus.sources import pieces, read_piece, source_digest
from tests.unit.conftest import refusal, rows, some, tables, write, zstd

ABSOLUTE = (
    "Under `ray job submit` a relative path is one of the working directory: "
    "give an absolute path or a gs:// URI that every node can read"
)


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
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
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


def test_ten_thousand_long_rows_are_read_in_seconds(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"text": f"{i} " + "word é " * 300, "label": i % 2} for i in range(10_000)))
    started = time.process_time()
    assert sum(map(len, tables(path))) == 10_000
    assert time.process_time() - started < 5


def test_reading_loads_neither_ray_nor_torch_nor_datasets():
    heavy = {"ray", "torch", "transformers", "datasets", "pandas"}
    code = f"import detect_ai.corpus.sources, sys; print({heavy} & set(sys.modules))"
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
