"""The stage `audit`: describe a corpus and warn of shortcuts that a detector could learn."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from detect_ai.calibration.conformal import Guarantee, texts_needed
from detect_ai.core.config import SPLITS, CalibrationConfig, Config
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import QUARANTINE, Corpus, Manifest
from detect_ai.corpus.shortcuts import FEATURES, audit_texts
from detect_ai.reports import plots
from detect_ai.reports.render import render

logger = logging.getLogger(__name__)

# The audit reads the leading rows of each split, which are in random order; MAX_CHARACTERS is divided in proportion.
MAX_ROWS = {"train": 10_000, "validation": 3_000, "calibration": 3_500, "test": 3_500}
MAX_CHARACTERS = 100_000_000
LENGTH_BINS = 40
MIN_AUROC = 0.70  # of a feature, for a warning
EASY_AUROC = 0.97  # of the baseline
MAX_SLICE_FPR = 0.15  # FPR in a slice at the threshold where 5% of all human texts are labelled AI
MIN_HUMANS = 50  # in a slice, for that warning
MAX_DROPPED_FRACTION = 0.05  # of the rows read, for one reason


def audit(config: Config, storage: Storage) -> dict[str, Any]:
    """Describe the corpus of this run and audit it for shortcuts; writes a report in HTML and JSON.

    Raises ConfigError if `prepare` has not run yet under this run name, CorpusError if the corpus is missing.
    """
    corpus, parts = Corpus.of_run(storage, config.run), []
    for split, left in MAX_ROWS.items():
        characters = MAX_CHARACTERS * left // sum(MAX_ROWS.values())
        for batch in corpus.tables(split, ["text", "label", "weight", "domain", "generator", "source"]):
            taken = batch.slice(0, left)
            parts.append(taken.to_pandas().assign(split=split))
            left -= len(taken)
            characters -= taken["text"].nbytes
            if left <= 0 or characters <= 0:
                break
    rows = pd.concat(parts, ignore_index=True)
    logger.info("auditing %d of %d texts", len(rows), sum(corpus.num_rows(split) for split in SPLITS))
    measured = audit_texts(rows)
    warnings = [*shortcut_warnings(measured), *count_warnings(corpus.manifest, config.calibration)]
    for warning in warnings:
        logger.warning("%s", warning)
    report = {"warnings": warnings, "audit": measured, **_describe(corpus)}
    page = render("corpus.html.jinja", report=report, lengths=plots.histogram(report["lengths"], "tokens", log="x"))
    key = f"runs/{config.run}/audit"
    storage.write_json(f"{key}/report.json", report)
    storage.write_bytes(f"{key}/report.html", page.encode())
    return {
        "report": f"{key}/report.html",
        "report_json": f"{key}/report.json",
        "corpus": corpus.key,
        "fingerprint": corpus.manifest.fingerprint,
        "texts_audited": len(rows),
        "baseline": measured["baseline"],
        "strongest_features": {row["name"]: row["auroc"] for row in measured["features"][:5]},
        "warnings": warnings,
    }


def shortcut_warnings(measured: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about features that make a corpus too easy, each with a remedy, from the result of `audit_texts`."""
    for feature in measured["features"]:
        if feature["auroc"] >= MIN_AUROC:
            yield (
                f"{feature['name']} alone gives AUROC {feature['auroc']:.2f}, higher in "
                f"{'AI' if feature['higher_in'] == 'ai' else 'human'} texts: {FEATURES[feature['name']][1]}, or the "
                f"detector will learn it"
            )
    if (measured["baseline"]["auroc"] or 0) >= EASY_AUROC:
        yield (
            f"TF-IDF and logistic regression reach AUROC {measured['baseline']['auroc']:.3f}: the classes differ in "
            f"their words. Test on other domains and generators (corpus.holdout)"
        )
    for row in measured["slices"]:
        if row["n_human"] >= MIN_HUMANS and row["fpr"] >= MAX_SLICE_FPR:
            yield (
                f"at an FPR of 5% over all human texts the baseline has {row['fpr']:.0%} on the {row['n_human']} of "
                f"{row['column']} {row['value']!r}: add human texts like these"
            )


def count_warnings(manifest: Manifest, config: CalibrationConfig) -> Iterator[str]:
    """Warnings about sources with one class, too few human texts for a target FPR, and frequent drop reasons."""
    counts = pd.DataFrame(manifest.counts)
    for column in ("source", "domain"):
        labels = counts[counts[column] != ""].groupby(column)["label"].agg(["min", "max"])
        single = labels.loc[labels["min"] == labels["max"], "max"]
        if len(single):
            names = [f"{name} ({'AI' if label else 'human'})" for name, label in single[:5].items()]
            yield (
                f"{len(single)} of {len(labels)} {column}s hold one class only: {', '.join(names)}"
                f"{' …' if len(single) > 5 else ''}. A detector may learn the {column} instead of the class"
            )
    humans = counts[counts["label"] == 0].groupby("split")["rows"].sum()
    purposes: tuple[tuple[str, str, Guarantee], ...] = (
        ("calibration", "set a threshold for", config.guarantee),
        ("test", "measure", "expectation"),
    )
    for split, purpose, guarantee in purposes:
        for target in config.target_fprs:
            needed = texts_needed(target, guarantee)
            if humans[split] < needed:
                yield (
                    f"the {split} split has {humans[split]} human texts; it takes {needed} to {purpose} an FPR of "
                    f"{target:.0%}"
                )
    for reason, rows in manifest.dropped.items():
        if rows > MAX_DROPPED_FRACTION * manifest.rows_read and reason not in ("held_out", "excluded"):  # configured
            yield f"{rows:,} of {manifest.rows_read:,} rows ({rows / manifest.rows_read:.0%}) were dropped: {reason}"


def _describe(corpus: Corpus) -> dict[str, Any]:
    """The contents of a corpus, without its texts and paths, as plain values."""
    manifest, contents = corpus.manifest, {}
    counts = pd.DataFrame(manifest.counts)
    for column in ("split", "source", "domain", "generator", "attack"):
        by_class = counts.pivot_table("rows", column, "label", aggfunc="sum", fill_value=0, sort=False)
        by_class = by_class.reindex(columns=[0, 1], fill_value=0)
        if column != "split":
            by_class = by_class.loc[by_class.sum(axis=1).sort_values(ascending=False, kind="stable").index]
        contents[column] = [{"value": name, "human": int(h), "ai": int(ai)} for name, h, ai in by_class.itertuples()]
    tokens = pa.concat_tables([corpus.read(split, ["label", "num_tokens"]) for split in SPLITS]).to_pandas()
    edges = np.geomspace(max(1, tokens["num_tokens"].min()), tokens["num_tokens"].max() + 1, LENGTH_BINS + 1)
    by_label = [tokens.loc[tokens["label"] == label, "num_tokens"] for label in (0, 1)]
    dropped: list[Any] = []
    if corpus.shards(QUARANTINE):
        reasons = corpus.read(QUARANTINE, ["reason", "source"]).to_pandas().value_counts()
        dropped = reasons.rename("rows").reset_index().to_dict("records")
    names = ("name", "fingerprint", "language", "seed", "normaliser_version", "rows_read", "near_duplicates")
    return {
        "corpus": {
            "key": corpus.key,
            **{name: getattr(manifest, name) for name in (*names, "contamination")},
            "sources": [{name: source[name] for name in ("name", "kind", "licence")} for source in manifest.sources],
        },
        "contents": contents,
        "lengths": {
            "edges": edges.tolist(),
            **{name: np.histogram(by_label[i], edges)[0].tolist() for i, name in enumerate(("human", "ai"))},
            "medians": [float(lengths.median()) for lengths in by_label],
        },
        "dropped": dropped,
    }
