import csv
import io
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs as pafs

from detect_ai.corpus import formats
from detect_ai.corpus.formats import Row, UnreadableError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def csv_rows(data):
    return list(formats.csv_rows(io.BytesIO(data), lambda names: None))


def json_rows(data, name="a.jsonl"):
    return list(formats.json_rows(io.BytesIO(data), name))


def texts_of(rows):
    return [row.values.get("text") for row in rows]


class Endless(io.RawIOBase):
    """A file without end: its beginning, then the same row again and again. Counts what is read of it."""

    def __init__(self, beginning, row):
        self._next, self._row, self.bytes_read = beginning, row, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        while len(self._next) < len(buffer):
            self._next += self._row * 1000
        buffer[:], self._next = self._next[: len(buffer)], self._next[len(buffer) :]
        self.bytes_read += len(buffer)
        return len(buffer)


# CSV


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_every_csv_file_that_python_writes_comes_back(rows, end, bom):
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    found = csv_rows((b"\xef\xbb\xbf" if bom else b"") + file.getvalue().encode())
    assert found == [Row({"text": text, "label": label}) for text, label in rows]


def test_a_quoted_field_may_hold_lines_commas_and_quotes():
    assert csv_rows(b'text,label\n"one, with\r\n""two""\nlines",0\n') == [
        Row({"text": 'one, with\r\n"two"\nlines', "label": "0"})
    ]


@pytest.mark.parametrize("line", [b"one,two,0\n", b"one\n", b'"one",two,"0"\n'])
def test_a_csv_row_with_another_number_of_fields_is_bad_and_alone(line):
    found = csv_rows(b"text,label\nfirst,0\n" + line + b"last,1\n")
    assert found == [
        Row({"text": "first", "label": "0"}),
        Row({}, "bad_row", line.decode()),
        Row({"text": "last", "label": "1"}),
    ]


@given(
    st.lists(st.from_regex(r"[ab][ab ,\n]{0,9}", fullmatch=True), min_size=1, max_size=6),
    st.data(),
    st.sampled_from(['"never closed,0', '"closed" too early,1', "say \"hi\",\"x\\\"y\",0"]),
)  # fmt: skip
def test_a_csv_row_with_a_broken_quote_costs_no_other_row(texts, data, broken):
    place = data.draw(st.integers(0, len(texts)))
    lines = [f'"{text}",0\n' for text in texts]
    found = csv_rows("".join(["text,label\n", *lines[:place], f"{broken}\n", *lines[place:]]).encode())
    assert found == [
        *(Row({"text": text, "label": "0"}) for text in texts[:place]),
        Row({}, "bad_row", f"{broken}\n"),
        *(Row({"text": text, "label": "0"}) for text in texts[place:]),
    ]


def test_a_quote_that_is_open_at_the_end_costs_its_own_line():
    found = csv_rows(b'text,label\n"open,0\nlast,1\n')
    assert found == [Row({}, "bad_row", '"open,0\n'), Row({"text": "last", "label": "1"})]


@given(st.text('a",\n\r\x00é', max_size=60))
def test_whatever_stands_in_a_csv_file_no_character_of_it_is_lost(body):
    written = "a,b\n" + body
    kept = "".join(row.raw + "".join(row.values.values()) for row in csv_rows(written.encode()))
    for ch in "aé\x00":
        assert kept.count(ch) == body.count(ch)


def test_a_hostile_csv_file_is_read_in_time_that_grows_with_its_length(monkeypatch):
    """Every record runs to the limit, and each time but the first line would be read again."""
    monkeypatch.setattr(formats, "MAX_ROW", 1000)
    monkeypatch.setattr(formats, "_MAX_REPEATED", 8000)
    line = 'a","b\n'
    reads = []
    original = formats._Lines.__next__
    monkeypatch.setattr(formats._Lines, "__next__", lambda self: reads.append(1) or original(self))
    found = csv_rows(b"text,label\n" + line.encode() * 5000)
    assert "".join(row.raw for row in found) == line * 5000
    assert len(reads) < 5000 + 8000


def test_empty_lines_are_no_rows():
    assert texts_of(csv_rows(b"\n\ntext,label\n\na,0\n\n\n")) == ["a"]


def test_a_csv_field_of_five_megabytes_is_read():
    assert texts_of(csv_rows(b"text,label\n" + b"w" * 5_000_000 + b",1\n")) == ["w" * 5_000_000]


def test_nul_bytes_in_a_csv_file_are_read():
    assert csv_rows(b"text,label\na\x00b,1\n") == [Row({"text": "a\x00b", "label": "1"})]


def test_a_csv_row_that_is_not_utf8_is_kept_and_named():
    found = csv_rows("text,label\ncafé,0\n".encode("latin-1") + "café,1\n".encode())
    assert [(row.problem, row.values["label"]) for row in found] == [("bad_encoding", "0"), ("", "1")]


def test_a_csv_file_without_rows_gives_none():
    assert csv_rows(b"") == csv_rows(b"text,label\n") == []


def test_a_broken_header_is_refused():
    with pytest.raises(UnreadableError, match=r"^expected a header of column names in its first line$"):
        csv_rows(b'text,"label\n')


def test_the_header_can_be_refused_before_any_row():
    def check(names):
        raise ValueError(names)

    with pytest.raises(ValueError, match="'text', 'label'"):
        list(formats.csv_rows(io.BytesIO(b'text,label\n"never closed'), check))


# JSON


@given(
    st.lists(st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(), st.none(), st.booleans())), max_size=8),
    st.booleans(),
)
def test_every_json_line_that_python_writes_comes_back(rows, ascii_only):
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    assert json_rows(lines.encode()) == [Row(row) for row in rows]


@given(
    st.lists(st.dictionaries(st.sampled_from("ab"), st.one_of(TEXTS, st.integers())), max_size=8),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
    st.sampled_from(["a.json", "A.JSON", "a.json.gz", "a.json.zst"]),
)
def test_a_json_array_comes_back_whatever_the_blocks_it_is_read_in(rows, indent, block, name):
    data = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_CHUNK", block)
        assert json_rows(data, name) == [Row(row) for row in rows]


@pytest.mark.parametrize("line", [b'{"text": broken', b'{"text": "a"', b"[1]", b"5", b"[" * 100_000, b"1" * 5000])
def test_a_line_that_is_no_json_object_is_bad_and_alone(line):
    found = json_rows(b'{"text": "first"}\n' + line + b'\n{"text": "last"}')
    assert found == [Row({"text": "first"}), Row({}, "bad_row", f"{line.decode()}\n"), Row({"text": "last"})]


def test_an_element_that_is_no_object_is_bad_and_alone():
    assert json_rows(b'[{"text": "a"}, 12, {"text": "b"}]', "a.json") == [
        Row({"text": "a"}),
        Row({}, "bad_row", "12"),
        Row({"text": "b"}),
    ]


@pytest.mark.parametrize(
    ("tail", "count"), [('{"text": "b', 1), ("", 1), ('{"text": "b"}', 1), ('{"text" "b"}]', 1), ('{"text": "b"},', 2)]
)
def test_a_json_array_that_breaks_is_refused_and_its_text_is_not_repeated(tail, count):
    with pytest.raises(UnreadableError) as refused:
        json_rows(('[{"text": "a"}, ' + tail).encode(), "a.json")
    expected = "expected one whole JSON array of objects; it breaks off or is broken behind row "
    assert str(refused.value) == f"{expected}{count}"


def test_an_array_is_looked_for_in_json_files_only():
    assert [row.problem for row in json_rows(b'[{"text": "a"}]', "a.jsonl")] == ["bad_row"]


def test_a_json_line_that_is_not_utf8_is_kept_and_named():
    for name, data in (
        ("a.jsonl", b'{"text": "ol\xe9", "label": 1}'),
        ("a.json", b'[{"text": "ol\xe9", "label": 1}]'),
    ):
        (row,) = json_rows(data, name)
        assert (row.problem, row.values["label"]) == ("bad_encoding", 1)


def test_a_byte_order_mark_before_json_is_none_of_it():
    assert (
        json_rows(b'\xef\xbb\xbf{"text": "a"}')
        == json_rows(b'\xef\xbb\xbf[{"text": "a"}]', "a.json")
        == [Row({"text": "a"})]
    )


def test_raw_control_characters_in_json_do_not_lose_the_text():
    assert texts_of(json_rows(b'{"text": "a\x00b\tc"}')) == ["a\x00b\tc"]


def test_a_line_longer_than_any_document_is_bad_and_alone(monkeypatch):
    monkeypatch.setattr(formats, "MAX_ROW", 50)
    found = json_rows(b'{"text": "' + b"w" * 200 + b'"}\n{"text": "last"}\n')
    assert [row.problem for row in found] == ["bad_row", ""]
    for line in (b"w" * 200 + b",0\n", b"w" * 49 + b"\n", b"w" * 50 + b"\n", b"w" * 100 + b"\n"):
        found = csv_rows(b"text,label\n" + line + b"last,1\n")
        assert found == [Row({}, "bad_row", line[:50].decode()), Row({"text": "last", "label": "1"})]


def test_a_line_longer_than_any_document_behind_an_open_quote_is_read_again_once(monkeypatch):
    monkeypatch.setattr(formats, "MAX_ROW", 50)
    found = csv_rows(b'text,label\n"open,0\nnext,0\n' + b"w" * 120 + b",0\nlast,1\n")
    assert found == [
        Row({}, "bad_row", '"open,0\n'),
        Row({"text": "next", "label": "0"}),
        Row({}, "bad_row", "w" * 50),
        Row({"text": "last", "label": "1"}),
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_a_file_is_read_no_further_than_the_rows_that_are_asked_for(kind):
    beginning = {"csv": b"text,label\n", "jsonl": b"", "json": b"["}[kind]
    row = b'"a long text",1\n' if kind == "csv" else b'{"text": "a long text"}' + (b",\n" if kind == "json" else b"\n")
    file = Endless(beginning, row)
    rows = formats.csv_rows(file, lambda names: None) if kind == "csv" else formats.json_rows(file, f"a.{kind}")
    assert [next(rows).values["text"] for _ in range(100)] == ["a long text"] * 100
    assert file.bytes_read <= 4 << 20


# Text files


def test_a_text_file_is_one_row():
    assert formats.text_row(io.BytesIO("a\n\nb é".encode()), label="human") == Row(
        {"text": "a\n\nb é", "label": "human"}
    )


def test_a_text_file_that_is_not_utf8_is_kept_and_named():
    assert formats.text_row(io.BytesIO(b"ol\xe9")) == Row({"text": "ol\ufffd"}, "bad_encoding")


def test_a_text_file_longer_than_any_document_is_bad(monkeypatch):
    monkeypatch.setattr(formats, "MAX_ROW", 5)
    assert formats.text_row(io.BytesIO(b"a" * 5)).problem == ""
    assert formats.text_row(io.BytesIO(b"a" * 6)).problem == "bad_row"


# Parquet


def open_parquet(table, path, **options):
    pq.write_table(table, path, **options)
    return formats.parquet_file(pafs.LocalFileSystem(), str(path))


def test_a_parquet_file_gives_the_columns_that_are_asked_for(tmp_path):
    file = open_parquet(pa.table({"text": ["a", None], "label": [0, 1], "more": [1, 2]}), tmp_path / "a.parquet")
    assert list(formats.table_rows(formats.parquet_tables(file, ["text", "label"]), ["text", "label"])) == [
        Row({"text": "a", "label": 0}),
        Row({"text": None, "label": 1}),
    ]


def test_long_rows_of_a_parquet_file_are_read_few_at_a_time(tmp_path):
    table = pa.table({"text": [f"{i:03d}" + "w" * 3_000_000 for i in range(30)]})
    batches = list(formats.parquet_tables(open_parquet(table, tmp_path / "a.parquet", use_dictionary=False), ["text"]))
    assert sum(map(len, batches)) == 30
    assert max(map(len, batches)) <= 6


def test_a_parquet_text_that_is_not_utf8_is_kept_and_named(tmp_path):
    data = b"good" + b"ol\xe9"
    offsets = pa.array([0, 4, 7], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(data)])
    file = open_parquet(pa.table({"text": broken, "label": [0, 1]}), tmp_path / "a.parquet")
    found = list(formats.table_rows(formats.parquet_tables(file, ["text", "label"]), ["text", "label"]))
    assert [(row.problem, row.values["label"]) for row in found] == [("", 0), ("bad_encoding", 1)]
    assert found[0].values["text"] == "good"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_a_type_that_holds_texts_is_one(kind):
    assert formats.is_text(kind)


@pytest.mark.parametrize("kind", [pa.int64(), pa.binary(), pa.null(), pa.list_(pa.string())])
def test_a_type_that_holds_something_else_is_none(kind):
    assert not formats.is_text(kind)


def test_rows_that_were_read_are_not_kept():
    file = Endless(b"", b'{"text": "' + b"w" * 2000 + b'"}\n')
    rows = formats.json_rows(file, "a.jsonl")
    tracemalloc.start()
    for _ in range(10_000):
        next(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.bytes_read > 20_000_000
    assert peak < 12 << 20
