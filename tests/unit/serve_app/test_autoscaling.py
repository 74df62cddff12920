"""The autoscaling policy: replicas follow the offered work, including rejected requests."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve_app.autoscaling import DEMAND, scale_on_demand


def desired(demand: dict[str, float], ongoing: float) -> float:
    """Replicas that the policy requests, called as in Serve's controller: unpickled, with its own context."""
    context: Any = AutoscalingContext(
        deployment_id=DeploymentID("Detector", "detect_ai"),
        deployment_name="Detector",
        app_name="detect_ai",
        current_num_replicas=len(demand),
        target_num_replicas=len(demand),
        running_replicas=[],
        total_num_requests=ongoing,
        total_queued_requests=0,
        aggregated_metrics={DEMAND: demand} if demand else {},  # type: ignore[arg-type]
        raw_metrics={},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=AutoscalingConfig(target_ongoing_requests=16),
    )
    policy = AutoscalingPolicy(policy_function=scale_on_demand).get_policy()
    return float(policy(context)[0])


@pytest.mark.parametrize(
    ("demand", "ongoing", "replicas"),
    [
        ({}, 0, 0),
        ({"a": 0.0}, 0, 0),  # idle: down to min_replicas
        ({"a": 0.4}, 4, 0.5),
        ({"a": 3.0}, 11.7, 3.75),  # three times the capacity, mostly rejected: Serve's own policy asks for one
        ({"a": 0.8, "b": 1.6}, 20, 3.0),
        ({"a": 0.1}, 48, 3.0),  # slow clients: the ongoing requests count
    ],
)
def test_replicas_follow_the_offered_work(demand: dict[str, float], ongoing: float, replicas: float) -> None:
    assert desired(demand, ongoing) == pytest.approx(replicas)
