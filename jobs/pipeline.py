"""Every stage in turn, the sweep's best learning rate handed to the training: python jobs/pipeline.py run=first."""

import sys
from pathlib import Path
from typing import Any

from detect_ai.core.config import Config
from detect_ai.core.job import run_job, run_stage
from detect_ai.core.ray_runtime import connect
from detect_ai.core.resume import in_turn
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.release.calibrate import calibrate_checkpoint, require_enough_texts
from detect_ai.release.publish import publish
from detect_ai.training.sweep import sweep
from detect_ai.training.train import train


def pipeline(config: Config, storage: Storage) -> dict[str, Any]:
    """Prepare, sweep, train, calibrate, evaluate and publish; on a cluster that stays, deploy too."""
    from serve_app.deploy import cluster_stays, deploy_to_cluster, require_place

    connect()
    stages = {"sweep": sweep, "train": train, "calibrate": calibrate_checkpoint, "evaluate": evaluate}
    stages["publish"] = publish
    if cluster_stays():
        require_place(config.serve)  # not after the training
        stages["deploy"] = deploy_to_cluster
    config.train.from_sweep = True
    config.bundle = config.data = ""  # what is judged is the candidate, on its test split
    prepared = run_stage("prepare", prepare, config, storage)  # cheap where nothing changed
    require_enough_texts(config, Corpus.of_run(storage, config.run))
    return {"prepare": prepared} | in_turn(config, storage, "pipeline", stages, prepared["corpus"])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app lives in the checkout, beside jobs/
    sys.exit(run_job("pipeline", pipeline))
