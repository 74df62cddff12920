"""Retrain with texts from production: python jobs/retrain.py run=next corpus=… retrain.humans=… [train.…]."""

# Collects hard negatives, mirrors and audited texts, adds them to the sources of the corpus, then runs the pipeline.
import sys
from pathlib import Path
from typing import Any

from detect_ai.core.config import Config
from detect_ai.core.job import run_job, run_stage
from detect_ai.core.resume import settle_pipeline
from detect_ai.core.storage import Storage
from detect_ai.monitoring.retrain import collect, with_sources


def retrain(config: Config, storage: Storage) -> dict[str, Any]:
    """Collect new texts, then prepare, sweep, train, calibrate, evaluate, publish and deploy."""
    from pipeline import pipeline  # in this folder

    collected = run_stage("collect", collect, config, storage)
    return {"collected": collected["numbers"], **pipeline(with_sources(config, collected["sources"]), storage)}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app is not part of the installed package
    sys.exit(run_job("retrain", retrain, settle=settle_pipeline))
