"""The stage `prepare`: sources to a finished corpus."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detect_ai.core import ray_runtime
from detect_ai.core.config import SPLITS, Config, CorpusConfig, check_names
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.corpus import splits
from detect_ai.corpus.dedup import near_duplicate_clusters
from detect_ai.corpus.manifest import CONTAMINATION, QUARANTINE, Corpus, Manifest, content_fingerprint
from detect_ai.corpus.presets import PRESETS
from detect_ai.corpus.shards import Scan, ShardPlan, plan_shards, scan_sources, write_shards
from detect_ai.corpus.sources import source_digest, source_name
from detect_ai.corpus.splits import Rows
from detect_ai.models.encoder import load_tokenizer
from detect_ai.models.tokenizer import Tokenizer
from detect_ai.text.attacks import ATTACKS
from detect_ai.text.normalize import NORMALISER_VERSION

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
SCRATCH = "scratch"
_SLICES = ["split", "label", "source", "domain", "generator", "attack"]


def prepare(config: Config, storage: Storage) -> dict[str, Any]:
    """Read the sources, clean, split by group, tokenise and write a corpus with its manifest.

    A corpus is named by a hash of its inputs: a second run with the same sources and configuration does nothing.

    Raises:
        CorpusError: the sources are missing, malformed or empty, or a split would lack a class.
    """
    _check(config.corpus)
    config = config.model_copy(update={"corpus": _named(config.corpus)})
    tokenizer = load_tokenizer(config.model)
    digests = [source_digest(source) for source in [*config.corpus.sources, *config.corpus.against]]
    key = f"corpora/{config.corpus.name}-{_input_fingerprint(config, tokenizer.fingerprint, digests)[:12]}"
    if storage.exists(f"{key}/manifest.json"):
        logger.info("corpus %s exists already", key)
        corpus = Corpus.open(storage, key)
        corpus.verify()
        return _result(corpus, fresh=False)
    storage.delete(key)  # what a killed run left behind
    with storage.whole(key):
        manifest = _write_corpus(config, storage, key, tokenizer, digests)
        storage.write_json(f"{key}/manifest.json", asdict(manifest))
    return _result(Corpus.open(storage, key), fresh=True)


def _check(corpus: CorpusConfig) -> None:
    """Refuse sources without a path, and names that the registries of this package do not know."""
    if not corpus.sources:
        raise ConfigError("config: corpus.sources is empty: name at least one, see configs/corpus/csv.yaml")
    for place in ("sources", "against"):
        for i, source in enumerate(getattr(corpus, place)):
            check_names(f"corpus.{place}.{i}.preset", [source.preset], ("", *PRESETS))
            if not source.path and source.kind != "sample":
                raise ConfigError(f"config: corpus.{place}.{i}.path is empty: expected a file or a folder")
    check_names("corpus.augment", corpus.augment, ATTACKS)


def _named(corpus: CorpusConfig) -> CorpusConfig:
    """Every source with the name of its rows. Raises ConfigError if two have the same."""
    sources, against = (
        [source.model_copy(update={"name": source_name(source)}) for source in each]
        for each in (corpus.sources, corpus.against)
    )
    names = [source.name for source in [*sources, *against]]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"corpus.sources: two have the name {repeated[0]!r}: give each a name of its own")
    return corpus.model_copy(update={"sources": sources, "against": against})


def _write_corpus(config: Config, storage: Storage, key: str, tokenizer: Tokenizer, digests: list[str]) -> Manifest:
    corpus = config.corpus
    ray_runtime.connect()
    # One more than the tasks at work: reading continues meanwhile.
    ray_runtime.require_resources(f"prepare (corpus.workers={corpus.workers} + 1)", corpus.workers + 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        scan_sources(corpus, config.seed, storage, f"{key}/{SCRATCH}", Path(folder)) as scan,
    ):
        logger.info("%d rows read", len(scan.index))
        rows = Rows(scan.index, corpus)
        clusters = _decide(rows, scan, config.seed, Path(folder))
        plans = plan_shards(rows, config)
        shards = write_shards(plans, scan.files, tokenizer, corpus.workers, storage.root, key)
    assert sum(shard.rows for shard in shards) == sum(len(plan.row) for plan in plans), "a row was lost"
    contamination = _contamination(rows)
    storage.write_json(f"{key}/{CONTAMINATION}", contamination)
    return Manifest(
        name=corpus.name,
        fingerprint=content_fingerprint(shards, tokenizer.fingerprint, NORMALISER_VERSION),
        sources=[{**s.model_dump(), "sha256": d} for s, d in zip(corpus.sources, digests, strict=False)],
        language=corpus.language,
        seed=config.seed,
        tokenizer=tokenizer.fingerprint,
        normaliser_version=NORMALISER_VERSION,
        rows_read=int((~rows.against).sum()),
        dropped=rows.dropped,
        counts=_counts(rows, plans),
        shards=shards,
        near_duplicates=_cluster_sizes(clusters[rows.stays]),
        contamination={name: len({ours for ours, _ in pairs}) for name, pairs in contamination.items()},
    )


def _decide(rows: Rows, scan: Scan, seed: int, folder: Path) -> Ints:
    """Select, split and weigh the rows. Returns the cluster of near duplicates of each."""
    splits.drop_exact_duplicates(rows)
    clusters = _clusters(rows, scan, folder)
    splits.drop_contaminated(rows, clusters)
    splits.drop_over_limit(rows)
    splits.split_rows(rows, clusters, seed)
    splits.require_both_classes(rows)
    splits.require_unique_ids(rows)
    splits.weigh(rows)
    return clusters


def _clusters(rows: Rows, scan: Scan, folder: Path) -> Ints:
    """Near-duplicate clusters of the rows that stay and of evaluation sets, shape (rows,); other rows are alone."""
    clusters = np.arange(len(rows.reason))
    compared = np.flatnonzero(rows.stays | (rows.against & (rows.reason == "")))
    if not len(compared):
        return clusters
    arrivals = scan.index["arrival"].to_numpy()[compared]
    path = folder / "compared"  # signatures in the order of the index, on disk
    signatures = scan.signatures()
    with path.open("wb") as file:
        for start in range(0, len(arrivals), 65_536):
            file.write(signatures[arrivals[start : start + 65_536]].tobytes())
    ordered = np.memmap(path, np.uint32, "r", shape=(len(arrivals), signatures.shape[1]))
    clusters[compared] = compared[near_duplicate_clusters(ordered)]
    return clusters


def _cluster_sizes(clusters: Ints) -> dict[str, int]:
    sizes = np.unique(clusters, return_counts=True)[1]
    sizes = sizes[sizes > 1]
    return {"clusters": len(sizes), "texts": int(sizes.sum()), "largest": int(sizes.max(initial=0))}


def _contamination(rows: Rows) -> dict[str, list[list[str]]]:
    """For each evaluation set the texts of the corpus that it contains, as pairs of ids: ours, theirs."""
    ids, names = (rows.index[column].astype(str).to_numpy() for column in ("id", "source"))
    pairs: dict[str, list[list[str]]] = {source.name: [] for source in rows.corpus.against}
    for ours, theirs in rows.contaminated.tolist():
        pairs[names[theirs]].append([ids[ours], ids[theirs]])
    return {name: sorted(of_set) for name, of_set in pairs.items()}


def _counts(rows: Rows, plans: list[ShardPlan]) -> list[dict[str, Any]]:
    """Rows of the shards by split, label, source, domain, generator and attack."""
    columns = ["file", "row", *_SLICES[1:]]
    index = rows.index.loc[rows.stays, columns].astype(dict.fromkeys(_SLICES[2:], str)).set_index(["file", "row"])
    parts = []
    for plan in plans:
        if plan.split != QUARANTINE:
            part = index.loc[pd.MultiIndex.from_arrays([plan.file, plan.row])].assign(split=plan.split)
            copy = np.asarray(plan.columns["copy"], dtype=object)
            part["attack"] = np.where(copy == "", part["attack"], copy)
            parts.append(part.groupby(_SLICES).size())
    counts = pd.concat(parts).groupby(level=_SLICES).sum().rename("rows").reset_index()
    order = counts["split"].map(SPLITS.index)
    counts = counts.assign(order=order).sort_values(["order", *_SLICES[1:]]).drop(columns="order")
    records: list[dict[str, Any]] = json.loads(counts.to_json(orient="records"))
    return records


def _input_fingerprint(config: Config, tokenizer: str, digests: list[str]) -> str:
    # The number of workers does not change the result.
    corpus = config.corpus.model_copy(update={"workers": 1}).model_dump()
    inputs = [corpus, config.seed, tokenizer, NORMALISER_VERSION, digests]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _result(corpus: Corpus, fresh: bool) -> dict[str, Any]:
    manifest = corpus.manifest
    return {
        "corpus": corpus.key,
        "fingerprint": manifest.fingerprint,
        "fresh": fresh,
        "rows": {name: corpus.num_rows(name) for name in SPLITS},
        "rows_read": manifest.rows_read,
        "dropped": manifest.dropped,
        "near_duplicates": manifest.near_duplicates,
        "contamination": manifest.contamination,
    }
