"""Kinds of sources that are no table: folders of texts, data sets of the hub, the sample; and each one's digest."""

import gzip
import hashlib
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import SourceConfig
from detect_ai.corpus import hub, sources
from detect_ai.corpus.sources import pieces, read_piece, source_digest, source_name
from tests.unit.conftest import refusal, rows, some, write

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
    import datasets

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
    return list(sources._sample_rows("lee-mirrors"))


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
    list(sources._sample_rows("x"))
    assert "gensim" not in sys.modules


def test_without_the_package_the_way_to_the_sample_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(lambda: list(sources._sample_rows("x"))) == (
        "source sample: the human half comes with the package gensim: pip install 'detect-ai[sample]'"
    )


def test_the_digest_of_the_sample_changes_with_its_texts(monkeypatch):
    before = source_digest(SourceConfig(kind="sample"))
    stories = sources._lee_stories()
    monkeypatch.setattr(sources, "_lee_stories", lambda: [story.replace("the", "one") for story in stories])
    assert source_digest(SourceConfig(kind="sample")) != before


def test_the_datasheet_lies_beside_the_sample():
    folder = Path(sources.__file__).parents[0] / "sample"
    lines = (folder / "ai_mirrors.jsonl").read_text("utf-8").splitlines()
    assert all({"id", "mirror_of", "text"} <= set(json.loads(line)) for line in lines)
    assert "CC0" in (folder / "README.md").read_text("utf-8")
