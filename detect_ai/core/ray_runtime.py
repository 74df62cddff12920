"""Connect to a Ray cluster or start one on this machine; bounded waits and clear errors for missing resources."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from detect_ai.core.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from detect_ai.core.storage import Storage

logger = logging.getLogger(__name__)

# Logical CPUs of a local cluster. They only limit scheduling. Train workers, Tune trials, Ray Data tasks and Serve
# replicas each reserve one or more; with fewer CPUs, Ray Data starves next to several workers.
LOCAL_CPUS = 8
ONE_MACHINE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds everything to 127.0.0.1, not to all interfaces (Ray 2.60)
    "RAY_prestart_worker_first_driver": "0",  # prestarted workers are useless for jobs with a runtime environment
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a process in every training run
    "RAY_worker_niceness": "0",  # the default of 15 lets Ray's own processes interrupt a training
}
_without_dashboard: set[str] = set()  # addresses of clusters that this process has started
ROUNDING = 1e-3  # Ray counts resources in ten-thousandths
WAIT_SECONDS = 300  # for CPUs that other jobs use
CONNECT_SECONDS = 10  # for a TCP connection to RAY_ADDRESS


def cores() -> int:
    """Number of CPU cores that this process may use, given CPU affinity and a container's quota."""
    import joblib

    return int(joblib.cpu_count())


def connect(storage: Storage | None = None, dashboard: bool = False) -> None:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine for the lifetime of the process.

    Workers of the stage use `storage`. Sweeps and trainings with several workers need Ray's dashboard, which has ten
    processes. If this process has started a cluster without it, a call with `dashboard` starts another cluster.

    Raises ConfigError if the storage is a local folder and the cluster has several machines, or if RAY_ADDRESS is the
    address of a dashboard; ResourceError if no cluster responds there.
    """
    loaded: Any = sys.modules.get("ray")
    running = loaded is not None and loaded.is_initialized()
    if dashboard and running and loaded.get_runtime_context().gcs_address in _without_dashboard:
        _without_dashboard.clear()  # a later cluster may have the same address
        loaded.shutdown()
        running = False
    if not running:
        address = os.environ.get("RAY_ADDRESS", "")
        if address.startswith("http"):
            raise ConfigError(
                f"RAY_ADDRESS={address}: expected host:port of a cluster, found its dashboard: submit the job with "
                "`ray job submit -- python jobs/…`, or unset RAY_ADDRESS to start Ray on this machine"
            )
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # neither `auto` nor `local`
            try:  # Ray itself would retry for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
            except OSError as error:
                problem = f"no cluster answers ({error.strerror or error}). Start it, or unset RAY_ADDRESS"
                raise ResourceError(f"RAY_ADDRESS={address}: {problem}") from error
        if address:
            import ray

            ray.init(logging_level=logging.WARNING)
        else:
            _start(dashboard)
    import ray.data

    if storage and storage.is_local:
        machines = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        if len(machines) > 1:  # simulated nodes share a machine
            raise ConfigError(
                f"storage.root={storage.root}: expected a URI such as gs://bucket/folder, which every machine reads; "
                f"found a local folder, and a cluster of {len(machines)} machines ({', '.join(sorted(machines)[:3])})"
            )

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    # By default Ray Data wraps our errors in its own and loses them between processes (Ray 2.60).
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for module in ("exceptions", "_internal.execution.streaming_executor_state"):  # they log errors before raising them
        logging.getLogger(f"ray.data.{module}").addFilter(_is_below_error)


def _is_below_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


def _start(dashboard: bool) -> None:
    os.environ.update(ONE_MACHINE)  # for child processes
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # set it here too: Ray reads the variable at import
    cpus, port = max(LOCAL_CPUS, cores()), str(free_port())
    logger.info("RAY_ADDRESS is not set: starting Ray on this machine with %d logical CPUs", cpus)
    os.environ["RAY_GCS_SERVER_PORT"] = port  # where the head of the new cluster listens
    try:
        # Ray Train asks the dashboard whether a run is alive, to remove the placement groups of trials that a scheduler
        # stops (Ray 2.60).
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            logging_level=logging.WARNING,
            # Without RAY_ADDRESS, Ray Train's placement group cleaner asks the cluster that `ray start` started last
            # on this machine whether the run is alive, and may end the run (Ray 2.60).
            runtime_env={"env_vars": {"RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}},
        )
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        problem = "the path of the temporary folder is too long for Ray's sockets: set RAY_TMPDIR=/tmp"
        raise ResourceError(f"{problem} ({error})") from error
    finally:
        del os.environ["RAY_GCS_SERVER_PORT"]
    if not dashboard:
        _without_dashboard.add(ray.get_runtime_context().gcs_address)


def require_resources(what: str, cpus: float, gpus: float = 0, **custom: float) -> None:
    """Wait up to `WAIT_SECONDS` for resources that others use. Raises ResourceError if there are too few by then.

    It raises at once if the cluster's total is too small. `custom` are custom resources of nodes, by name.
    """
    import ray

    if can_grow():
        return
    until, logged = time.monotonic() + WAIT_SECONDS, False
    needs = [("CPU", cpus, f"--num-cpus={cpus:g}"), ("GPU", gpus, f"--num-gpus={gpus:g}")]
    needs += [(name, amount, f"--resources='{{\"{name}\": {amount:g}}}'") for name, amount in custom.items()]
    for name, needed, flag in needs:
        total = ray.cluster_resources().get(name, 0.0)
        if needed > total:
            raise ResourceError(
                f"{what} needs {needed:g} {name}s, the cluster has {total:g}: {needed - total:g} missing. "
                f"Lower the number of workers, or start Ray with {flag}"
            )
        while (free := ray.available_resources().get(name, 0.0)) < needed - ROUNDING:
            busy = f"{what} needs {needed:g} {name}s, {free:g} of the cluster's {total:g} are free"
            if time.monotonic() > until:
                raise ResourceError(f"{busy}: stop other jobs (see `ray status`), or lower the number of workers")
            if not logged and time.monotonic() > until - WAIT_SECONDS + 5:
                logger.info("%s: waiting for up to %d s", busy, WAIT_SECONDS)
                logged = True
            time.sleep(0.2)


@contextmanager
def claimed(name: str, refusal: str) -> Iterator[None]:
    """Hold a name on the connected cluster inside the block; the end of this process also releases it.

    Raises ResourceError, whose message begins with `refusal`, if another job holds the name.
    """
    import ray

    class Claim:
        def held(self) -> bool:
            return True

    options = {"name": name, "namespace": "detect_ai", "num_cpus": 0, "lifetime": None}
    try:
        claim: Any = ray.remote(Claim).options(**options).remote()
    except ValueError as error:  # the name is taken
        raise ResourceError(f"{refusal}: wait until it ends, or stop it (`ray job list`, `ray job stop`)") from error
    try:
        ray.get(claim.held.remote())
        yield
    finally:
        ray.kill(claim)


def can_grow() -> bool:
    """Whether the connected cluster has an autoscaler that may add nodes; Ray 2.60 has no API for this."""
    return os.environ.get("DETECT_AI_AUTOSCALES") == "1"


def require_free_port(host: str, port: int) -> None:
    """Raise ResourceError if another process listens on the port, or the host is not an address of this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            advice = {
                errno.EADDRINUSE: "stop the process that uses it, or change serve.port",
                errno.EACCES: "take a serve.port of 1024 or more",
            }.get(error.errno or 0, "expected a serve.host that is an address of this machine, such as 127.0.0.1")
            raise ResourceError(f"port {port} on {host}: {error.strerror}: {advice}") from error


def free_port() -> int:
    """A currently unused TCP port on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
