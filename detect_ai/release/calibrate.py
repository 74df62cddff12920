"""The stage `calibrate`: a checkpoint becomes a candidate bundle with scaling and conformal thresholds."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from detect_ai.calibration.calibration import Calibration, calibrate
from detect_ai.calibration.conformal import require_texts
from detect_ai.calibration.domain_classifier import MAX_TEXTS, DomainClassifier, Ids, fit
from detect_ai.calibration.domains import calibrate_domains
from detect_ai.core.config import SPLITS, CalibrationConfig, Config, ScoreConfig, public_path
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import attempt, read_result
from detect_ai.core.revision import git_revision
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.detector import Scorer
from detect_ai.detector.score import Load, score_split
from detect_ai.text.normalize import NORMALISER_VERSION
from detect_ai.text.windows import sample_spans_by_length
from detect_ai.training import search_space
from detect_ai.training.train import checked_tokenizer

SPAN_LENGTHS = (32, 64, 128)  # tokens: scores of sentences are scaled by those of such spans, without verdict_lengths
DOMAIN_SPAN = 128  # tokens, at most, of a span that the domain classifier is fitted on
_LIBRARIES = ("ray", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "safetensors")


def calibrate_checkpoint(config: Config, storage: Storage) -> dict[str, Any]:
    """Fit scaling and thresholds on the calibration split, and write the best checkpoint of this run as a candidate.

    Raises CalibrationError for too few human texts for a target FPR, ConfigError without a training under this name or
    after one on another corpus: its training texts may be in this calibration split.
    """
    trained, corpus = read_result(storage, config.run, "train"), Corpus.of_run(storage, config.run)
    if trained["corpus"] != corpus.key:
        raise ConfigError(f"run={config.run}: trained on {trained['corpus']}, prepared is {corpus.key}: train again")
    checkpoint, config = trained["checkpoint"], search_space.apply(config, trained["from_sweep"])
    require_enough_texts(config, corpus)
    classifier = fit_domain_classifier(config, corpus)
    load = partial(Scorer.from_checkpoint, config=config.model, precision=config.calibration.precision)
    calibration = calibrate_split(corpus, checkpoint, load, config.score, config.calibration, classifier)
    key = f"runs/{config.run}/{attempt('candidate')}"
    spec = _write_candidate(config, corpus, checkpoint, calibration, classifier, key)
    storage.prune(f"runs/{config.run}", "candidate-", config.storage.keep)
    return {
        "bundle": key,
        "version": spec.version,
        "checkpoint": checkpoint,
        "precision": spec.precision,
        "temperature": calibration.temperature,
        "midpoint": calibration.midpoint,
        "num_human": calibration.num_human,
        "num_ai": calibration.num_ai,
        "thresholds": {repr(target): vars(threshold) for target, threshold in calibration.thresholds.items()},
        "min_tokens": {repr(target): tokens for target, tokens in calibration.min_tokens.items()},
        "domains": {group.domain: group.num_human for group in calibration.domains},
        "corpus": corpus.key,
    }


def calibrate_split(
    corpus: Corpus,
    key: str,
    load: Load,
    scoring: ScoreConfig,
    config: CalibrationConfig,
    classifier: DomainClassifier | None,
) -> Calibration:
    """Score the calibration split with a checkpoint or bundle (arguments as `score_split`), and calibrate it.

    Raises CalibrationError when there are too few human texts for a target FPR.
    """
    scored = score_split(corpus, "calibration", key, load, scoring, config.verdict_lengths or SPAN_LENGTHS, classifier)
    documents = scored[scored["is_whole"]]
    whole = calibrate(documents["label"], documents["score"], config.target_fprs, config.prevalence)
    return calibrate_domains(whole, scored, config.verdict_lengths)


def require_enough_texts(config: Config, corpus: Corpus) -> None:
    """Raise CalibrationError when the calibration split has too few human texts for a target FPR."""
    humans = int((corpus.labels("calibration") == 0).sum())
    for target in config.calibration.target_fprs:
        require_texts(humans, target)


def fit_domain_classifier(config: Config, corpus: Corpus) -> DomainClassifier | None:
    """The classifier of the domains of `calibration.domains`, fitted on the training split; None without any.

    It is fitted on texts and on a span of each, so that it also knows short texts. Raises ConfigError when a domain has
    no training text.
    """
    domain_of = {source: name for name, sources in config.calibration.domains.items() for source in sources}
    if not domain_of:
        return None
    rng = np.random.default_rng(config.seed)
    documents: list[Ids] = []
    domains: list[str] = []
    counts: Counter[str] = Counter()
    for table in corpus.tables("train", ["input_ids", "source"]):
        for ids, source in zip(table["input_ids"].to_numpy(), table["source"].to_pylist(), strict=True):
            name = domain_of.get(source, "")
            if not name or counts[name] >= MAX_TEXTS:
                continue
            counts[name] += 1
            for start, stop in sample_spans_by_length(len(ids), [DOMAIN_SPAN], rng):
                documents.append(np.asarray(ids[start:stop], np.int32))
                domains.append(name)
    if missing := sorted(set(domain_of.values()) - set(domains)):
        sources = sorted({source["name"] for source in corpus.manifest.sources})
        raise ConfigError(
            f"calibration.domains: no training text of {', '.join(missing)}; the sources of this corpus are "
            f"{', '.join(sources)}"
        )
    return fit(documents, domains, checked_tokenizer(config, corpus).vocabulary, config.seed)


def _write_candidate(
    config: Config,
    corpus: Corpus,
    checkpoint: str,
    calibration: Calibration,
    classifier: DomainClassifier | None,
    key: str,
) -> DetectorSpec:
    manifest, tokenizer = corpus.manifest, checked_tokenizer(config, corpus)
    spec = DetectorSpec(
        base_model=f"{config.model.name} ({public_path(config.model.path)})",
        normaliser_version=NORMALISER_VERSION,
        window=config.model.window,
        stride=config.model.stride,
        pad_id=tokenizer.pad_id,
        precision=config.calibration.precision,
        calibration=calibration,
        default_target_fpr=config.calibration.default_target_fpr,
        min_tokens=config.calibration.min_tokens,
        corpus={
            "name": manifest.name,
            "fingerprint": manifest.fingerprint,
            "language": manifest.language,
            "licences": sorted({source["licence"] for source in manifest.sources if source["licence"]}),
            "rows": {split: corpus.num_rows(split) for split in SPLITS},
            "demonstration": any(source["kind"] == "sample" for source in manifest.sources),
        },
        provenance={
            "run": config.run,
            "checkpoint": checkpoint,
            "model_licence": config.model.licence,
            "config": config.published(),
            "git_revision": git_revision(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        },
        domains=list(classifier.names) if classifier else [],
    )
    with tempfile.TemporaryDirectory() as scratch, corpus.storage.local_folder(checkpoint) as source:
        folder = Path(scratch)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(source / name, folder)
        tokenizer.save(folder, config.model.window)
        if classifier:
            classifier.save(folder)
        spec = bundle.write_spec(folder, spec)
        corpus.storage.upload(folder, key)
    return spec
