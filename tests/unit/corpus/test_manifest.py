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
from detect_ai.corpus.shards import parquet
from detect_ai.corpus.tokenise import BATCH_ROWS, SCHEMA, tokenise
from detect_ai.models.encoder import load_tokenizer
from detect_ai.text.normalize import normalise
from tests.fixtures import tiny_models

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


def test_a_shard_has_the_columns_of_the_contract_and_no_other(corpus):
    table = pq.read_table(corpus.storage.path(f"{KEY}/train/00000.parquet"))
    assert table.schema.equals(SCHEMA)
    assert table["id"].to_pylist() == ["train-0", "train-1", "train-2", "train-3"]
    assert table["input_ids"].to_pylist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_token_ids_are_those_of_the_whole_normalised_text(encoder, tmp_path):
    tokenizer = load_tokenizer(tiny_models.config(encoder, tmp_path).model)
    texts = [str(row["text"]) for row in tiny_models.rows(BATCH_ROWS)] + ["the “council”\u200b " * 200]
    normalised = [normalise(text).text for text in texts]
    table = tokenise(pa.table({"text": texts, "normalised": normalised}), tokenizer)
    expected = [ids.tolist() for ids in tokenizer.encode(normalised)]
    assert table["input_ids"].to_pylist() == expected
    assert table["num_tokens"].to_pylist() == list(map(len, expected))
    assert table["input_ids"].type == pa.list_(pa.int32())
    assert max(map(len, expected)) >= 600


# Opening


def test_a_finished_corpus_opens_as_it_was_described(corpus):
    assert corpus.key == KEY
    assert (corpus.num_rows("train"), corpus.num_rows("test"), corpus.num_rows("none")) == (5, 2, 0)
    assert [shard.name for shard in corpus.shards("train")] == ["00000.parquet", "00001.parquet"]
    assert corpus.shard_key(corpus.shards("test")[0]) == f"{KEY}/test/00000.parquet"


def test_a_split_is_read_in_the_order_of_its_shards(corpus):
    assert corpus.read("train", ["id"])["id"].to_pylist() == [f"train-{i}" for i in range(5)]
    labels = corpus.labels("train")
    assert (labels.dtype, labels.tolist()) == (np.int64, [0, 1, 1, 0, 1])


def test_a_folder_without_manifest_is_no_corpus(corpus):
    corpus.storage.delete(f"{KEY}/manifest.json")
    assert refusal(Corpus.open, corpus.storage, KEY) == (
        f"corpus {KEY} under {corpus.storage.root}: no manifest.json, so it is no finished corpus: run jobs/prepare.py"
    )


@pytest.mark.parametrize("found", [FORMAT + 1, None])
def test_a_manifest_of_another_format_is_refused(corpus, found):
    path = f"{KEY}/manifest.json"
    corpus.storage.write_json(path, {**json.loads(corpus.storage.read_bytes(path)), "format": found})
    assert refusal(Corpus.open, corpus.storage, KEY) == (
        f"corpus {KEY} under {corpus.storage.root}: manifest format {found}, expected {FORMAT}: prepare it again"
    )


# Verifying


def test_a_corpus_that_nobody_touched_passes(corpus):
    corpus.verify()


@pytest.mark.parametrize("shard", ["test/00000.parquet", "train/00001.parquet"])
def test_an_altered_shard_is_found_with_the_checksums(corpus, shard):
    key = f"{KEY}/{shard}"
    expected = next(s.sha256 for s in corpus.manifest.shards if f"{s.split}/{s.name}" == shard)
    data = bytearray(corpus.storage.read_bytes(key))
    data[len(data) // 2] ^= 1
    corpus.storage.write_bytes(key, bytes(data))
    text = refusal(corpus.verify)
    assert text.startswith(f"corpus {KEY}: shard {key} has sha256 ")
    assert text.endswith(f", expected {expected}")


def test_a_missing_shard_is_found(corpus):
    corpus.storage.delete(f"{KEY}/train/00001.parquet")
    assert refusal(corpus.verify) == (f"corpus {KEY}: shard {KEY}/train/00001.parquet is missing: prepare it again")


def test_the_fingerprint_changes_with_every_shard_the_tokenizer_and_the_normaliser(corpus):
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
