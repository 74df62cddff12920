import hashlib
import json

import pyarrow as pa
import pytest

from detect_ai.config import SourceConfig
from detect_ai.corpus import read
from detect_ai.corpus.read import source_digest, source_files
from detect_ai.errors import CorpusError
from detect_ai.storage import Storage

SOURCE = SourceConfig(kind="csv", path="/data/essays.csv")
ABSOLUTE = (
    "Under `ray job submit` a relative path is one of the working directory: "
    "give an absolute path or a gs:// URI that every node can read"
)
LABELS = "expected 0 (human) or 1 (ai) in every row"


def refusal(call, *arguments):
    with pytest.raises(CorpusError) as refused:
        call(*arguments)
    return str(refused.value)


def standard(columns, **names):
    return read._standardise(pa.table(columns), SourceConfig(**{"path": "/data/essays.csv", **names})).to_pydict()


# Labels


@pytest.mark.parametrize(
    "values",
    [[0, 1, 1], ["0", "1", "1"], [0.0, 1.0, 1.0], [False, True, True]],
    ids=["ints", "texts", "floats", "bools"],
)
def test_a_label_is_0_or_1_however_it_is_written(values):
    labels = read._labels(pa.table({"label": values}), SOURCE)
    assert (labels.type, labels.to_pylist()) == (pa.int8(), [0, 1, 1])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0, 2], "'2'"),
        ([0, -1], "'-1'"),
        ([0.0, 0.5], "'0.5'"),
        ([0.0, float("nan")], "'nan'"),
        (["0", "ai"], "'ai'"),
        (["0", ""], "''"),
        (["0", "1.0"], "'1.0'"),
        ([1, None], "'None'"),
        ([[0], [1]], "'[0]'"),
        (["0", "x" * 20], repr("x" * 20)),
        (["0", "x" * 21], "a value of 21 characters"),
    ],
)
def test_any_other_label_is_refused_with_the_first_one_found(values, found):
    table = pa.table({"label": values})
    assert refusal(read._labels, table, SOURCE) == f"source /data/essays.csv: column 'label' holds {found}; {LABELS}"


def test_the_label_column_is_the_one_that_the_source_names():
    source = SourceConfig(path="x.csv", label="generated")
    assert read._labels(pa.table({"label": [5], "generated": [1]}), source).to_pylist() == [1]
    assert refusal(read._labels, pa.table({"label": [1], "generated": [5]}), source) == (
        f"source x.csv: column 'generated' holds '5'; {LABELS}"
    )


# Columns


def test_the_columns_of_a_source_become_ours():
    found = standard(
        {"body": ["a"], "ai": [1], "key": [7], "prompt": ["p"], "topic": ["news"], "model": ["m"], "other": ["x"]},
        text="body", label="ai", id="key", group="prompt", domain="topic", generator="model", name="essays",
    )  # fmt: skip
    assert found == {
        "id": ["7"],
        "text": ["a"],
        "source": ["essays"],
        "domain": ["news"],
        "generator": ["m"],
        "group": ["p"],
        "label": [1],
    }


def test_what_a_source_does_not_have_is_filled_in():
    found = standard({"text": ["a", "b"], "label": [0, 1]})
    ids = [f"essays-{hashlib.sha256(text.encode()).hexdigest()[:16]}" for text in "ab"]
    assert found == {
        "id": ids,
        "text": ["a", "b"],
        "source": ["essays"] * 2,
        "domain": ["", ""],
        "generator": ["", ""],
        "group": ids,
        "label": [0, 1],
    }


def test_an_id_made_from_a_text_does_not_hang_on_its_place():
    first = standard({"text": ["a", "b", "c"], "label": [0, 0, 1]})["id"]
    assert standard({"text": ["c", "a"], "label": [1, 0]})["id"] == [first[2], first[0]]


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_a_row_without_group_is_a_group_of_its_own(nothing):
    found = standard({"text": ["a", "b", "c"], "label": [0, 1, 0], "g": ["x", nothing, nothing]}, group="g")
    assert found["group"] == ["x", found["id"][1], found["id"][2]]
    assert len(set(found["group"])) == 3


def test_a_row_without_id_gets_one_from_its_text():
    found = standard({"text": ["a", "b"], "label": [0, 1], "key": ["k", None]}, id="key")
    assert found["id"] == ["k", f"essays-{hashlib.sha256(b'b').hexdigest()[:16]}"]


def test_a_row_without_domain_or_generator_has_an_empty_one():
    found = standard({"text": ["a"], "label": [0], "d": pa.array([None], pa.string())}, domain="d", generator="d")
    assert (found["domain"], found["generator"]) == ([""], [""])


@pytest.mark.parametrize("text", [None, "lone \ud83d surrogate"])
def test_a_text_that_is_odd_still_has_an_id(text):
    if text is None:
        assert standard({"text": pa.array([None], pa.string()), "label": [0]})["text"] == [None]
    else:
        with pytest.raises(UnicodeEncodeError):
            pa.table({"text": [text]})  # Arrow holds no such text, so none reaches us


def test_missing_columns_are_named_with_those_that_there_are():
    source = SourceConfig(path="x.csv", text="body", group="prompt")
    assert refusal(read._check_columns, source, ["text", "label"]) == (
        "source x.csv: no column 'body', 'prompt'; found 'text', 'label'. "
        "Map yours with corpus.sources.N.text=…, .label=…"
    )


def test_a_source_without_columns_is_empty():
    assert refusal(read._check_columns, SOURCE, []) == "source /data/essays.csv: empty, expected rows of text and label"


def test_a_source_with_its_columns_passes():
    read._check_columns(SourceConfig(group="g", id="i"), ["label", "text", "g", "i", "more"])


# Files


def source_at(path, kind="csv"):
    return SourceConfig(kind=kind, path=str(path))


def test_a_file_is_a_source_of_one_file(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n")
    assert source_files(source_at(tmp_path / "a.csv"))[1] == [(str(tmp_path / "a.csv"), 11)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("csv", ["a.csv", "in/b.CSV"]), ("jsonl", ["c.json", "in/d.jsonl"]), ("parquet", ["e.parquet"])],
)
def test_a_folder_is_a_source_of_all_its_files_of_the_kind_in_order(tmp_path, kind, expected):
    (tmp_path / "in").mkdir()
    for name in ("in/b.CSV", "a.csv", "c.json", "in/d.jsonl", "e.parquet", "README.md"):
        (tmp_path / name).write_text("x")
    found = [path for path, _ in source_files(source_at(tmp_path, kind))[1]]
    assert found == [str(tmp_path / name) for name in expected]


def test_a_path_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "none.csv"
    assert refusal(source_files, source_at(path)) == f"source {path}: no such file or folder. {ABSOLUTE}"


@pytest.mark.parametrize(("kind", "suffixes"), [("csv", ".csv"), ("jsonl", ".jsonl or .json"), ("parquet", ".parquet")])
def test_a_folder_without_files_of_the_kind_is_refused(tmp_path, kind, suffixes):
    (tmp_path / "a.txt").write_text("x")
    expected = f"source {tmp_path}: no file that ends in {suffixes}. {ABSOLUTE}"
    assert refusal(source_files, source_at(tmp_path, kind)) == expected


def test_empty_files_are_refused(tmp_path):
    (tmp_path / "a.csv").touch()
    expected = f"source {tmp_path / 'a.csv'}: empty, expected rows of text and label"
    assert refusal(source_files, source_at(tmp_path / "a.csv")) == expected


def test_files_in_an_object_store_are_a_source(gcs_root):
    storage = Storage(gcs_root)
    storage.write_bytes("data/a.csv", b"text,label\n")
    uri, _, query = gcs_root.partition("?")
    source = source_at(f"{uri}/data?{query}")
    assert [path for path, _ in source_files(source)[1]] == [storage.path("data/a.csv")]
    assert source_digest(source) == hashlib.sha256(b"text,label\n").hexdigest()


def test_the_digest_of_a_source_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"one")
    (tmp_path / "b.csv").write_bytes(b"two")
    assert source_digest(source_at(tmp_path)) == hashlib.sha256(b"onetwo").hexdigest()
    (tmp_path / "b.csv").write_bytes(b"twO")
    assert source_digest(source_at(tmp_path)) == hashlib.sha256(b"onetwO").hexdigest()


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


def test_the_rows_of_the_sample_have_our_columns(sample):
    assert {frozenset(row) for row in sample} == {frozenset((*read.TEXT_COLUMNS, "label"))}


def test_a_mirror_is_on_the_topic_of_its_story(sample):
    """A shifted pairing would part a story from its mirror, and leak topics over the splits."""
    words = [{word for word in row["text"].lower().split() if len(word) > 6} for row in sample]
    pairs = list(zip(words[::2], words[1::2], strict=True))
    own = sum(len(human & ai) for human, ai in pairs)
    shifted = sum(len(human & pairs[i - 1][1]) for i, (human, _) in enumerate(pairs))
    assert own > 5 * shifted


def test_the_sample_is_read_without_importing_gensim(monkeypatch):
    import sys

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
    folder = read.resources.files("detect_ai") / "data/sample"
    lines = (folder / "ai_mirrors.jsonl").read_text("utf-8").splitlines()
    assert all({"id", "mirror_of", "text"} <= set(json.loads(line)) for line in lines)
    assert "CC0" in (folder / "README.md").read_text("utf-8")
