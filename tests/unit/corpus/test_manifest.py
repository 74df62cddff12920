"""Manifest: opening, reading and verifying a corpus."""

import hashlib
import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import FORMAT, Corpus, Manifest, Shard, content_fingerprint
from detect_ai.corpus.shards import SCHEMA, parquet

KEY = "corpora/made-0123"


def write_shard(storage, split, number, labels, first=0):
    """A shard as `prepare` writes it."""
    count = len(labels)
    positions = list(range(first, first + count))
    names = dict.fromkeys(("source", "domain", "generator", "attack"), [""] * count)
    table = pa.table(
        {
            **names,
            "id": [f"{split}-{i}" for i in positions],
            "text": [f"text {i}" for i in positions],
            "label": labels,
            "group": [f"g{i}" for i in positions],
            "language": ["en"] * count,
            "weight": [1.0] * count,
            "input_ids": [[i, i + 1] for i in positions],
            "num_tokens": [2] * count,
            "extra": ["x"] * count,
        }
    )
    data = parquet(table, SCHEMA)
    name = f"{number:05d}.parquet"
    storage.write_bytes(f"{KEY}/{split}/{name}", data)
    return Shard(split, name, count, hashlib.sha256(data).hexdigest())


@pytest.fixture
def corpus(tmp_path):
    storage = Storage(str(tmp_path))
    made = (("test", 0, [1, 1], 0), ("train", 0, [0, 1, 1, 0], 0), ("train", 1, [1], 4))
    shards = [write_shard(storage, *each) for each in made]
    manifest = Manifest(
        name="made",
        fingerprint=content_fingerprint(shards, "t", 1),
        sources=[],
        language="en",
        seed=0,
        tokenizer="t",
        normaliser_version=1,
        rows_read=7,
        dropped={},
        counts=[],
        shards=shards,
        near_duplicates={},
        contamination={},
    )
    storage.write_json(f"{KEY}/manifest.json", asdict(manifest))
    return Corpus.open(storage, KEY)


def refusal(call, *arguments):
    with pytest.raises(CorpusError) as refused:
        call(*arguments)
    return str(refused.value)


# Shards


def test_shard_has_the_contract_columns(corpus):
    table = pq.read_table(corpus.storage.path(f"{KEY}/train/00000.parquet"))
    assert table.schema.equals(SCHEMA)
    assert table["id"].to_pylist() == ["train-0", "train-1", "train-2", "train-3"]
    assert table["input_ids"].to_pylist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


# Opening


def test_open(corpus):
    assert corpus.key == KEY
    assert (corpus.num_rows("train"), corpus.num_rows("test"), corpus.num_rows("none")) == (5, 2, 0)
    assert [shard.name for shard in corpus.shards("train")] == ["00000.parquet", "00001.parquet"]
    assert corpus.shard_key(corpus.shards("test")[0]) == f"{KEY}/test/00000.parquet"


def test_splits_are_read_in_shard_order(corpus):
    assert corpus.read("train", ["id"])["id"].to_pylist() == [f"train-{i}" for i in range(5)]
    labels = corpus.labels("train")
    assert (labels.dtype, labels.tolist()) == (np.int64, [0, 1, 1, 0, 1])


def test_missing_manifest_is_refused(corpus):
    corpus.storage.delete(f"{KEY}/manifest.json")
    assert "manifest.json" in refusal(Corpus.open, corpus.storage, KEY)


@pytest.mark.parametrize("found", [FORMAT + 1, None])
def test_manifest_of_another_format_is_refused(corpus, found):
    path = f"{KEY}/manifest.json"
    corpus.storage.write_json(path, {**json.loads(corpus.storage.read_bytes(path)), "format": found})
    assert f"format {found}, expected {FORMAT}" in refusal(Corpus.open, corpus.storage, KEY)


# Verifying


def test_unaltered_corpus_verifies(corpus):
    corpus.verify()


@pytest.mark.parametrize("shard", ["test/00000.parquet", "train/00001.parquet"])
def test_altered_shard_is_refused(corpus, shard):
    key = f"{KEY}/{shard}"
    expected = next(s.sha256 for s in corpus.manifest.shards if f"{s.split}/{s.name}" == shard)
    data = bytearray(corpus.storage.read_bytes(key))
    data[len(data) // 2] ^= 1
    corpus.storage.write_bytes(key, bytes(data))
    text = refusal(corpus.verify)
    assert text.startswith(f"corpus {KEY}: shard {key} has sha256 ")
    assert text.endswith(f", expected {expected}")


def test_missing_shard_is_refused(corpus):
    corpus.storage.delete(f"{KEY}/train/00001.parquet")
    assert f"{KEY}/train/00001.parquet is missing" in refusal(corpus.verify)


def test_fingerprint_covers_all_content(corpus):
    shards = corpus.manifest.shards
    found = {
        content_fingerprint(shards, "t", 1),
        content_fingerprint([replace(shards[0], sha256="0"), *shards[1:]], "t", 1),
        content_fingerprint([replace(shards[0], split="validation"), *shards[1:]], "t", 1),
        content_fingerprint(shards[:-1], "t", 1),
        content_fingerprint(shards, "u", 1),
        content_fingerprint(shards, "t", 2),
    }
    assert len(found) == 6
    assert content_fingerprint(list(shards), "t", 1) == corpus.manifest.fingerprint
