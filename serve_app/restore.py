"""Serve the last deployed state again after the head of the cluster was lost."""

from __future__ import annotations

import logging
import os
from typing import Any

from detect_ai.core import audit_log
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, ConflictError
from detect_ai.core.ray_runtime import connect
from detect_ai.core.storage import Storage
from serve_app.deploy import desired_state, hand_over, is_deployed, served_version, start_serve, wait_for_answer

logger = logging.getLogger(__name__)


def restore(config: Config, storage: Storage) -> dict[str, Any]:
    """Serve the last live state again on the cluster at RAY_ADDRESS, after its head node was lost.

    Does nothing before the first deployment, and has no visible effect if the service already answers with that state.
    A deployment that the loss interrupted is not resumed; one that begins meanwhile takes precedence. The state is not
    checked again, because `deploy` accepted it. Raises ConfigError when RAY_ADDRESS is not set or another release wrote
    the state, ResourceError when the port is taken or the replicas did not start in time.
    """
    if not os.environ.get("RAY_ADDRESS"):
        raise ConfigError("restore needs the address of the cluster: set RAY_ADDRESS, on its head to 127.0.0.1:6379")
    connect(storage)
    desired = desired_state(storage)
    number, current = desired.read()
    state = desired.last_live()
    if state is None:
        logger.info("%s: no deployment to restore", storage.root)
        return {"model_version": None, "restored": False}
    settings = state.sections["serve"]
    start_serve(settings)
    served = is_deployed() and served_version(settings) == state.version
    try:
        if current != state:
            number = desired.advance(state, after=number)
        hand_over(desired, storage.root)
        wait_for_answer(desired, number, settings, state.version)
    except ConflictError as newer:
        logger.info("not restored: %s", newer)
        return {"model_version": None, "restored": False}
    if not served:
        audit_log.record(storage, "restore", version=state.version)
    return {"url": settings.url, "model_version": state.version, "restored": not served}
