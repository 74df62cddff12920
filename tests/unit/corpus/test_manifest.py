"""Manifest: opening, reading and verifying a corpus."""

from dataclasses import replace

import numpy as np
import pytest

from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import FORMAT, Corpus, content_fingerprint
from tests.fixtures.corpora import row, write_corpus

KEY = "corpora/made-0123"


@pytest.fixture
def corpus(tmp_path):
    rows = {"test": [row(i, 1, "Two words.") for i in range(2)], "train": [row(i, i % 2, "A text.") for i in range(5)]}
    return write_corpus(Storage(str(tmp_path)), KEY, rows, shard_rows=4)


def test_splits_are_read_in_shard_order(corpus):
    assert corpus.key == KEY
    assert (corpus.num_rows("train"), corpus.num_rows("test"), corpus.num_rows("none")) == (5, 2, 0)
    assert [shard.name for shard in corpus.shards("train")] == ["00000.parquet", "00001.parquet"]
    assert corpus.shard_key(corpus.shards("test")[0]) == f"{KEY}/test/00000.parquet"
    assert corpus.read("train", ["id"])["id"].to_pylist() == [f"r{i}" for i in range(5)]
    assert [table["id"].to_pylist() for table in corpus.tables("train", ["id"])] == [["r0", "r1", "r2", "r3"], ["r4"]]
    labels = corpus.labels("train")
    assert (labels.dtype, labels.tolist()) == (np.int64, [0, 1, 0, 1, 0])


def test_a_source_stands_for_a_missing_domain(tmp_path):
    rows = [row(0, 0, "A text."), row(1, 1, "A text.", domain="")]
    corpus = write_corpus(Storage(str(tmp_path)), KEY, {"test": rows})
    assert corpus.domains("test").tolist() == ["news", "mine"]


def test_missing_manifest_or_another_format_is_refused(corpus):
    path = f"{KEY}/manifest.json"
    corpus.storage.write_json(path, corpus.storage.read_json(path) | {"format": FORMAT + 1})
    with pytest.raises(CorpusError, match=f"format {FORMAT + 1}, expected {FORMAT}"):
        Corpus.open(corpus.storage, KEY)
    corpus.storage.delete(path)
    with pytest.raises(CorpusError, match=r"manifest\.json"):
        Corpus.open(corpus.storage, KEY)


@pytest.mark.parametrize("shard", ["test/00000.parquet", "train/00001.parquet"])
def test_altered_or_missing_shard_is_refused(corpus, shard):
    corpus.verify()
    data = bytearray(corpus.storage.read_bytes(f"{KEY}/{shard}"))
    data[len(data) // 2] ^= 1
    corpus.storage.write_bytes(f"{KEY}/{shard}", bytes(data))
    with pytest.raises(CorpusError, match=f"shard {KEY}/{shard} has sha256 .*, expected "):
        corpus.verify()
    corpus.storage.delete(f"{KEY}/{shard}")
    with pytest.raises(CorpusError, match=f"{shard} is missing"):
        corpus.verify()


def test_fingerprint_covers_all_content(corpus):
    shards = corpus.manifest.shards
    fingerprints = {
        content_fingerprint(shards, "t", 1),
        content_fingerprint([replace(shards[0], sha256="0"), *shards[1:]], "t", 1),
        content_fingerprint([replace(shards[0], split="validation"), *shards[1:]], "t", 1),
        content_fingerprint(shards[:-1], "t", 1),
        content_fingerprint(shards, "u", 1),
        content_fingerprint(shards, "t", 2),
    }
    assert len(fingerprints) == 6
    assert content_fingerprint(list(shards), "t", 1) == corpus.manifest.fingerprint
