"""The stage `calibrate`: a checkpoint becomes a candidate bundle with a temperature and conformal thresholds."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detect_ai import bundle
from detect_ai.bundle import DetectorSpec
from detect_ai.calibration import Calibration, calibrate, require_texts
from detect_ai.config import SPLITS, Config
from detect_ai.corpus.manifest import Corpus
from detect_ai.errors import ConfigError
from detect_ai.scoring import checkpoint_loader, score_split
from detect_ai.stage import read_result
from detect_ai.storage import Storage
from detect_ai.text import NORMALISER_VERSION
from detect_ai.training import attempt, checked_tokenizer

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
    corpus = Corpus.open(storage, read_result(storage, config.run, "prepare")["corpus"])
    require_enough_texts(config, corpus)
    scored = score_split(corpus, "calibration", checkpoint, checkpoint_loader(config.score, config.model), config.score)
    calibration = calibrate(scored.labels, scored.scores, config.calibration.target_fprs)
    key = f"runs/{config.run}/{attempt('candidate')}"
    spec = _write_candidate(config, corpus, checkpoint, calibration, key)
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
        "corpus": corpus.key,
    }


def _write_candidate(
    config: Config, corpus: Corpus, checkpoint: str, calibration: Calibration, key: str
) -> DetectorSpec:
    storage = corpus.storage
    tokenizer = checked_tokenizer(config, corpus)
    with tempfile.TemporaryDirectory() as scratch, storage.local_folder(checkpoint) as source:
        folder = Path(scratch)
        for name in ("config.json", "model.safetensors"):
            shutil.copy(source / name, folder)
        tokenizer.save(folder)
        spec = bundle.seal(folder, _spec(config, corpus, checkpoint, calibration, tokenizer.pad_id))
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
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    top, revision = done.stdout.splitlines()
    return revision if Path(top).resolve() == root else "unknown"  # of another project, around ours
