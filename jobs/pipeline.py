"""Every stage in turn, the sweep's best learning rate handed to the training: python jobs/pipeline.py run=first."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from detect_ai.calibrating import calibrate_checkpoint, require_enough_texts
from detect_ai.cluster import connect
from detect_ai.config import Config
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.evaluation import evaluate
from detect_ai.publishing import publish
from detect_ai.stage import run_job, run_stage
from detect_ai.storage import Storage
from detect_ai.sweep import sweep
from detect_ai.training import train

logger = logging.getLogger("detect_ai.pipeline")


def pipeline(config: Config, storage: Storage) -> dict[str, Any]:
    """Prepare, sweep, train, calibrate, evaluate and publish; on a cluster that stays, deploy too."""
    from serve_app.deploy import deploy_to_cluster, require_place

    connect()
    deploys = bool(os.environ.get("RAY_ADDRESS"))
    if deploys:
        require_place(config.serve)  # not after the training
    results = {"prepare": run_stage("prepare", prepare, config, storage)}
    require_enough_texts(config, Corpus.open(storage, results["prepare"]["corpus"]))
    config.train.from_sweep = True
    stages = {"sweep": sweep, "train": train, "calibrate": calibrate_checkpoint, "evaluate": evaluate}
    stages |= {"publish": publish} | ({"deploy": deploy_to_cluster} if deploys else {})
    results |= {name: run_stage(name, stage, config, storage) for name, stage in stages.items()}
    if not deploys:
        logger.info("not deployed: the Ray of this job ends with it. Serve it with: python -m serve_app")
    return results


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app lives in the checkout, beside jobs/
    sys.exit(run_job("pipeline", pipeline))
