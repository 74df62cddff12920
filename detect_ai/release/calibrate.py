"""The stage `calibrate`: a checkpoint becomes a candidate bundle with a temperature and conformal thresholds."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.calibration.calibration import Calibration, Category, calibrate
from detect_ai.calibration.conformal import require_texts
from detect_ai.calibration.domain_classifier import MAX_TEXTS, Ids, Registers, fit
from detect_ai.calibration.domains import Spans, with_categories
from detect_ai.core.config import SPLITS, CalibrationConfig, Config
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import attempt, read_result
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.scoring import Scored, checkpoint_loader, score_split
from detect_ai.text.normalize import NORMALISER_VERSION
from detect_ai.text.windows import sample_spans_by_length
from detect_ai.training.train import checked_tokenizer

REGISTER_SPAN = 128  # tokens, at most, of a span that registers are learnt from
_LIBRARIES = ("ray", "torch", "transformers", "tokenizers", "numpy", "pyarrow", "safetensors")


def calibrate_checkpoint(config: Config, storage: Storage) -> dict[str, Any]:
    """Fit temperature and thresholds on the calibration split, and write the candidate bundle.

    The checkpoint is `calibration.checkpoint`, or that of the last training under this run name.

    Raises:
        CalibrationError: too few human texts for a target FPR; it says how many are needed.
        ConfigError: no such checkpoint.
    """
    checkpoint = config.calibration.checkpoint or read_result(storage, config.run, "train")["checkpoint"]
    if not storage.exists(checkpoint):
        raise ConfigError(f"calibration.checkpoint={checkpoint}: no such checkpoint under {storage.root}")
    corpus = Corpus.of_run(storage, config.run)
    require_enough_texts(config, corpus)
    registers = learn_registers(config, corpus)
    calibration = _calibrate(config, corpus, checkpoint, registers)
    key = f"runs/{config.run}/{attempt('candidate')}"
    spec = _write_candidate(config, corpus, checkpoint, calibration, registers, key)
    storage.prune(f"runs/{config.run}", "candidate-", config.storage.keep)
    return {
        "bundle": key,
        "version": spec.version,
        "checkpoint": checkpoint,
        "temperature": calibration.temperature,
        "midpoint": calibration.midpoint,
        "num_human": calibration.num_human,
        "num_ai": calibration.num_ai,
        "thresholds": calibration.to_dict()["thresholds"],
        "min_tokens": {repr(target): tokens for target, tokens in calibration.min_tokens.items()},
        "categories": [_described(each) for each in calibration.categories],
        "corpus": corpus.key,
    }


def _calibrate(config: Config, corpus: Corpus, checkpoint: str, registers: Registers | None) -> Calibration:
    load = checkpoint_loader(config.score, config.model)
    edges = _lengths(config.calibration)
    scored = score_split(corpus, "calibration", checkpoint, load, config.score, edges, registers)
    return calibration_of(scored, config.calibration, registers)


def calibration_of(scored: Scored, c: CalibrationConfig, registers: Registers | None) -> Calibration:
    """Scaling and thresholds from the scores of a calibration split. Raises CalibrationError."""
    labels, scores = scored.labels[scored.whole], scored.scores[scored.whole]
    whole = calibrate(labels, scores, c.target_fprs, c.method, c.prevalence)
    if not (_lengths(c) or registers):
        return whole
    # The whole of a document comes after its spans.
    documents: NDArray[np.int64] = np.cumsum(scored.whole) - scored.whole
    spans = Spans(scored.labels, scored.scores, scored.num_tokens, scored.registers, documents)
    return with_categories(whole, spans, c.length_edges, c.min_tpr, c.method, _lengths(c))


def _lengths(c: CalibrationConfig) -> list[int]:
    """Lengths of the spans of calibration texts that are scored."""
    return c.verdict_lengths or c.length_edges


def _described(category: Category) -> dict[str, Any]:
    return {
        "register": category.register,
        "min_tokens": category.min_tokens,
        "max_tokens": category.max_tokens,
        "num_human": len(category.human_scores),
        "thresholds": {repr(target): threshold.score for target, threshold in category.thresholds.items()},
        "tprs": {repr(target): tpr for target, tpr in category.tprs.items()},
    }


def learn_registers(config: Config, corpus: Corpus) -> Registers | None:
    """What tells the registers of `calibration.registers` apart, learnt from the training split; None without any.

    Raises:
        ConfigError: a register has no text in the training split.
    """
    names = {source: name for name, sources in config.calibration.registers.items() for source in sources}
    if not names:
        return None
    tokenizer = checked_tokenizer(config, corpus)
    documents, found = _register_texts(corpus, names, config.seed)
    if missing := sorted(set(names.values()) - set(found)):
        sources = sorted({source["name"] for source in corpus.manifest.sources})
        raise ConfigError(
            f"calibration.registers: no training text of {', '.join(missing)}; the sources of this corpus are "
            f"{', '.join(sources)}"
        )
    return fit(documents, found, tokenizer.vocabulary, config.seed)


def _register_texts(corpus: Corpus, names: dict[str, str], seed: int) -> tuple[list[Ids], list[str]]:
    """Training texts of each register with a span of each, for short texts are to be told apart, too."""
    rng = np.random.default_rng(seed)
    documents: list[Ids] = []
    found: list[str] = []
    counts: Counter[str] = Counter()
    for table in corpus.tables("train", ["input_ids", "source"]):
        for ids, source in zip(table["input_ids"].to_numpy(), table["source"].to_pylist(), strict=True):
            name = names.get(source, "")
            if not name or counts[name] >= MAX_TEXTS:
                continue
            counts[name] += 1
            for start, stop in sample_spans_by_length(len(ids), [REGISTER_SPAN], rng):
                documents.append(np.asarray(ids[start:stop], np.int32))
                found.append(name)
    return documents, found


def _write_candidate(
    config: Config,
    corpus: Corpus,
    checkpoint: str,
    calibration: Calibration,
    registers: Registers | None,
    key: str,
) -> DetectorSpec:
    storage = corpus.storage
    tokenizer = checked_tokenizer(config, corpus)
    with tempfile.TemporaryDirectory() as scratch, storage.local_folder(checkpoint) as source:
        folder = Path(scratch)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(source / name, folder)
        tokenizer.save(folder, config.model.window)
        if registers:
            registers.save(folder)
        made = _spec(config, corpus, checkpoint, calibration, tokenizer.pad_id)
        spec = bundle.seal(folder, replace(made, registers=list(registers.names) if registers else []))
        storage.upload(folder, key)
    return spec


def _spec(config: Config, corpus: Corpus, checkpoint: str, calibration: Calibration, pad_id: int) -> DetectorSpec:
    manifest = corpus.manifest
    return DetectorSpec(
        base_model=f"{config.model.name} ({config.model.path})",
        normaliser_version=NORMALISER_VERSION,
        window=config.model.window,
        stride=config.model.stride,
        pad_id=pad_id,
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
            "config": config.to_dict(),
            "git_revision": git_revision(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        },
    )


def require_enough_texts(config: Config, corpus: Corpus) -> None:
    """Raise CalibrationError when the calibration split has too few human texts for a target FPR."""
    humans = int((corpus.labels("calibration") == 0).sum())
    for target in config.calibration.target_fprs:
        require_texts(humans, target)


def git_revision() -> str:
    """DETECT_AI_GIT_REVISION, else the revision of this checkout.

    `unknown` where there is neither: in an installed package, and under `ray job submit`, which copies no history.
    """
    if given := os.environ.get("DETECT_AI_GIT_REVISION"):
        return given
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    top, revision = done.stdout.splitlines()
    return revision if Path(top).resolve() == root else "unknown"  # of another project, around ours
