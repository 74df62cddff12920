"""A Ray cluster on this machine, on loopback with token authentication, independent of any other cluster.

It uses free ports and a folder of its own; stopping it ends only its own processes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from detect_ai.core.errors import ResourceError
from detect_ai.core.ray_runtime import LOCAL_CPUS, ONE_MACHINE, cores, free_port

START_SECONDS = 90
STOP_SECONDS = 5  # then SIGKILL: after actors have run, a raylet takes 30 s to stop (Ray 2.60)


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster.

    Attributes:
        pid: of its main process; ending it ends the cluster.
        address: of the dashboard, for `ray job submit --address`.
        agent: URL that answers when jobs can run.
        folder: logs, sockets and the token; deleted when the cluster stops.
        environment: variables that a client process needs.
    """

    pid: int
    address: str
    agent: str
    folder: Path
    environment: dict[str, str]

    @classmethod
    def start(cls, num_cpus: int | None = None, object_store_bytes: int | None = None) -> LocalCluster:
        """Start a cluster and wait until it takes jobs.

        Args:
            num_cpus: logical ones; `LOCAL_CPUS` or those of the machine when None.
            object_store_bytes: shared memory for objects; Ray's default when None.

        Raises:
            ResourceError: it did not start; the message contains the end of its log.
        """
        folder = Path(tempfile.mkdtemp(prefix="dai-", dir="/tmp"))  # socket paths must stay short
        port, dashboard, agent = free_port(), free_port(), free_port()
        environment = _environment(folder) | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={free_port()}"),
            f"--num-cpus={num_cpus or max(LOCAL_CPUS, cores())}",
            *([f"--object-store-memory={object_store_bytes}"] if object_store_bytes else []),
        ]
        with (folder / "start.log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                env={k: v for k, v in environment.items() if k != "RAY_ADDRESS"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        health = f"http://127.0.0.1:{agent}/api/local_raylet_healthz"
        cluster = cls(process.pid, f"http://127.0.0.1:{dashboard}", health, folder, environment)
        try:
            cluster._wait(process)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if process.poll() is not None:
                break
            if self._takes_jobs():
                return
            time.sleep(0.5)
        tail = (self.folder / "start.log").read_text(errors="replace").strip().splitlines()[-5:]
        ended = process.poll() is not None
        problem = "Ray ended while it started" if ended else f"no Ray cluster after {START_SECONDS} s"
        raise ResourceError(f"{problem}: {' | '.join(tail)}")

    def _takes_jobs(self) -> bool:
        """Whether a node is alive and its agent, which runs jobs, answers."""
        return '"ALIVE"' in self._get(f"{self.address}/nodes?view=summary") and bool(self._get(self.agent))

    def _get(self, url: str) -> str:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                return str(answer.read().decode())
        except OSError:
            return ""

    def stop(self) -> None:
        """End the processes of this cluster and delete its folder."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)  # `ray start --block` ends what it started
        until = time.monotonic() + STOP_SECONDS
        while _runs(self.pid) and time.monotonic() < until:
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    """Start a cluster, print the variables for clients, and stop it at Ctrl-C."""
    cluster = LocalCluster.start()
    variables = {"RAY_ADDRESS": cluster.address} | {
        name: cluster.environment[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    }
    print("A Ray cluster on this machine, until Ctrl-C. In another shell:", flush=True)  # noqa: T201
    print("export " + " ".join(f"{name}={value}" for name, value in variables.items()), flush=True)  # noqa: T201
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        cluster.stop()


def _runs(pid: int) -> bool:
    """Whether a process is running; reaps it otherwise."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:  # not a child of this process
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False


def _environment(folder: Path) -> dict[str, str]:
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # RAY_AUTH_TOKEN would override the token file.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    return {**inherited, **ours, **ONE_MACHINE}


if __name__ == "__main__":
    main()
