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
    """Deploy, print where it answers, stay until Ctrl-C or SIGTERM, stop what was started."""
    parser = argparse.ArgumentParser(prog="python -m serve_app", description="Serve the champion in the foreground.")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    parser.add_argument("--config-dir", help="a directory of your own with further options for the groups")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", force=True)
    try:
        return serve_until_stopped(load_config(arguments.overrides, arguments.config_dir))
    except DetectAIError as error:
        say(f"error: {error}", sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def serve_until_stopped(config: Config) -> int:
    """Serve until a signal comes. Returns the exit status."""
    import ray

    stopping = threading.Event()
    result = deploy(config, Storage(config.storage.root))
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own
        signal.signal(number, lambda *_: stopping.set())
    say(f"Version {result['model_version']} answers at {result['url']} (API: {result['url']}/docs). Ctrl-C stops it.")
    stopping.wait()
    say("Stopping: what is in flight is answered first.")
    stop(app=result["replaced"] is None, serve_too=result["started_serve"])
    ray.shutdown()
    return 0


def say(text: str, stream: Any = None) -> None:
    """Print a line at once."""
    print(text, file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
