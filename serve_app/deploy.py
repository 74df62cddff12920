"""Make Ray Serve answer with a published version."""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from detect_ai.core.config import Config, ServeConfig
from detect_ai.core.errors import ConfigError, ResourceError
from detect_ai.core.ray_runtime import connect, require_free_port, require_resources
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.registry import Registry
from detect_ai.release.publish import rollback
from serve_app.auth.api_keys import ENVIRONMENT, KeyStore
from serve_app.auth.rate_limit import ACTOR_NAME, stop_limiters

logger = logging.getLogger(__name__)

DEPLOY_TIMEOUT_S = 300
ARGUMENTS_TIMEOUT_S = 30
CHECKOUT = Path(__file__).resolve().parents[1]


def deploy(config: Config, storage: Storage) -> dict[str, Any]:
    """Serve a published version, the champion unless one is named, and wait until it answers.

    A version that is served already keeps answering until the new one is ready. When that fails the old one stays;
    without an old one nothing stays.

    Raises:
        RegistryError: no such version, or no champion.
        BundleError: the bundle is damaged.
        ResourceError: a port in use, too few CPUs, or replicas that did not start.
    """
    version, keys = checked_version(config.serve, storage), checked_keys(config.serve, storage)
    connect()
    needed = max(1, config.serve.min_replicas)
    gpus = needed * int(config.serve.use_gpu)
    require_resources(f"serve.min_replicas={needed}", needed * config.serve.cpus_per_replica, gpus)
    started_serve = start_serve(config.serve)
    replaced = None if started_serve else served_version(config.serve)
    is_new = not is_deployed()
    before = arguments_of_replica() if replaced else None
    try:
        run(config.serve, storage.root, version, keys)
    except BaseException:
        stop(app=is_new, serve_too=started_serve)
        if before is not None:
            # Serve goes on to answer by the replicas that there are, but starts no further ones for them.
            logger.warning("The service goes back to version %s", before[2])
            hand_over(*before)
        raise
    stop_limiters(keep=ACTOR_NAME)
    return {
        "url": url(config.serve),
        "model_version": version,
        "replaced": replaced,
        "replicas": running_replicas(),
        "started_serve": started_serve,
    }


def cluster_stays() -> bool:
    """Whether a cluster is named that outlives this process, and a service on it."""
    if not os.environ.get("RAY_ADDRESS"):
        logger.info("RAY_ADDRESS is not set: nothing is deployed, for the service would end with this job")
        return False
    return True


def deploy_to_cluster(config: Config, storage: Storage) -> dict[str, Any]:
    """Make the Ray Serve of a running cluster answer with the champion, or with `serve.version`.

    Raises:
        ConfigError: no cluster is named: the service would end with this process.
    """
    if not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "deploy needs a cluster that stays: submit it with `ray job submit`, or set RAY_ADDRESS. On this machine, "
            "without a cluster: DETECT_AI_STORAGE_ROOT=… make serve"
        )
    return deploy(config, storage)


def rollback_service(config: Config, storage: Storage) -> dict[str, Any]:
    """Make the version before the champion champion again; a service on the cluster that is named answers with it.

    Raises:
        RegistryError: there is no version before.
        ResourceError: it did not start; the service goes on as it was, the champion is moved.
    """
    result = rollback(config, storage)
    if cluster_stays():
        connect()
        if is_serving():
            config.serve.version = ""
            result["deploy"] = deploy(config, storage)
    return result


def is_serving() -> bool:
    """Whether the application runs on this cluster; starts nothing."""
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False) is not None and is_deployed()


def require_place(config: ServeConfig) -> None:
    """Raise ResourceError when the port is taken by something else than Ray Serve."""
    from ray.serve.context import _get_global_client

    if _get_global_client(raise_if_no_controller_running=False) is None:
        require_free_port(config.host, config.port)


def checked_version(config: ServeConfig, storage: Storage) -> str:
    """The version to serve; every byte of it, and of those beside it, is checked before the service is touched."""
    registry = Registry(storage)
    version = config.version or registry.require_champion()
    for each in filter(None, (version, config.canary, config.shadow)):
        with registry.folder(each) as folder:
            bundle.read_spec(folder)
    return version


def checked_keys(config: ServeConfig, storage: Storage) -> str | None:
    """Hashed API keys of the environment, to go with those of the file; None where everybody on this machine may ask.

    Raises:
        ConfigError: keys that cannot be read, or none at all where others than this machine can ask.
    """
    environment = os.environ.get(ENVIRONMENT, "")
    if KeyStore(storage, environment).read().keys:
        return environment
    if not config.is_local:
        raise ConfigError(
            f"serve.host={config.host} lets other machines ask, and there are no API keys: make one with `python -m "
            f"serve_app.auth.api_keys --root {storage.root} create NAME`, or give serve.host=127.0.0.1"
        )
    logger.info(
        "No API keys: everybody on this machine may ask (`python -m serve_app.auth.api_keys create NAME` makes one)"
    )
    return None


def start_serve(config: ServeConfig) -> bool:
    """Start Ray Serve unless it runs. Returns whether it had to be started.

    Raises:
        ResourceError: the port is in use, or Serve runs already on another one.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        found = client.http_config
        if (found.host, found.port) != (config.host, config.port):
            raise ResourceError(
                f"Ray Serve already runs on {found.host}:{found.port}, not on {config.host}:{config.port}: "
                f"give serve.host={found.host} serve.port={found.port}, or stop it with `serve shutdown`"
            )
        return False
    require_free_port(config.host, config.port)
    serve.start(
        proxy_location="HeadOnly" if config.is_local else "EveryNode",
        # Waiting for a replica comes on top of what a replica allows itself.
        http_options={"host": config.host, "port": config.port, "request_timeout_s": 2 * config.request_timeout_s},
    )
    return True


Arguments = tuple[ServeConfig, str, str, str | None]


def arguments_of_replica() -> Arguments | None:
    """What the replicas that answer were made of; None where they do not say, such as those of an older release."""
    from ray import serve

    from serve_app.deployment import APP

    try:
        found: Arguments = serve.get_app_handle(APP).arguments.remote().result(timeout_s=ARGUMENTS_TIMEOUT_S)
    except Exception as error:  # of Ray, of Serve, of the replica: nothing that a deployment should fail for
        logger.warning("A replica did not say what it was made of: %s", type(error).__qualname__)
        return None
    return found


def hand_over(config: ServeConfig, storage_root: str, version: str, keys: str | None) -> None:
    """Tell Serve what to answer with. Does not wait for it."""
    from ray import serve

    from serve_app.deployment import APP, build

    target = serve.RunTarget(build(config, storage_root, version, runtime_env(), keys), name=APP, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def run(config: ServeConfig, storage_root: str, version: str, keys: str | None) -> None:
    """Hand the application to Serve and wait until that version answers. Raises ResourceError."""
    from ray import serve

    from serve_app.deployment import APP

    hand_over(config, storage_root, version, keys)
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while time.monotonic() < deadline:
        app = serve.status().applications.get(APP)
        if app is not None and app.status == "DEPLOY_FAILED":
            raise ResourceError(f"version {version} did not start: {reason(app)}")
        if app is not None and app.status == "RUNNING" and served_version(config) == version:
            return
        time.sleep(0.2)
    raise ResourceError(
        f"version {version} did not answer within {DEPLOY_TIMEOUT_S} s: see `serve status`; a replica needs "
        f"{config.cpus_per_replica:g} free CPUs"
    )


def reason(app: Any) -> str:
    """The last line of what Serve says of a failed application: the error, after its traceback."""
    messages = [app.message, *(deployment.message for deployment in app.deployments.values())]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no reason given")


def runtime_env() -> dict[str, Any] | None:
    """Where replicas find `serve_app`: in the working directory of the job, else in this checkout."""
    import ray

    inherited = dict(ray.get_runtime_context().runtime_env)
    if inherited.get("working_dir"):
        return None
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    return {**inherited, "env_vars": {**inherited.get("env_vars", {}), "PYTHONPATH": path}}


def url(config: ServeConfig) -> str:
    """Where the service answers on this machine."""
    return f"http://{_reachable(config.host)}:{config.port}"


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound


def served_version(config: ServeConfig) -> str | None:
    """The version that answers now, or None."""
    connection = http.client.HTTPConnection(_reachable(config.host), config.port, timeout=5)
    with suppress(OSError, http.client.HTTPException, ValueError, KeyError):
        connection.request("GET", "/readyz")
        return str(json.loads(connection.getresponse().read())["model_version"])
    return None


def is_deployed() -> bool:
    """Whether Serve knows the application."""
    from ray import serve

    from serve_app.deployment import APP

    return APP in serve.status().applications


def running_replicas() -> int:
    """How many replicas answer."""
    from ray import serve
    from ray.serve._private.common import ReplicaState

    from serve_app.deployment import APP, DEPLOYMENT

    states = serve.status().applications[APP].deployments[DEPLOYMENT].replica_states
    return states.get(ReplicaState.RUNNING, 0)


def stop(app: bool, serve_too: bool) -> None:
    """Take down the application and Serve; what is in flight is answered first."""
    from ray import serve

    from serve_app.deployment import APP

    if app and is_deployed():
        serve.delete(APP)
    if serve_too:
        serve.shutdown()
        stop_limiters()
