"""The TF-IDF baseline of an evaluation: trained once for a corpus, cached, calibrated like the detector.

It is calibrated on the calibration split of the same corpus, at the same prevalence. Where the detector has thresholds
by domain, so has the baseline. Both then use the domain that the detector's classifier predicts, in calibration as in
evaluation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai import metrics
from detect_ai.calibration.calibration import Calibration, GroupCalibration, UnknownDomain, calibrate
from detect_ai.calibration.domains import ScoredSpans, calibrate_domains
from detect_ai.core.errors import CalibrationError
from detect_ai.core.storage import Storage
from detect_ai.corpus.baseline import TfidfModel, word_counts
from detect_ai.corpus.manifest import ORIGINAL, Corpus
from detect_ai.detector.bundle import DetectorSpec, load_domain_classifier
from detect_ai.detector.score import predict_domains
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.metrics import Floats
from detect_ai.text.normalize import normalise

logger = logging.getLogger(__name__)

MAX_TEXTS = 50_000  # of training: the leading rows, which are in random order
SCORED_AT_ONCE = 512


@dataclass(frozen=True)
class Baseline:
    """A TF-IDF model with its calibration."""

    model: TfidfModel
    calibration: Calibration

    def score(self, texts: Iterable[str]) -> Floats:
        """Log-odds of AI of normalised texts, shape (texts,)."""
        return _score(self.model, texts)

    def predictions(self, scores: Floats, domains: NDArray[np.str_], target: float) -> NDArray[np.int64]:
        """0 human, 1 ai, -1 uncertain at a target for texts of these domains ("": unknown), shape (texts,)."""
        predicted = np.empty(len(scores), np.int64)
        for mask, group in self._groups(domains):
            predicted[mask] = metrics.predictions_at(scores[mask], *group.bounds(target))
        return predicted

    def probabilities(self, scores: Floats, domains: NDArray[np.str_]) -> Floats:
        """P(AI) of texts of these domains, shape (texts,)."""
        p = np.empty(len(scores))
        for mask, group in self._groups(domains):
            p[mask] = group.probability(scores[mask])
        return p

    def _groups(
        self, domains: NDArray[np.str_]
    ) -> Iterator[tuple[NDArray[np.bool_], GroupCalibration | UnknownDomain]]:
        """The texts of each domain, as a mask, and their calibration."""
        for domain in np.unique(domains).tolist():
            yield domains == domain, self.calibration.select_group(domain)


def baseline_for(corpus: Corpus | None, bundle: tuple[Storage, str], spec: DetectorSpec, seed: int) -> Baseline | None:
    """The baseline of a bundle's corpus, with thresholds for its targets; None if the corpus is not in this storage."""
    if corpus is None:
        logger.warning(
            "no baseline: the corpus that %s was trained on is not in this storage, run jobs/evaluate.py where it is",
            spec.version,
        )
        return None
    with bundle[0].local_folder(bundle[1]) as folder:
        classifier = load_domain_classifier(folder, spec)
    domains = predict_domains(corpus, "calibration", classifier) if classifier else None
    return fit_baseline(corpus, sorted(spec.calibration.thresholds), spec.calibration.prevalence, domains, seed)


def baseline_metrics(verdicts: Verdicts, spec: DetectorSpec, baseline: Baseline, scores: Floats) -> dict[str, Any]:
    """Metrics of the baseline on the same texts, each with the domain that the detector predicted."""
    domains = verdicts.columns["compared_with"]
    return compute_metrics(
        verdicts.labels,
        scores,
        baseline.probabilities(scores, domains),
        {target: baseline.predictions(scores, domains, target) for target in spec.calibration.thresholds},
        default_target=spec.default_target_fpr,
        prevalence=spec.calibration.prevalence,
        groups=verdicts.columns["group"],
    )


def fit_baseline(
    corpus: Corpus,
    targets: Sequence[float],
    prevalence: float = 0.5,
    domains: NDArray[np.str_] | None = None,
    seed: int = 0,
) -> Baseline:
    """Fit and calibrate the baseline of a corpus; the model is read from storage if it has been fitted before.

    Args:
        corpus: the model is fitted on its training split and calibrated on its calibration split.
        targets: FPRs.
        prevalence: of AI texts, that the probabilities assume.
        domains: predicted for each text of the calibration split ("": unknown); None: one threshold for all texts.
        seed: of the regression.
    """
    storage, key = corpus.storage, f"baselines/{corpus.manifest.fingerprint[:16]}-2"
    if storage.exists(f"{key}.json"):
        from safetensors.numpy import load

        tensors = load(storage.read_bytes(f"{key}.safetensors"))
        model = TfidfModel(tensors["idf"], tensors["weights"], storage.read_json(f"{key}.json")["bias"])
    else:
        from safetensors.numpy import save

        logger.info("fitting the TF-IDF baseline of %s", corpus.key)
        model = _fit(corpus, seed)
        storage.write_bytes(f"{key}.safetensors", save({"idf": model.idf, "weights": model.weights}))
        storage.write_bytes(f"{key}.json", json.dumps({"bias": model.bias, "corpus": corpus.key}).encode())
    rows = list(_originals(corpus, "calibration", corpus.num_rows("calibration")))
    labels, scores = np.asarray([row["label"] for row in rows]), _score(model, (row["text"] for row in rows))
    calibration = calibrate(labels, scores, targets, prevalence=prevalence)
    if domains is not None:
        num_tokens, documents = np.zeros(len(labels), np.int64), np.arange(len(labels))
        whole = ScoredSpans(labels, scores, num_tokens, domains, documents, np.ones(len(labels), np.bool_))
        try:
            calibration = calibrate_domains(calibration, whole)
        except CalibrationError as error:
            logger.warning("the baseline has one threshold for all domains: %s", error)
    return Baseline(model, calibration)


def _fit(corpus: Corpus, seed: int) -> TfidfModel:
    from scipy.sparse import vstack

    rows = list(_originals(corpus, "train", MAX_TEXTS))
    counts = vstack([word_counts(batch) for batch in _batches(row["text"] for row in rows)]).tocsr()
    labels, weights = (np.asarray([row[name] for row in rows]) for name in ("label", "weight"))
    return TfidfModel.fit(counts, labels, weights, seed)


def _score(model: TfidfModel, texts: Iterable[str]) -> Floats:
    scores = [model.score(word_counts(batch)) for batch in _batches(texts)]
    return np.concatenate(scores) if scores else np.empty(0)


def _originals(corpus: Corpus, split: str, most: int) -> Iterator[dict[str, Any]]:
    """The leading rows without attacked copies, their texts normalised."""
    tables = corpus.tables(split, ["text", "label", "weight", "attack"])
    rows = (row for table in tables for row in table.to_pylist() if row["attack"] == ORIGINAL)
    for row in islice(rows, most):
        yield {**row, "text": normalise(row["text"]).text}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, SCORED_AT_ONCE)):
        yield batch
