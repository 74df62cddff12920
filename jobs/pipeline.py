"""Run all stages in order: python jobs/pipeline.py run=first. It sweeps unless train.from_sweep=false is set."""

# It is an error to set a key that the sweep searches; with train.from_sweep=true the sweep replaces values from files.
import sys
from pathlib import Path
from typing import Any

from detect_ai.core.config import Config
from detect_ai.core.job import run_job, run_stage
from detect_ai.core.ray_runtime import connect
from detect_ai.core.resume import run_stages, settle_pipeline
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.release.calibrate import calibrate_checkpoint, require_enough_texts
from detect_ai.release.publish import publish
from detect_ai.training.sweep import sweep
from detect_ai.training.train import train


def pipeline(config: Config, storage: Storage) -> dict[str, Any]:
    """Prepare, sweep (with train.from_sweep), train, calibrate, evaluate, publish; on a permanent cluster, deploy."""
    from serve_app.deploy import cluster_stays, deploy_to_cluster, require_place

    connect(storage, dashboard=bool(config.train.from_sweep) or config.train.worker_range[1] > 1)
    stages = {"sweep": sweep} if config.train.from_sweep else {}
    stages |= {"train": train, "calibrate": calibrate_checkpoint, "evaluate": evaluate, "publish": publish}
    if config.serve.deploy and cluster_stays():
        require_place(config.serve, storage)  # before the training
        stages["deploy"] = deploy_to_cluster
    prepared = run_stage("prepare", prepare, config, storage)  # returns at once if nothing changed
    require_enough_texts(config, Corpus.of_run(storage, config.run))
    return {"prepare": prepared} | run_stages(config, storage, "pipeline", stages, prepared["corpus"])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app is not part of the installed package
    sys.exit(run_job("pipeline", pipeline, settle=settle_pipeline))
