"""Train/test contamination: evaluation texts with a near duplicate in the corpus of the detector."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from detect_ai.core.config import ScoreConfig
from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage
from detect_ai.corpus.dedup import Signatures, near_duplicate_clusters, signatures
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.text.normalize import normalise


def corpus_of(storage: Storage, spec: DetectorSpec) -> Corpus | None:
    """The corpus that a bundle was trained on; None if this storage does not have it."""
    for name in storage.list("corpora"):
        try:
            corpus = Corpus.open(storage, f"corpora/{name}")
        except InputError:  # unfinished
            continue
        if corpus.manifest.fingerprint == spec.corpus["fingerprint"]:
            return corpus
    return None


def count_contaminated(corpus: Corpus, data: str, config: ScoreConfig, verdicts: Verdicts) -> int:
    """Number of evaluated texts with a near duplicate in the training, validation or calibration split of a corpus."""
    rows = set(verdicts.rows.tolist())
    evaluated = _signatures(text.text for text in texts_of(data, config) if text.row in rows)
    known = _signatures(
        text
        for split in ("train", "validation", "calibration")
        for table in corpus.tables(split, ["text"])
        for text in table["text"].to_pylist()
    )
    clusters = near_duplicate_clusters(np.concatenate([known, evaluated]))
    return int(np.isin(clusters[len(known) :], clusters[: len(known)]).sum())


def _signatures(texts: Iterable[str]) -> Signatures:
    return np.concatenate([signatures([normalise(text).text]) for text in texts])
