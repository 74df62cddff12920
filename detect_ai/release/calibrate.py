"""The stage `calibrate`: turn a checkpoint into a candidate bundle with scaling and conformal thresholds."""

from __future__ import annotations

import platform
import shutil
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from detect_ai.calibration.calibration import Calibration
from detect_ai.calibration.conformal import require_texts
from detect_ai.calibration.domains import MIN_TEXTS, calibrate
from detect_ai.calibration.new_domain import MIN_DOMAINS
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
from detect_ai.models import encoder
from detect_ai.models.style import Style
from detect_ai.text.normalize import NORMALISER_VERSION
from detect_ai.training import search_space
from detect_ai.training.train import checked_tokenizer

SPECIAL_TOKENS = 2  # per window
SPAN_LENGTHS = (32, 64, 128)  # tokens: spans that sentence scores are scaled on, unless verdict_lengths is set
MAX_STYLED = 20_000  # calibration texts, in random order
_LIBRARIES = ("ray", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "safetensors")


def calibrate_checkpoint(config: Config, storage: Storage) -> dict[str, Any]:
    """Fit scaling and thresholds on the calibration split, and write the best checkpoint of this run as a candidate.

    Raises CalibrationError for too few human texts for a target FPR, ConfigError if there is no training result under
    this run name or it is for another corpus, whose training texts may be in this calibration split.
    """
    trained, corpus = read_result(storage, config.run, "train"), Corpus.of_run(storage, config.run)
    if trained["corpus"] != corpus.key:
        raise ConfigError(f"run={config.run}: trained on {trained['corpus']}, prepared is {corpus.key}: train again")
    checkpoint, config = trained["checkpoint"], search_space.apply(config, trained["from_sweep"])
    has_domains = require_enough_texts(config, corpus)
    load = partial(Scorer.from_checkpoint, config=config.model, precision=config.calibration.precision)
    style = _fit_style(config, corpus) if has_domains else None
    calibration = calibrate_split(
        corpus, checkpoint, load, config.score, config.calibration, config.model.window, style
    )
    key = f"runs/{config.run}/{attempt('candidate')}"
    spec = _write_candidate(config, corpus, checkpoint, calibration, style, key)
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
        "by_length": [vars(row) for row in calibration.by_length[config.calibration.default_target_fpr]],
        "domains": {domain.name: len(domain.human) for domain in calibration.domains},
        "compared_with": calibration.compared_with.value,
        "corpus": corpus.key,
    }


def calibrate_split(
    corpus: Corpus,
    key: str,
    load: Load,
    scoring: ScoreConfig,
    config: CalibrationConfig,
    window: int,
    style: Style | None,
) -> Calibration:
    """Score the calibration split with a checkpoint or bundle (arguments as `score_split`), and calibrate on it.

    `window` is in tokens, including special tokens. Raises CalibrationError for too few texts.
    """
    scored = score_split(corpus, "calibration", key, load, scoring, config.verdict_lengths or SPAN_LENGTHS, style)
    return calibrate(scored, config, window - SPECIAL_TOKENS)


def require_enough_texts(config: Config, corpus: Corpus) -> bool:
    """Whether the calibration split has enough domains for thresholds that hold in a new domain.

    Raises CalibrationError if it does not and has too few human texts for a target FPR.
    """
    domains = corpus.domains("calibration")[corpus.labels("calibration") == 0]
    if (np.unique(domains, return_counts=True)[1] >= MIN_TEXTS).sum() >= MIN_DOMAINS:
        return True
    for target in config.calibration.target_fprs:
        require_texts(len(domains), target, config.calibration.guarantee)
    return False


def _fit_style(config: Config, corpus: Corpus) -> Style:
    """The directions in which calibration texts differ, from the encoder's word embeddings before training."""
    token_ids = corpus.read("calibration", ["input_ids"]).slice(0, MAX_STYLED)["input_ids"].to_numpy()
    embeddings: Any = encoder.build(config.model, seed=0).get_input_embeddings()
    domains = corpus.domains("calibration")[:MAX_STYLED]
    return Style.fit(embeddings.weight.detach().numpy(), token_ids, domains)


def _write_candidate(
    config: Config, corpus: Corpus, checkpoint: str, calibration: Calibration, style: Style | None, key: str
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
    )
    with tempfile.TemporaryDirectory() as scratch, corpus.storage.local_folder(checkpoint) as source:
        folder = Path(scratch)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(source / name, folder)
        tokenizer.save(folder, config.model.window)
        if style:
            style.save(folder)
        spec = bundle.write_spec(folder, spec)
        corpus.storage.upload(folder, key)
    return spec
