"""The stage `calibrate`: a checkpoint becomes a candidate bundle with a temperature and conformal thresholds."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detect_ai import bundle, model
from detect_ai.bundle import DetectorSpec
from detect_ai.calibration import Calibration, Threshold, calibrate
from detect_ai.config import Config
from detect_ai.corpus.manifest import Corpus
from detect_ai.errors import ConfigError
from detect_ai.scoring import score_split
from detect_ai.stage import read_result
from detect_ai.storage import Storage
from detect_ai.training import checked_tokenizer

CANDIDATES = "candidates"
# Scoring needs a bundle, and a bundle a calibration: this one is replaced before anyone sees it.
_UNCALIBRATED = Calibration(1.0, (0.0,), {0.5: Threshold(0.0, 1.0, 0.5)}, 0.5, 1, 1)


def calibrate_checkpoint(config: Config, storage: Storage) -> dict[str, Any]:
    """Fit temperature and thresholds on the calibration split, and write the candidate bundle.

    The checkpoint is `calibration.checkpoint`, or that of the last training under this run name.

    Raises:
        CalibrationError: too few human texts for a target FPR; it says how many are needed.
        ConfigError: no such checkpoint.
    """
    trained = {"checkpoint": config.calibration.checkpoint} if config.calibration.checkpoint else None
    trained = trained or read_result(storage, config.run, "train")
    checkpoint = trained["checkpoint"]
    if not storage.exists(checkpoint):
        raise ConfigError(f"calibration.checkpoint={checkpoint}: no such checkpoint under {storage.root}")
    corpus = Corpus.open(storage, read_result(storage, config.run, "prepare")["corpus"])
    tokenizer = checked_tokenizer(config, corpus)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with storage.local_folder(checkpoint) as source:
            for name in ("config.json", "model.safetensors"):
                shutil.copy(source / name, folder)
        tokenizer.save(folder)
        spec = bundle.seal(folder, _spec(config, corpus, tokenizer.pad_id, checkpoint))
        scored = _score(config, corpus, folder, spec.version)
        calibration = calibrate(scored.labels, scored.scores, config.calibration.target_fprs)
        spec = bundle.seal(folder, replace(spec, calibration=calibration))
        key = f"{CANDIDATES}/{spec.version}"
        storage.upload(folder, key)
    storage.prune_oldest(CANDIDATES, config.storage.keep)
    return {
        "bundle": key,
        "version": spec.version,
        "checkpoint": checkpoint,
        "temperature": calibration.temperature,
        "num_human": calibration.num_human,
        "num_ai": calibration.num_ai,
        "thresholds": calibration.to_dict()["thresholds"],
        "corpus": corpus.key,
    }
