"""The stage `prepare`: sources to a finished corpus."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from detect_ai.config import Config
from detect_ai.corpus import clean, split
from detect_ai.corpus.manifest import Corpus, Manifest, Shard, content_fingerprint
from detect_ai.corpus.read import read_source, readable, source_digest
from detect_ai.corpus.tokenise import tokenise, write_shard
from detect_ai.errors import CorpusError
from detect_ai.model import load_tokenizer
from detect_ai.storage import Storage
from detect_ai.text import NORMALISER_VERSION

if TYPE_CHECKING:
    from ray.data import Dataset

logger = logging.getLogger(__name__)


def prepare(config: Config, storage: Storage) -> dict[str, Any]:
    """Read the sources, clean, split by group, tokenise and write a corpus with its manifest.

    A corpus is named by what it is made of: the same sources and configuration find it finished and do nothing.

    Raises:
        CorpusError: the sources are missing, malformed or empty, or a split would lack a class.
    """
    tokenizer = load_tokenizer(config.model).fingerprint
    digests = [source_digest(source) for source in config.corpus.sources]
    key = f"corpora/{config.corpus.name}-{_input_fingerprint(config, tokenizer, digests)[:12]}"
    if storage.exists(f"{key}/manifest.json"):
        logger.info("corpus %s is finished already: nothing to do", key)
        corpus = Corpus.open(storage, key)
        corpus.verify()
        return _result(corpus, fresh=False)
    storage.delete(key)  # what a killed run left behind
    try:
        manifest = _make(config, storage, key, tokenizer, digests)
    except BaseException:
        storage.delete(key)
        raise
    storage.write_json(f"{key}/manifest.json", asdict(manifest))
    return _result(Corpus.open(storage, key), fresh=True)


def _make(config: Config, storage: Storage, key: str, tokenizer: str, digests: list[str]) -> Manifest:
    from detect_ai.cluster import connect

    connect()
    corpus = config.corpus
    rows = _read_all(config)
    index = _index(rows)
    kept = clean.keep(index)
    index = index[kept.mask].reset_index(drop=True)
    if index.empty:
        raise CorpusError(
            f"the sources hold no rows: expected texts with labels; read {len(kept.mask)}, {kept.dropped}"
        )
    index["split"] = split.assign_splits(index["group"], corpus.split, config.seed)
    split.require_both_classes(index["label"], index["split"], corpus.split)
    placed = _place(index, corpus.shard_rows, config.seed)
    shards = _write_shards(rows, placed, config, storage.root, key)
    counts = index.groupby(["split", "label", "domain", "generator"]).size().rename("rows").reset_index()
    return Manifest(
        name=corpus.name,
        fingerprint=content_fingerprint(shards, tokenizer, NORMALISER_VERSION),
        sources=[{**asdict(s), "sha256": d} for s, d in zip(corpus.sources, digests, strict=True)],
        language=corpus.language,
        seed=config.seed,
        tokenizer=tokenizer,
        normaliser_version=NORMALISER_VERSION,
        rows_read=len(kept.mask),
        dropped=kept.dropped,
        counts=json.loads(counts.to_json(orient="records")),
        shards=shards,
    )


def _read_all(config: Config) -> Dataset:
    """The rows of all sources, normalised. Each is read by itself, so that an error names the source it is in."""
    read: list[Dataset] = []
    for source in config.corpus.sources:
        with readable(source):
            rows = read_source(source).map_batches(clean.add_normalised, batch_format="pyarrow")
            read.append(rows.materialize())
    first, *others = read
    return first.union(*others) if others else first


def _index(rows: Dataset) -> pd.DataFrame:
    """What the decisions over all rows need, in the order of the rows."""
    columns = ["id", "digest", "label", "group", "domain", "generator", "empty"]

    def small(table: pa.Table) -> pa.Table:
        empty = pc.equal(pc.utf8_length(table["normalised"]), 0)
        return table.append_column("empty", empty).select(columns)

    found = rows.map_batches(small, batch_format="pyarrow").to_pandas()
    return found if len(found) else pd.DataFrame({name: [] for name in columns}).astype({"empty": bool})


def _place(index: pd.DataFrame, shard_rows: int, seed: int) -> pd.DataFrame:
    """Give every kept text its place: shuffled within its split, so that reading in order is already random."""
    keys = index["id"].map(lambda name: split.shuffle_key(seed, name))
    placed = index.assign(key=keys).sort_values(["split", "key"], kind="stable")
    placed["position"] = placed.groupby("split").cumcount()
    placed["shard"] = placed["position"] // shard_rows
    return placed[["id", "digest", "split", "shard", "position"]]


def _write_shards(rows: Dataset, placed: pd.DataFrame, config: Config, root: str, key: str) -> list[Shard]:
    table = pa.Table.from_pandas(placed, preserve_index=False)
    language = config.corpus.language

    def join(batch: pa.Table) -> pa.Table:
        batch = batch.append_column("language", pa.array([language] * len(batch), pa.string()))
        return batch.join(table, keys=["id", "digest"], join_type="inner")

    written = (
        rows.map_batches(join, batch_format="pyarrow")
        .map_batches(partial(tokenise, model=config.model), batch_format="pyarrow")
        .groupby(["split", "shard"], num_partitions=min(16, placed.groupby(["split", "shard"]).ngroups))
        .map_groups(partial(write_shard, storage_root=root, key=key), batch_format="pyarrow")
        .take_all()
    )
    shards = sorted((Shard(**row) for row in written), key=lambda shard: (shard.split, shard.name))
    assert sum(shard.rows for shard in shards) == len(placed), "a text was lost between the index and the shards"
    return shards


def _input_fingerprint(config: Config, tokenizer: str, digests: list[str]) -> str:
    made_of = [asdict(config.corpus), config.seed, tokenizer, NORMALISER_VERSION, digests]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _result(corpus: Corpus, fresh: bool) -> dict[str, Any]:
    manifest = corpus.manifest
    rows = {name: corpus.num_rows(name) for name in sorted({shard.split for shard in manifest.shards})}
    return {
        "corpus": corpus.key,
        "fingerprint": manifest.fingerprint,
        "fresh": fresh,
        "rows": rows,
        "rows_read": manifest.rows_read,
        "dropped": manifest.dropped,
    }
