"""Deploy the champion on a Ray cluster of its own until SIGTERM: `deployed.py STORAGE_ROOT PORT [key=value …]`."""

from __future__ import annotations

import signal
import subprocess
import sys

from material import CHECKOUT

from detect_ai.core.local_cluster import LocalCluster


def main(root: str, port: str, *overrides: str) -> int:
    """Start the cluster, deploy, wait. Returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = LocalCluster()
    try:
        command = [sys.executable, "jobs/deploy.py", f"storage.root={root}", f"serve.port={port}", *overrides]
        code = subprocess.run(command, cwd=CHECKOUT, env=cluster.environment, check=False).returncode
        if code == 0:
            signal.pause()
        return code
    except KeyboardInterrupt:
        return 0
    finally:
        cluster.stop()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
