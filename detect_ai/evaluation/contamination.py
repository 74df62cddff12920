"""What stands beside the figures of a bundle: those of a baseline, and how many of the texts it has learnt from."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Any

import numpy as np

from detect_ai.core.config import Config
from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage
from detect_ai.corpus.dedup import NUM_PERM, Signatures, clusters, signatures, similar_pairs
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation import slices, summary
from detect_ai.evaluation.baseline import Baseline, baseline_of
from detect_ai.metrics import Floats
from detect_ai.text.normalize import normalise

logger = logging.getLogger(__name__)

TEXTS_AT_ONCE = 512


def corpus_of(storage: Storage, spec: DetectorSpec) -> Corpus | None:
    """The corpus that a bundle learnt from; None where this storage has it not."""
    for name in storage.list("corpora"):
        try:
            corpus = Corpus.open(storage, f"corpora/{name}")
        except InputError:  # unfinished, or of another format
            continue
        if corpus.manifest.fingerprint == spec.corpus["fingerprint"]:
            return corpus
    return None


def read_again(
    config: Config, data: str, verdicts: Verdicts, baseline: Baseline | None, sketch: bool
) -> tuple[Floats | None, Signatures | None]:
    """Scores of the baseline and signatures for near duplicates, of each text of the verdicts in their order."""
    if baseline is None and not sketch:
        return None, None
    place = {row: i for i, row in enumerate(verdicts.rows.tolist())}
    found = (text for text in texts_of(data, config.score) if text.row in place)
    scores, sketches = np.empty(len(place)), np.empty((len(place), NUM_PERM), np.uint32)
    while batch := list(islice(found, TEXTS_AT_ONCE)):
        texts = [normalise(text.text).text for text in batch]
        places = [place[text.row] for text in batch]
        if baseline is not None:
            scores[places] = baseline.score(texts)
        if sketch:
            sketches[places] = signatures(texts)
    return scores if baseline is not None else None, sketches if sketch else None


def baseline_for(corpus: Corpus | None, spec: DetectorSpec, seed: int) -> Baseline | None:
    """What the detector must beat, with thresholds by register where it has them; None without its corpus."""
    if corpus is None:
        logger.warning(
            "no baseline: the corpus that %s learnt from is not in this storage, run jobs/evaluate.py where it is",
            spec.version,
        )
        return None
    asked = spec.provenance["config"]["calibration"]["registers"] if spec.registers else {}
    registers = {source: name for name, sources in asked.items() for source in sources}
    return baseline_of(corpus, sorted(spec.calibration.thresholds), seed, registers)


def baseline_figures(
    verdicts: Verdicts, spec: DetectorSpec, baseline: Baseline, scores: Any, rounds: int, seed: int
) -> dict[str, Any]:
    """Figures of the baseline on the same texts; a text is of the register that the detector found."""
    registers = verdicts.columns["compared_with"]
    return summary.report(
        verdicts.labels,
        scores,
        baseline.probabilities(scores, registers),
        {target: baseline.calls(scores, registers, target) for target in spec.calibration.thresholds},
        default_target=spec.default_target_fpr,
        groups=slices.groups_of(verdicts),
        rounds=rounds,
        seed=seed,
    )


def count_contaminated(corpus: Corpus, judged: Signatures, similarity: float) -> int:
    """How many of the texts judged have a near duplicate in what a bundle learnt from this corpus."""
    known = [
        signatures([normalise(text).text for text in table["text"].to_pylist()])
        for split in ("train", "validation", "calibration")
        for table in corpus.tables(split, ["text"])
    ]
    rows = np.concatenate([*known, judged])
    found = clusters(len(rows), similar_pairs(rows, similarity))
    first = len(rows) - len(judged)
    return int(np.isin(found[first:], found[:first]).sum())
