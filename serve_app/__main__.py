"""Serve the champion in the foreground: python -m serve_app serve.port=8080."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence

import ray

from detect_ai.core.compose import load_config
from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.core.storage import Storage
from serve_app.deploy import deploy, require_known_domains, stop


def main(argv: Sequence[str] | None = None) -> int:
    """Deploy, print the URL, wait for Ctrl-C or SIGTERM, stop what was started. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app", description="Serve the champion in the foreground.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    parser.add_argument("--config-dir", help="directory with further configuration files")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", force=True)
    stopping = threading.Event()
    try:
        config = load_config(arguments.overrides, arguments.config_dir)
        storage = Storage(config.storage.root)
        require_known_domains(config.serve, storage)
        result = deploy(config, storage)
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its handlers
            signal.signal(number, lambda *_: stopping.set())
        version, url = result["model_version"], result["url"]
        print(f"Serving version {version} at {url} (API: {url}/docs). Press Ctrl-C to stop.", flush=True)  # noqa: T201
        stopping.wait()
        print("Stopping: requests in progress are answered first.", flush=True)  # noqa: T201
        stop(app=result["replaced"] is None, serve_too=result["started_serve"])
    except DetectAIError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 2 if isinstance(error, InputError) else 1
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
