"""Serve the champion in the foreground: python -m serve_app serve.port=8080."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from detect_ai.core.config import Config, load_config
from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.core.storage import Storage
from serve_app.deploy import deploy, stop


def main(argv: Sequence[str] | None = None) -> int:
    """Deploy, print the URL, wait for Ctrl-C or SIGTERM, stop what was started. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve_app", description="Serve the champion in the foreground.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    parser.add_argument("--config-dir", help="directory with further configuration files")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", force=True)
    try:
        return serve_until_stopped(load_config(arguments.overrides, arguments.config_dir))
    except DetectAIError as error:
        print_line(f"error: {error}", sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def serve_until_stopped(config: Config) -> int:
    """Serve until a signal arrives. Returns the exit status."""
    import ray

    stopping = threading.Event()
    result = deploy(config, Storage(config.storage.root))
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its handlers
        signal.signal(number, lambda *_: stopping.set())
    version, url = result["model_version"], result["url"]
    print_line(f"Version {version} answers at {url} (API: {url}/docs). Ctrl-C stops it.")
    stopping.wait()
    print_line("Stopping: requests in progress are answered first.")
    stop(app=result["replaced"] is None, serve_too=result["started_serve"])
    ray.shutdown()
    return 0


def print_line(text: str, stream: Any = None) -> None:
    """Print a line without buffering."""
    print(text, file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
