"""The stage `audit`: describe a corpus and find shortcuts that a detector could learn."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai.core.config import SPLITS, Config
from detect_ai.core.storage import Storage
from detect_ai.corpus.findings import Finding, corpus_findings
from detect_ai.corpus.manifest import QUARANTINE, Corpus
from detect_ai.corpus.shortcuts import Audit, audit_texts

logger = logging.getLogger(__name__)

# What the audit reads of each split: the leading rows, which are in random order. Characters in proportion.
MAX_ROWS = {"train": 10_000, "validation": 3_000, "calibration": 3_500, "test": 3_500}
MAX_CHARACTERS = 100_000_000
LENGTH_BINS = 40
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LABELS = ("human", "ai")
_SLICES = ("group", "domain", "generator", "source")


def audit(config: Config, storage: Storage) -> dict[str, Any]:
    """Describe the corpus of this run and audit it for shortcuts; writes a report in HTML and JSON.

    Raises:
        ConfigError: `prepare` has not run yet under this run name.
        CorpusError: the corpus is missing, or lacks a class.
    """
    corpus = Corpus.of_run(storage, config.run)
    result = audit_corpus(corpus)
    manifest = corpus.manifest
    findings = corpus_findings(result, manifest.counts, manifest.dropped, manifest.rows_read)
    for finding in findings:
        logger.warning("%s: %s", finding.about, finding.text)
    report = describe(corpus, result, findings)
    keys = _write(storage, f"runs/{config.run}/audit", report)
    return {
        **keys,
        "corpus": corpus.key,
        "fingerprint": manifest.fingerprint,
        "texts_audited": result.n_human + result.n_ai,
        "baseline": asdict(result.baseline),
        "strongest_features": {f.name: f.auroc for f in result.features[:5]},
        "warnings": [finding.text for finding in findings],
    }


def audit_corpus(corpus: Corpus) -> Audit:
    """Audit the leading rows of each split."""
    rows = pa.concat_tables(_leading_rows(corpus))
    logger.info("auditing %d of %d texts", len(rows), sum(corpus.num_rows(split) for split in SPLITS))
    slices = {name: rows[name].to_pylist() for name in ("split", *_SLICES)}
    return audit_texts(rows["text"].to_pylist(), rows["label"].to_numpy(), slices, rows["weight"].to_numpy())


def describe(corpus: Corpus, result: Audit, findings: list[Finding]) -> dict[str, Any]:
    """The content of the report, as plain values.

    Keys: `corpus` (what it is), `findings`, `counts` (rows of the whole corpus by split, label, source, domain,
    generator and attack), `lengths` (tokens, by class), `quarantine` (rows by reason and source), `audit`.
    """
    manifest = corpus.manifest
    return {
        "corpus": {
            "name": manifest.name,
            "key": corpus.key,
            "fingerprint": manifest.fingerprint,
            "language": manifest.language,
            "seed": manifest.seed,
            "normaliser_version": manifest.normaliser_version,
            "sources": [
                {name: source.get(name, "") for name in ("name", "kind", "licence")} for source in manifest.sources
            ],
            "rows_read": manifest.rows_read,
            "rows": {split: corpus.num_rows(split) for split in SPLITS},
            "dropped": dict(sorted(manifest.dropped.items(), key=lambda item: -item[1])),
            "near_duplicates": manifest.near_duplicates,
            "contamination": manifest.contamination,
        },
        "findings": [asdict(finding) for finding in findings],
        "counts": manifest.counts,
        "lengths": _lengths(corpus),
        "quarantine": _quarantine(corpus),
        "audit": asdict(result),
    }


def _leading_rows(corpus: Corpus) -> Iterator[pa.Table]:
    for split, rows in MAX_ROWS.items():
        characters = MAX_CHARACTERS * rows // sum(MAX_ROWS.values())
        for batch in corpus.tables(split, ["text", "label", "weight", *_SLICES]):
            taken = batch.slice(0, rows)
            yield taken.append_column("split", pa.array([split] * len(taken), pa.string()))
            rows -= len(taken)
            characters -= taken["text"].nbytes
            if rows <= 0 or characters <= 0:
                break


def _lengths(corpus: Corpus) -> dict[str, Any]:
    """Tokens of the texts by class: edges of the bins (logarithmic), counts and quantiles."""
    tables = [corpus.read(split, ["label", "num_tokens"]) for split in SPLITS]
    labels, tokens = (np.concatenate([table[name].to_numpy() for table in tables]) for name in ("label", "num_tokens"))
    tokens = np.maximum(tokens, 1)
    edges = np.geomspace(tokens.min(), tokens.max() + 1, LENGTH_BINS + 1)
    by_class = {name: _distribution(tokens[labels == label], edges) for label, name in enumerate(LABELS)}
    return {"edges": edges.tolist(), **by_class}


def _distribution(tokens: NDArray[np.int32], edges: NDArray[np.float64]) -> dict[str, Any]:
    quantiles = np.quantile(tokens, QUANTILES)
    return {
        "counts": np.histogram(tokens, edges)[0].tolist(),
        "mean": float(tokens.mean()),
        **{f"p{100 * q:g}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
    }


def _quarantine(corpus: Corpus) -> list[dict[str, Any]]:
    """Rows of the quarantine by reason and source."""
    counts: Counter[tuple[str, str]] = Counter()
    for batch in corpus.tables(QUARANTINE, ["reason", "source"]):
        counts.update(zip(batch["reason"].to_pylist(), batch["source"].to_pylist(), strict=True))
    return [{"reason": reason, "source": source, "rows": rows} for (reason, source), rows in counts.most_common()]


def _write(storage: Storage, key: str, report: dict[str, Any]) -> dict[str, str]:
    from detect_ai.reports.corpus import corpus_report

    storage.write_json(f"{key}/report.json", report)
    storage.write_bytes(f"{key}/report.html", corpus_report(report).encode())
    return {"report": f"{key}/report.html", "report_json": f"{key}/report.json"}
