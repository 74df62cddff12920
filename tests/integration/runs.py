"""Small runs on a real cluster: what they are told, and what they leave behind."""

from __future__ import annotations

from pathlib import Path

from detect_ai.config import Config
from tests import tiny

SHARES = {"train": 0.4, "validation": 0.15, "calibration": 0.3, "test": 0.15}


def small_config(encoder: Path, root: Path, source: Path) -> Config:
    """A run that learns the made-up texts in three epochs, with enough calibration texts for a target of 5%."""
    made = tiny.config(encoder, root, source)
    made.corpus.split = dict(SHARES)
    made.train.lr, made.train.epochs = 1e-2, 3
    made.score.threads_per_worker = 1
    return made


def files_under(folder: Path) -> list[str]:
    """Every file under a folder, by its path relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
