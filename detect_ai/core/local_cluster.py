"""A Ray cluster on this machine, on loopback with token authentication, independent of any other cluster.

It uses free ports and a separate folder; stopping it ends only its own processes.
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
from pathlib import Path

from detect_ai.core.errors import ResourceError
from detect_ai.core.ray_runtime import LOCAL_CPUS, ONE_MACHINE, cores, free_port

START_SECONDS = 90
STOP_SECONDS = 5  # then SIGKILL: after actors have run, a raylet takes 30 s to stop (Ray 2.60)


class LocalCluster:
    """A cluster that accepts jobs once the constructor returns. `options` are for `ray start`. Raises ResourceError.

    Attributes:
        pid: process id of its main process; ending it ends the cluster.
        address: URL of the dashboard, for `ray job submit --address`.
        folder: logs, sockets and the token; deleted when the cluster stops.
        environment: variables that a client process needs.
    """

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dai-", dir="/tmp"))  # socket paths must stay short
        port, dashboard, agent = free_port(), free_port(), free_port()
        self.address, self._agent = f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{agent}"
        self._token = secrets.token_hex(32)
        token_file = self.folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(self._token)
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)} | ONE_MACHINE
        environment |= {"RAY_TMPDIR": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0"}
        # `python` in a submitted job is this interpreter, also if its environment is not activated.
        environment["PATH"] = os.pathsep.join(filter(None, (str(Path(sys.executable).parent), os.environ.get("PATH"))))
        for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):  # the token would override the token file
            environment.pop(name, None)
        self.environment = environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={free_port()}"),
            *(f"--num-cpus={max(LOCAL_CPUS, cores())}", *options),
        ]
        with (self.folder / "start.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        until = time.monotonic() + START_SECONDS
        try:
            while not self.takes_jobs():
                ended = self._process.poll() is not None
                if ended or time.monotonic() > until:
                    tail = (self.folder / "start.log").read_text(errors="replace").strip().splitlines()[-5:]
                    problem = "Ray ended while it started" if ended else f"no Ray cluster after {START_SECONDS} s"
                    raise ResourceError(f"{problem}: {' | '.join(tail)}")
                time.sleep(0.5)
        except BaseException:
            self.stop()
            raise

    def takes_jobs(self) -> bool:
        """Whether a node is alive and its agent, which runs jobs, responds."""
        answers = []
        for url in (f"{self.address}/nodes?view=summary", f"{self._agent}/api/local_raylet_healthz"):
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._token}"})  # noqa: S310
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - loopback
                    answers.append(answer.read().decode())
            except OSError:
                return False
        return '"ALIVE"' in answers[0] and bool(answers[1])

    def stop(self) -> None:
        """End the processes of this cluster and delete its folder."""
        self._process.terminate()  # `ray start --block` ends its child processes
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        # HAProxy (on Linux only) is in the session, but in a group of its own, and outlives Ray (2.60).
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(path.name)) == self.pid:
                    os.kill(int(path.name), signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    """Start a cluster, print the variables for clients, and stop it at Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # first: an interrupted start also stops its processes
    cluster = LocalCluster()
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    variables = {"RAY_ADDRESS": cluster.address} | {name: cluster.environment[name] for name in names}
    print("A Ray cluster on this machine, until Ctrl-C. In another shell:", flush=True)  # noqa: T201
    print("export " + " ".join(f"{name}={value}" for name, value in variables.items()), flush=True)  # noqa: T201
    try:
        signal.pause()
    except KeyboardInterrupt:
        cluster.stop()


if __name__ == "__main__":
    main()
