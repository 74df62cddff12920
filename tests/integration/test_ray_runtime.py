"""The cluster that a job starts for itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import ray
from ray.util.state import list_nodes


def test_worker_state_api_uses_its_own_cluster() -> None:
    # As Ray Train's placement group cleaner does: another cluster would report the run as dead, which would end it.
    ask = ray.remote(lambda: [node.node_id for node in list_nodes(timeout=20)])
    assert ray.get(ask.remote(), timeout=60) == [ray.get_runtime_context().get_node_id()]


@pytest.mark.slow
def test_stage_that_needs_the_dashboard_starts_another_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = (
        "import ray\n"
        "from detect_ai.core.ray_runtime import connect\n"
        "for dashboard in (False, False, True, False):\n"
        "    connect(dashboard=dashboard)\n"
        "    print(ray.get_runtime_context().gcs_address, bool(ray._private.worker._global_node.webui_url))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    addresses, dashboards = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert dashboards == ("False", "False", "True", "True")
    assert addresses[0] == addresses[1] != addresses[2] == addresses[3]
