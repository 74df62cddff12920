"""Every stage in turn, the sweep's best learning rate handed to the training: python jobs/pipeline.py run=first."""

import sys
from pathlib import Path
from typing import Any

from detect_ai.calibrating import calibrate_checkpoint
from detect_ai.config import Config
from detect_ai.corpus.prepare import prepare
from detect_ai.evaluation import evaluate
from detect_ai.publishing import publish
from detect_ai.stage import run_job, run_stage
from detect_ai.storage import Storage
from detect_ai.sweep import sweep
from detect_ai.training import train


def pipeline(config: Config, storage: Storage) -> dict[str, Any]:
    """Prepare, sweep, train, calibrate, evaluate, publish and deploy."""
    from serve_app.deploy import deploy

    results = {"prepare": run_stage("prepare", prepare, config, storage)}
    results["sweep"] = run_stage("sweep", sweep, config, storage)
    config.train.lr = results["sweep"]["best"]["lr"]
    results["train"] = run_stage("train", train, config, storage)
    results["calibrate"] = run_stage("calibrate", calibrate_checkpoint, config, storage)
    results["evaluate"] = run_stage("evaluate", evaluate, config, storage)
    results["publish"] = run_stage("publish", publish, config, storage)
    results["deploy"] = run_stage("deploy", deploy, config, storage)
    return results


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app lives in the checkout, beside jobs/
    sys.exit(run_job("pipeline", pipeline))
