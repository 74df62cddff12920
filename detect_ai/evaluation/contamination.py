"""Train/test contamination: evaluation texts with a near duplicate in the corpus of the detector."""

from __future__ import annotations

from itertools import islice

import numpy as np

from detect_ai.core.config import Config
from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage
from detect_ai.corpus.dedup import NUM_PERM, Signatures, near_duplicate_clusters, signatures
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.baseline import Baseline
from detect_ai.metrics import Floats
from detect_ai.text.normalize import normalise

TEXTS_AT_ONCE = 512


def corpus_of(storage: Storage, spec: DetectorSpec) -> Corpus | None:
    """The corpus that a bundle was trained on; None if this storage does not have it."""
    for name in storage.list("corpora"):
        try:
            corpus = Corpus.open(storage, f"corpora/{name}")
        except InputError:  # unfinished, or of another format
            continue
        if corpus.manifest.fingerprint == spec.corpus["fingerprint"]:
            return corpus
    return None


def score_baseline_and_hash(
    config: Config, data: str, verdicts: Verdicts, baseline: Baseline | None, with_signatures: bool
) -> tuple[Floats | None, Signatures | None]:
    """Read the texts again: baseline scores and MinHash signatures in the order of the verdicts, None if not needed."""
    if baseline is None and not with_signatures:
        return None, None
    place = {row: i for i, row in enumerate(verdicts.rows.tolist())}
    wanted = (text for text in texts_of(data, config.score) if text.row in place)
    scores, hashed = np.empty(len(place)), np.empty((len(place), NUM_PERM), np.uint32)
    while batch := list(islice(wanted, TEXTS_AT_ONCE)):
        texts = [normalise(text.text).text for text in batch]
        places = [place[text.row] for text in batch]
        if baseline is not None:
            scores[places] = baseline.score(texts)
        if with_signatures:
            hashed[places] = signatures(texts)
    return scores if baseline is not None else None, hashed if with_signatures else None


def count_contaminated(corpus: Corpus, evaluated: Signatures) -> int:
    """Number of texts with a near duplicate in the training, validation or calibration split of a corpus."""
    known = [
        signatures([normalise(text).text for text in table["text"].to_pylist()])
        for split in ("train", "validation", "calibration")
        for table in corpus.tables(split, ["text"])
    ]
    rows = np.concatenate([*known, evaluated])
    cluster = near_duplicate_clusters(rows)
    first = len(rows) - len(evaluated)
    return int(np.isin(cluster[first:], cluster[:first]).sum())
