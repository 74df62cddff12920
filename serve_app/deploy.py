"""Deploy a published version to Ray Serve, pause its verdicts, and roll back."""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray._private import worker
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig, TracingConfig

from detect_ai.core import audit_log
from detect_ai.core.config import ANY_DOMAIN, Config, ServeConfig, check_names
from detect_ai.core.errors import ConfigError, ConflictError, ResourceError
from detect_ai.core.ray_runtime import can_grow, connect, require_free_port, require_resources
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.registry import Registry
from detect_ai.release.publish import rollback
from serve_app.auth.api_keys import checked_keys
from serve_app.auth.rate_actor import ACTOR_NAME, stop_limiters
from serve_app.desired_state import DesiredState, State

logger = logging.getLogger(__name__)

APP = "detect_ai"
DEPLOY_TIMEOUT_S = 300
NODE_START_S = 900  # added to the timeout if the cluster can add nodes: machine, image and packages
POLL_S = 0.5
KEEP_ALIVE_S = 620  # Google's load balancers reuse a connection for 600 s; closing it earlier would fail a request
CHECKOUT = Path(__file__).resolve().parents[1]
# Environment variables that replicas inherit from a job: system, libraries, storage access; not W&B or hub tokens.
ALLOWED_VARIABLES = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_", "CUDA_", "OMP_", "MKL_"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("PYTHON", "RAY_", "TOKENIZERS_PARALLELISM", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("DETECT_AI_STORAGE_ROOT", "DETECT_AI_FEEDBACK_PASSWORD", "GOOGLE_", "AWS_", "AZURE_"),
)


def deploy(
    config: Config, storage: Storage, keys: str | None = None, replicas: str = "", after: int | None = None
) -> dict[str, Any]:
    """Serve a published version (default: the champion) and wait until it answers.

    Replicas of the previous version answer until the new ones are ready. A failed deployment is rolled back to the last
    successful one, unless another deployment has begun meanwhile. `keys` are hashed API keys in addition to those under
    the storage root; None: the keys of the environment. `replicas` is the value in the current state if only
    `serve.abstain_domains` changes, so that replicas keep running. `after` is the number of the desired state that the
    configuration was derived from; None: it does not depend on one.

    Raises RegistryError (no such version, no champion), BundleError (damaged), ResourceError (a port in use, too few
    CPUs, replicas that did not start) or ConflictError (a newer deployment has replaced this one).
    """
    settings = config.serve
    version, keys = checked_version(settings, storage), checked_keys(settings, storage, keys)
    connect(storage)
    count = 0 if replicas else max(1, settings.min_replicas)
    needs = {name: count * amount for name, amount in settings.replica_resources.items() if name != "memory"}
    require_resources(f"serve.min_replicas={count}", needs.pop("CPU", 0), needs.pop("GPU", 0), **needs)
    started_serve = start_serve(settings)
    is_new = not is_deployed()
    replaced = None if is_new else served_version(settings)
    desired = desired_state(storage)
    state = State.of(config, version, keys, replicas or uuid.uuid4().hex[:12])
    number = desired.advance(state, after=desired.read()[0] if after is None else after)
    try:
        hand_over(desired, storage.root)
        wait_for_answer(desired, number, settings, version)
        desired.advance(state.model_copy(update={"status": "live"}), after=number)
    except BaseException as error:
        audit_log.record(storage, "deploy-failed", version=version, before=replaced, reason=type(error).__name__)
        with suppress(ConflictError):  # a newer deployment continues
            if is_new:
                desired.require(number)
                stop(app=True)
                if desired.read()[0] != number:  # a newer deployment's application was deleted
                    hand_over(desired, storage.root)
                elif started_serve:
                    stop(serve_too=True)
            elif last := desired.last_live():
                desired.advance(last, after=number)
                logger.warning("Version %s was not deployed (%s); restoring %s", version, error, last.version)
                hand_over(desired, storage.root)
        raise
    audit_log.record(storage, "deploy", version=version, before=replaced)
    stop_limiters(keep=ACTOR_NAME)
    return {"url": settings.url, "model_version": version, "replaced": replaced, "started_serve": started_serve}


def wait_for_answer(desired: DesiredState, number: int, settings: ServeConfig, version: str) -> None:
    """Wait until all replicas run a version.

    Raises ConflictError when a newer deployment than `number` has begun, ResourceError when they do not start in time.
    """
    allowed = DEPLOY_TIMEOUT_S + NODE_START_S * can_grow()
    deadline = time.monotonic() + allowed
    while True:
        desired.require(number)  # first: the state of Serve may be that of a newer deployment
        if is_answering(settings, version):
            return
        if time.monotonic() > deadline:
            needs = ", ".join(f"{amount:g} {name}" for name, amount in settings.replica_resources.items())
            raise ResourceError(
                f"version {version} did not answer within {allowed} s: see `serve status` and `ray status`; a replica "
                f"needs {needs}"
            )
        time.sleep(POLL_S)


def desired_state(storage: Storage) -> DesiredState:
    """Desired states of the service on the connected cluster; a private Ray instance loses them when it ends."""
    if os.environ.get("RAY_ADDRESS"):
        return DesiredState(storage)
    node: Any = worker._global_node
    return DesiredState(Storage(node.get_session_dir_path()))


def cluster_stays() -> bool:
    """Whether RAY_ADDRESS names a cluster; the cluster and its services outlive this process."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    logger.info("RAY_ADDRESS is not set: nothing is deployed, because the service would end with this job")
    return False


def deploy_to_cluster(config: Config, storage: Storage) -> dict[str, Any]:
    """Deploy to the cluster at RAY_ADDRESS. Paused verdicts stay paused until `abstain` resumes them.

    Raises ConfigError without a cluster, because the service would end with this job, and when the version lacks a
    paused domain; other errors as in `deploy`.
    """
    if not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "deploy needs a permanent cluster: submit it with `ray job submit`, or set RAY_ADDRESS. On this machine, "
            "without a cluster: detect-ai serve"
        )
    connect(storage)
    if live := desired_state(storage).last_live() if is_deployed() else None:
        if not config.serve.abstain_domains and (paused := live.settings.get("abstain_domains")):
            logger.warning("verdicts stay paused: serve.abstain_domains=%s; jobs/abstain.py ends it", paused)
            settings = config.serve.model_copy(update={"abstain_domains": paused})
            config = config.model_copy(update={"serve": settings})
        if live.monitoring.get("log") and not config.monitoring.log:
            logger.warning("monitoring.log=false: this ends the prediction log of the service, and deletes kept texts")
    require_known_domains(config.serve, storage)
    return deploy(config, storage)


def require_known_domains(config: ServeConfig, storage: Storage) -> None:
    """Raise ConfigError if `serve.abstain_domains` names a domain that the version to serve does not have."""
    if config.abstain_domains:
        with Registry(storage).folder(checked_version(config, storage)) as folder:
            names = bundle.read_spec(folder).calibration.named_domains
        check_names("serve.abstain_domains", config.abstain_domains, (ANY_DOMAIN, *names))


def abstain(config: Config, storage: Storage) -> dict[str, Any]:
    """Pause verdicts: answer `uncertain` for exactly the domains in `serve.abstain_domains`; replicas keep running.

    The other settings stay as deployed. Raises ConfigError for an unknown domain or without a service, ConflictError
    when another deployment has begun or ended since the settings were read, and the errors of `deploy`.
    """
    connect(storage)
    desired = desired_state(storage)
    after = desired.read()[0]
    state = desired.last_live() if is_deployed() else None
    if state is None:
        raise ConfigError(
            f"no service of {storage.root} on the cluster of RAY_ADDRESS: deploy it there with jobs/deploy.py; restart "
            "`detect-ai serve` with this setting"
        )
    changes = {"version": state.version, "abstain_domains": config.serve.abstain_domains}
    settings = state.sections["serve"].model_copy(update=changes)
    require_known_domains(settings, storage)
    sections = {**state.sections, "serve": settings}
    result = deploy(config.model_copy(update=sections), storage, state.keys, state.replicas, after)
    audit_log.record(storage, "abstain", version=state.version, domains=settings.abstain_domains)
    return {"url": result["url"], "abstain_domains": settings.abstain_domains}


def rollback_service(config: Config, storage: Storage) -> dict[str, Any]:
    """Return to the previous champion; a service on the cluster at RAY_ADDRESS follows and keeps its settings.

    Raises:
        RegistryError: there is no previous champion, or its bundle cannot be loaded: nothing has changed.
        ConfigError: the service was deployed by another release: nothing has changed.
        ConflictError: a newer publication or deployment has replaced this one.
        ResourceError: the replicas did not start: the service is as before, but the champion has changed.
    """
    state = None
    if cluster_stays():
        connect(storage)
        if is_deployed():
            state = desired_state(storage).last_live()
            if state is None:
                raise ConfigError(f"no settings of the service under {storage.root}: run jobs/deploy.py once")
            _ = state.sections  # refuses those of another release
    result = rollback(config, storage)
    if state is not None:
        config = config.model_copy(update=dict(state.sections))
        config.serve = config.serve.model_copy(update={"version": result["champion"]})
        result["deploy"] = deploy(config, storage, state.keys)
    return result


def require_place(config: ServeConfig, storage: Storage) -> None:
    """Check API keys (ConfigError) and port (ResourceError) before a long job that ends with `deploy`."""
    checked_keys(config, storage)
    if _get_global_client(raise_if_no_controller_running=False) is None:
        require_free_port(config.host, config.port)


def checked_version(config: ServeConfig, storage: Storage) -> str:
    """The version to serve. Verifies every byte of it and of the canary before the service changes.

    Raises RegistryError or BundleError; ConfigError for a version that cannot run on a GPU if `serve.use_gpu` is set.
    """
    registry = Registry(storage)
    version = config.version or registry.require_champion()
    for name in filter(None, (version, config.canary)):
        with registry.folder(name) as folder:
            bundle.require_device(bundle.read_spec(folder), "serve.use_gpu", config.use_gpu)
    return version


def start_serve(config: ServeConfig) -> bool:
    """Start Ray Serve unless it is running; returns whether it was started. Raises ResourceError for a taken port."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        running = client.http_config
        if (running.host, running.port) != (config.host, config.port):
            raise ResourceError(
                f"Ray Serve already runs on {running.host}:{running.port}, not on {config.host}:{config.port}: "
                f"give serve.host={running.host} serve.port={running.port}, or stop it with `serve shutdown`"
            )
        return False
    require_free_port(config.host, config.port)
    tracing = TracingConfig(enabled=True, exporter_import_path=config.tracing) if config.tracing else None
    serve.start(
        proxy_location="HeadOnly" if config.is_local else "EveryNode",
        http_options={
            **{"host": config.host, "port": config.port, "keep_alive_timeout_s": KEEP_ALIVE_S},
            # Longer than the timeout of a replica, because it includes the wait for a replica.
            "request_timeout_s": 2 * config.request_timeout_s,
        },
        logging_config=LoggingConfig(encoding="JSON"),
        tracing_config=tracing,
    )
    return True


def hand_over(desired: DesiredState, storage_root: str) -> None:
    """Apply the current state to Serve, again if it changes meanwhile. Does not wait for replicas."""
    number, state = desired.read()
    while state is not None:
        apply(state, storage_root)
        applied, (number, state) = number, desired.read()
        if number == applied:
            return


def apply(state: State, storage_root: str) -> None:
    """Deploy a state on Ray Serve, without waiting for replicas."""
    from serve_app.deployment import build

    app = build(state, storage_root, runtime_env())
    target = serve.RunTarget(app, name=APP, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def is_answering(config: ServeConfig, version: str) -> bool:
    """Whether all replicas run a version. Raises ResourceError when it failed to start."""
    app = serve.status().applications.get(APP)
    if app is not None and app.status == "DEPLOY_FAILED":
        messages = [app.message, *(deployment.message for deployment in app.deployments.values())]
        lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
        # The error message follows its traceback.
        reason = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no reason given")
        raise ResourceError(f"version {version} did not start: {reason}")
    return app is not None and app.status == "RUNNING" and served_version(config) == version


def runtime_env() -> dict[str, Any]:
    """Runtime environment of replicas: the job's, with `serve_app` importable and without the job's secrets.

    Ray merges a job's variables into those of its actors, so variables that are not allowed are emptied, not left out.
    """
    inherited = dict(ray.get_runtime_context().runtime_env)
    given = inherited.get("env_vars", {})
    variables = {name: value if name.startswith(ALLOWED_VARIABLES) else "" for name, value in given.items()}
    if not inherited.get("working_dir"):
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    return {**inherited, "env_vars": variables}


def served_version(config: ServeConfig) -> str | None:
    """The version that answers now, or None."""
    connection = http.client.HTTPConnection(config.url.removeprefix("http://"), timeout=5)
    with suppress(OSError, http.client.HTTPException, ValueError, KeyError):
        connection.request("GET", "/readyz")
        return str(json.loads(connection.getresponse().read())["model_version"])
    return None


def is_deployed() -> bool:
    """Whether Serve has the application; starts nothing."""
    return APP in serve.status().applications


def stop(app: bool = False, serve_too: bool = False) -> None:
    """Delete the application and shut down Serve; requests in progress are answered first."""
    if app and is_deployed():
        serve.delete(APP)
    if serve_too:
        serve.shutdown()
        stop_limiters()
