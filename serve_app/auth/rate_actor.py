"""The Ray actor that enforces the rate limits of all replicas."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import ray

from serve_app.auth import rate_limit
from serve_app.auth.rate_limit import Limiter, RateLimits

NAMESPACE, PREFIX = "detect_ai", "rate_limits-"
# The name has a hash of the code: a detached actor outlives a deployment and must not serve another release's replicas.
ACTOR_NAME = PREFIX + hashlib.sha256(Path(rate_limit.__file__).read_bytes()).hexdigest()[:8]


def connect_limiter() -> Limiter:
    """The limiter of this cluster; starts its actor on the head node if it is not running."""
    head = {"node:__internal_head__": 0.001}  # the node that is never preempted
    options = {"name": ACTOR_NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    actor: Any = ray.remote(RateLimits).options(num_cpus=0, resources=head, max_restarts=-1, **options).remote()
    return Limiter(lambda method, *arguments: getattr(actor, method).remote(*arguments))


def stop_limiters(keep: str = "") -> None:
    """Stop the actors of all releases, except the one named `keep`."""
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(PREFIX) and actor["name"] != keep:
            ray.kill(ray.get_actor(actor["name"], NAMESPACE))
