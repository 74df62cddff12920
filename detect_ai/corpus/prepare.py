"""The stage `prepare`: build a finished corpus from sources."""

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

from detect_ai.core import ray_runtime
from detect_ai.core.config import SPLITS, Config, CorpusConfig, SourceConfig, check_names
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.corpus import splits
from detect_ai.corpus.cleaning import CLEANING_VERSION
from detect_ai.corpus.dedup import NUM_PERM, Ints, near_duplicate_clusters
from detect_ai.corpus.manifest import QUARANTINE, Corpus, Manifest, content_fingerprint
from detect_ai.corpus.presets import PRESETS
from detect_ai.corpus.shards import Scan, ShardPlan, plan_shards, scan_sources, write_shards
from detect_ai.corpus.sources import source_digest, source_name
from detect_ai.corpus.splits import Rows
from detect_ai.models.encoder import load_tokenizer
from detect_ai.models.tokenizer import Tokenizer
from detect_ai.text.attacks import ATTACKS
from detect_ai.text.normalize import NORMALISER_VERSION

logger = logging.getLogger(__name__)

_SLICES = ["split", "label", "source", "domain", "generator", "attack"]


def prepare(config: Config, storage: Storage) -> dict[str, Any]:
    """Read the sources, clean, split by group, tokenise and write a corpus with its manifest.

    A corpus is named by a hash of its inputs, so a second run with the same sources and configuration does nothing.
    Raises CorpusError if the sources are missing, malformed or empty, or a split would lack a class.
    """
    config = config.model_copy(update={"corpus": _with_names(config.corpus)})
    corpus, tokenizer = config.corpus, load_tokenizer(config.model)
    digests = [source_digest(source) for source in [*corpus.sources, *corpus.against]]
    fixed = corpus.model_copy(update={"workers": 1}).model_dump()  # the number of workers does not change the result
    versions = [tokenizer.fingerprint, CLEANING_VERSION, NORMALISER_VERSION]
    inputs = json.dumps([fixed, config.seed, *versions, digests], sort_keys=True)
    key = f"corpora/{corpus.name}-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"
    fresh = not storage.exists(f"{key}/manifest.json")
    if fresh:
        storage.delete(key)  # left behind by a killed run
        with storage.whole(key):
            manifest = _write_corpus(config, storage, key, tokenizer, digests)
            storage.write_json(f"{key}/manifest.json", asdict(manifest))
    finished = Corpus.open(storage, key)
    if not fresh:
        logger.info("corpus %s exists already", key)
        finished.verify()
    manifest = finished.manifest
    return {
        "corpus": key,
        "fingerprint": manifest.fingerprint,
        "fresh": fresh,
        "rows": {name: finished.num_rows(name) for name in SPLITS},
        "rows_read": manifest.rows_read,
        "dropped": manifest.dropped,
        "near_duplicates": manifest.near_duplicates,
        "contamination": manifest.contamination,
    }


def _with_names(corpus: CorpusConfig) -> CorpusConfig:
    """Check the sources and give each a unique name for its rows. Raises ConfigError."""
    if not corpus.sources:
        raise ConfigError("config: corpus.sources is empty: name at least one, see configs/corpus/csv.yaml")
    check_names("corpus.augment", corpus.augment, ATTACKS)
    names: set[str] = set()
    named: dict[str, list[SourceConfig]] = {"sources": [], "against": []}
    for place in named:
        for i, source in enumerate(getattr(corpus, place)):
            check_names(f"corpus.{place}.{i}.preset", [source.preset], ("", *PRESETS))
            if not source.path and source.kind != "sample":
                raise ConfigError(f"config: corpus.{place}.{i}.path is empty: expected a file or a folder")
            name = source_name(source)
            if name in names:
                raise ConfigError(f"corpus.{place}: two have the name {name!r}: give each a name of its own")
            names.add(name)
            named[place].append(source.model_copy(update={"name": name}))
    return corpus.model_copy(update=named)


def _write_corpus(config: Config, storage: Storage, key: str, tokenizer: Tokenizer, digests: list[str]) -> Manifest:
    corpus = config.corpus
    ray_runtime.connect(storage)
    # One CPU more than the running tasks, because reading continues meanwhile.
    ray_runtime.require_resources(f"prepare (corpus.workers={corpus.workers} + 1)", corpus.workers + 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        scan_sources(corpus, config.seed, storage, f"{key}/scratch", Path(folder)) as scan,
    ):
        logger.info("%d rows read", len(scan.index))
        rows = Rows(scan.index, corpus)
        splits.drop_exact_duplicates(rows)
        clusters = _clusters(rows, scan, Path(folder))
        splits.drop_contaminated(rows, clusters)
        splits.split_rows(rows, clusters, config.seed)
        splits.check_rows(rows)
        if corpus.balance == "weight":
            splits.balance_classes(rows)
        plans = plan_shards(rows, config)
        shards = write_shards(plans, scan.files, tokenizer, corpus.workers, storage.root, key)
    assert sum(shard.rows for shard in shards) == sum(len(plan.rows) for plan in plans), "a row was lost"
    sources = rows.index["source"].astype(str).to_numpy()[rows.duplicate_of[rows.reason == splits.CONTAMINATED]]
    sizes = np.unique(clusters[rows.stays], return_counts=True)[1]
    sizes = sizes[sizes > 1]
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
        counts=_counts(rows.index, plans),
        shards=shards,
        near_duplicates={"clusters": len(sizes), "texts": int(sizes.sum()), "largest": int(sizes.max(initial=0))},
        contamination={source.name: int((sources == source.name).sum()) for source in corpus.against},
    )


def _clusters(rows: Rows, scan: Scan, folder: Path) -> Ints:
    """Near-duplicate clusters of kept and evaluation rows, shape (rows,); every other row is a cluster of its own."""
    clusters = np.arange(len(rows.reason))
    compared = np.flatnonzero(rows.stays | (rows.against & (rows.reason == "")))
    if not len(compared):
        return clusters
    arrivals = scan.index["arrival"].to_numpy()[compared]
    path = folder / "compared"  # signatures in the order of the index, on disk
    with path.open("wb") as file:
        for block in np.array_split(arrivals, 1 + len(arrivals) // 65_536):
            file.write(scan.signatures[block].tobytes())
    ordered = np.memmap(path, np.uint32, "r", shape=(len(arrivals), NUM_PERM))
    clusters[compared] = compared[near_duplicate_clusters(ordered)]
    return clusters


def _counts(index: pd.DataFrame, plans: list[ShardPlan]) -> list[dict[str, Any]]:
    """Rows of the shards by split, label, source, domain, generator and attack."""
    parts = []
    for plan in plans:
        if plan.split != QUARANTINE:
            part = index.loc[plan.rows.index, _SLICES[1:]].astype(dict.fromkeys(_SLICES[2:], str))
            copies = plan.rows["copy"].to_numpy()
            part["attack"] = np.where(copies == "", part["attack"], copies)
            parts.append(part.assign(split=pd.Categorical([plan.split] * len(part), SPLITS)))
    counts = pd.concat(parts).groupby(_SLICES, observed=True).size().rename("rows").reset_index()
    records: list[dict[str, Any]] = json.loads(counts.to_json(orient="records"))
    return records
