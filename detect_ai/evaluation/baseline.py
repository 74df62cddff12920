"""The least that a detector must beat: TF-IDF of words and logistic regression, learnt from the same training split.

It is learnt once for a corpus, calibrated like a detector on the same calibration split, with thresholds by domain
where the detector has them, and kept in storage.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai import metrics
from detect_ai.calibration.calibration import Calibration, GroupCalibration, UnknownDomain, calibrate
from detect_ai.calibration.domains import ScoredSpans, calibrate_domains
from detect_ai.core.errors import CalibrationError
from detect_ai.core.storage import Storage
from detect_ai.corpus.baseline import HASHED_FEATURES
from detect_ai.corpus.manifest import ORIGINAL, Corpus
from detect_ai.detector.bundle import DetectorSpec, load_domain_classifier
from detect_ai.detector.score import predict_domains
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.text.normalize import normalise

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
MAX_TEXTS = 50_000  # learnt from: the leading rows, which are random ones
SCORED_AT_ONCE = 512


@dataclass(frozen=True)
class Baseline:
    """A bag of words with its calibration.

    Attributes:
        idf: float64, shape (HASHED_FEATURES,).
        weights: float64, shape (HASHED_FEATURES,).
        bias: log-odds of a text without words.
        calibration: on the calibration split of its corpus.
    """

    idf: Floats
    weights: Floats
    bias: float
    calibration: Calibration

    def score(self, texts: Iterable[str]) -> Floats:
        """Log-odds of AI of normalised texts, shape (texts,)."""
        scores = [_scores(batch, self.idf, self.weights, self.bias) for batch in _batches(texts)]
        return np.concatenate(scores) if scores else np.empty(0)

    def calls(self, scores: Floats, domains: NDArray[np.str_], target: float) -> NDArray[np.int64]:
        """0 human, 1 ai, -1 uncertain at a target for texts of these domains ("": unknown), shape (texts,)."""
        made = np.empty(len(scores), np.int64)
        for own, group in self._groups(domains):
            made[own] = metrics.calls_at(scores[own], *group.bounds(target))
        return made

    def probabilities(self, scores: Floats, domains: NDArray[np.str_]) -> Floats:
        """P(AI) of texts of these domains, shape (texts,)."""
        made = np.empty(len(scores))
        for own, group in self._groups(domains):
            made[own] = group.probability(scores[own])
        return made

    def _groups(
        self, domains: NDArray[np.str_]
    ) -> Iterator[tuple[NDArray[np.bool_], GroupCalibration | UnknownDomain]]:
        """The texts of each domain, as a mask, and what they are compared with."""
        for domain in np.unique(domains).tolist():
            yield domains == domain, self.calibration.select_group(domain)


def baseline_for(corpus: Corpus | None, bundle: tuple[Storage, str], spec: DetectorSpec, seed: int) -> Baseline | None:
    """The baseline for a bundle, with thresholds by the same predicted domains; None without its corpus."""
    if corpus is None:
        logger.warning(
            "no baseline: the corpus that %s was trained on is not in this storage, run jobs/evaluate.py where it is",
            spec.version,
        )
        return None
    with bundle[0].local_folder(bundle[1]) as folder:
        classifier = load_domain_classifier(folder, spec)
    domains = predict_domains(corpus, "calibration", classifier) if classifier else None
    return baseline_of(corpus, sorted(spec.calibration.thresholds), seed, domains)


def baseline_metrics(verdicts: Verdicts, spec: DetectorSpec, baseline: Baseline, scores: Floats) -> dict[str, Any]:
    """Metrics of the baseline on the same texts; each text has the domain that the detector predicted."""
    domains = verdicts.columns["compared_with"]
    return compute_metrics(
        verdicts.labels,
        scores,
        baseline.probabilities(scores, domains),
        {target: baseline.calls(scores, domains, target) for target in spec.calibration.thresholds},
        default_target=spec.default_target_fpr,
        prevalence=spec.calibration.prevalence,
        groups=verdicts.columns["group"],
    )


def baseline_of(
    corpus: Corpus, targets: Sequence[float], seed: int = 0, domains: NDArray[np.str_] | None = None
) -> Baseline:
    """The baseline of a corpus, with thresholds for these targets; learnt now unless storage has it.

    Args:
        corpus: it learns from.
        targets: FPRs.
        seed: of the regression.
        domains: predicted domain of every text of the calibration split, where thresholds are by domain.
    """
    key = f"baselines/{corpus.manifest.fingerprint[:16]}-1"
    storage = corpus.storage
    if storage.exists(f"{key}.json"):
        from safetensors.numpy import load

        tensors = load(storage.read_bytes(f"{key}.safetensors"))
        kept = storage.read_json(f"{key}.json")
        calibration = _calibrated(tensors["labels"], tensors["scores"], targets, domains)
        return Baseline(tensors["idf"], tensors["weights"], kept["bias"], calibration)
    logger.info("learning the baseline of %s", corpus.key)
    idf, weights, bias = _learn(corpus, seed)
    rows = list(_rows(corpus, "calibration", corpus.num_rows("calibration")))
    labels = np.asarray([row.label for row in rows])
    scores = np.concatenate([_scores(batch, idf, weights, bias) for batch in _batches(row.text for row in rows)])
    from safetensors.numpy import save

    tensors = {"idf": idf, "weights": weights, "labels": labels, "scores": scores}
    storage.write_bytes(f"{key}.safetensors", save(tensors))
    kept = {"bias": bias, "corpus": corpus.key}
    storage.write_bytes(f"{key}.json", json.dumps(kept).encode())
    return Baseline(idf, weights, bias, _calibrated(labels, scores, targets, domains))


def _calibrated(
    labels: NDArray[np.int64],
    scores: Floats,
    targets: Sequence[float],
    domains: NDArray[np.str_] | None,
) -> Calibration:
    whole = calibrate(labels, scores, targets)
    if domains is None:
        return whole
    lengths, documents = np.zeros(len(labels), np.int64), np.arange(len(labels))
    scored = ScoredSpans(labels, scores, lengths, domains, documents, np.ones(len(labels), np.bool_))
    try:
        return calibrate_domains(whole, scored)
    except CalibrationError as error:
        logger.warning("the baseline has one threshold for all domains: %s", error)
        return whole


@dataclass(frozen=True)
class _Row:
    text: str  # normalised
    label: int
    weight: float


def _learn(corpus: Corpus, seed: int) -> tuple[Floats, Floats, float]:
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    rows = list(_rows(corpus, "train", MAX_TEXTS))
    hashed = vstack([_hashed(batch) for batch in _batches(row.text for row in rows)]).tocsr()
    tfidf = TfidfTransformer(sublinear_tf=True).fit(hashed)
    model = LogisticRegression(C=10.0, solver="liblinear", random_state=seed)
    labels, weights = np.asarray([row.label for row in rows]), np.asarray([row.weight for row in rows])
    model.fit(tfidf.transform(hashed), labels, sample_weight=weights)
    return np.asarray(tfidf.idf_), np.asarray(model.coef_[0]), float(model.intercept_[0])


def _rows(corpus: Corpus, split: str, most: int) -> Iterator[_Row]:
    """The leading originals: copies under attacks are the detector's alone."""
    names = ("text", "label", "weight", "attack")
    for table in corpus.tables(split, list(names)):
        for text, label, weight, attack in zip(*(table[name].to_pylist() for name in names), strict=True):
            if attack != ORIGINAL:
                continue
            if most <= 0:
                return
            most -= 1
            yield _Row(normalise(text).text, label, weight)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == SCORED_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _hashed(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(ngram_range=(1, 2), n_features=HASHED_FEATURES, alternate_sign=False, norm=None)
    return words.transform(texts)


def _scores(texts: Sequence[str], idf: Floats, weights: Floats, bias: float) -> Floats:
    """As scikit-learn's TfidfTransformer (sublinear, L2) and LogisticRegression: a test holds them together."""
    counts = _hashed(texts).astype(np.float64)
    counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    scores: Floats = np.asarray(counts @ weights, np.float64).ravel() / np.maximum(norms, 1e-12) + bias
    return scores
