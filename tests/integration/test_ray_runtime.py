"""The cluster that a job starts for itself."""

from __future__ import annotations

import ray
from ray.util.state import list_nodes


def test_worker_state_api_uses_its_own_cluster() -> None:
    # As Ray Train's placement group cleaner does: another cluster would report the run as dead, which would end it.
    ask = ray.remote(lambda: [node.node_id for node in list_nodes(timeout=20)])
    assert ray.get(ask.remote(), timeout=60) == [ray.get_runtime_context().get_node_id()]
