"""Autoscaling policy: scale on offered work, including the requests that replicas refuse."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

DEMAND = "demand"  # metric of a replica: offered work as a fraction of its capacity; above 1 it is overloaded
TARGET_UTILIZATION = 0.8


def scale_on_demand(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Replicas for the offered work, or for the ongoing requests if that needs more.

    Load shedding keeps the number of ongoing requests below `target_ongoing_requests`, however many requests are
    refused; Serve's default policy therefore never scales an overloaded service. Serve then applies delays and bounds.
    """
    assert context.config is not None
    demand = sum((context.aggregated_metrics or {}).get(DEMAND, {}).values())
    ongoing = context.total_num_requests / context.config.get_target_ongoing_requests()
    return max(ongoing, demand / TARGET_UTILIZATION), {}
