"""Train on two nodes and remove one: `python -m tests.integration.spot_cluster CONFIG CORPUS NAME THEN`.

It runs in its own process, because it has its own cluster: Ray's multi-node test cluster, a head with room for one
worker and Ray Data, and a spot node for the other worker. Prints the history and the checkpoint as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.training import train
from tests.integration.runs import last_start, registered, until

CHECKPOINTS = 5  # after which the node is removed


def main() -> None:
    """Train, and remove the node during training."""
    path, key, name, then = sys.argv[1:]  # replaced: another node comes at once; later: once one worker trains alone
    config = Config.model_validate_json(Path(path).read_text())
    cpus = config.train.cpus_per_worker
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus + 1})
    spot = machines.add_node(num_cpus=cpus)
    os.environ["RAY_ADDRESS"] = machines.address
    ray_runtime.connect()
    train.RESIZE_SECONDS = 2
    storage = Storage(config.storage.root)
    results: list[Any] = []
    # Ray adds nodes from the main thread only.
    training = threading.Thread(
        target=lambda: results.append(train.run_training(config, Corpus.open(storage, key), name))
    )
    training.start()
    folder = f"runs/{config.run}/{name}"

    def checkpoints(count: int) -> None:
        until(lambda: registered(storage, folder) >= count or not training.is_alive())

    checkpoints(CHECKPOINTS)
    machines.remove_node(spot, allow_graceful=False)
    if then == "later":
        until(lambda: last_start(storage, folder)["workers"] == 1 or not training.is_alive())
        checkpoints(registered(storage, folder) + 2)
    if then != "gone":
        machines.add_node(num_cpus=cpus)
    training.join()
    ray.shutdown()
    machines.shutdown()
    print(json.dumps({"history": results[0].history, "checkpoint": results[0].checkpoint}))


if __name__ == "__main__":
    main()
