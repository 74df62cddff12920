"""A cluster that a job starts for itself."""

from __future__ import annotations

import ray
from ray.util.state import list_nodes


def test_a_worker_asks_its_own_cluster_and_not_the_latest_of_the_machine() -> None:
    # Ray Train's cleaner of placement groups does: of another cluster it would hear that the run is dead, and end it.
    ask = ray.remote(lambda: [node.node_id for node in list_nodes(timeout=20)])
    assert ray.get(ask.remote(), timeout=60) == [ray.get_runtime_context().get_node_id()]
