"""Run one stage as a job: configuration in, one JSON result out, under the storage root and as the last line."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from detect_ai import __version__
from detect_ai.core.compose import load_config
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, DetectAIError, InputError, unwrap_ray_error
from detect_ai.core.storage import Storage, storage_error

logger = logging.getLogger(__name__)

Stage = Callable[[Config, Storage], dict[str, Any]]


def run_job(
    name: str,
    stage: Stage,
    argv: Sequence[str] | None = None,
    result_name: Callable[[Config], str] | None = None,
    settle: Callable[[Config, Sequence[str]], None] | None = None,
    flags: Mapping[str, tuple[str, str]] | None = None,
) -> int:
    """Run a stage with command line arguments (None: those of the process).

    `result_name` returns the name of the result if it differs from the name of the stage. `settle` adjusts or rejects
    the configuration, given the overrides of the command line. `flags` maps each option that stands for an override to
    that override and a help text.

    Returns:
        0 after printing the result as one JSON line; after one `error:` line, 2 for bad input and 1 for other errors.
    """
    parser = argparse.ArgumentParser(
        prog=f"python jobs/{name}.py",
        description=(stage.__doc__ or "").strip().split("\n")[0],
        epilog="Overrides are Hydra's: train.lr=3e-5 model=distilbert. All keys: detect_ai/core/config.py.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    parser.add_argument("--config-dir", help="a directory with further options for the groups")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    for flag, (override, text) in (flags or {}).items():
        parser.add_argument(flag, dest="flags", action="append_const", const=override, default=[], help=text)
    arguments = parser.parse_intermixed_args(argv)
    overrides = [*arguments.overrides, *getattr(arguments, "flags", [])]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = load_config(overrides, arguments.config_dir)
        if settle:
            settle(config, overrides)
        storage = Storage(config.storage.root)
        config.storage.root = storage.root  # absolute: workers have other working directories
        result = run_stage(result_name(config) if result_name else name, stage, config, storage)
    except Exception as error:
        if arguments.verbose:
            traceback.print_exc()
        cause = unwrap_ray_error(error)
        if isinstance(cause, shutil.Error):  # from copying a folder: a list of files with their errors
            cause = OSError(cause.args[0][-1][-1])
        if isinstance(cause, OSError):
            cause = storage_error(cause) or cause
        # Errors must not contain document text, but parsers quote a row or a value.
        message = re.sub(r"(columns, got \d+|invalid value)\b.*", r"\1", str(cause), flags=re.DOTALL)
        lines = message.strip().splitlines() or [""]
        hint = "" if arguments.verbose else " (--verbose shows the traceback)"
        shown = lines[0] if isinstance(cause, DetectAIError) else f"{type(cause).__name__}: {lines[-1].strip()}{hint}"
        print(f"error: {shown}", file=sys.stderr, flush=True)  # noqa: T201
        return 2 if isinstance(cause, InputError) else 1
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()  # so that no worker output follows the result
    print(json.dumps(result), flush=True)  # noqa: T201
    return 0


def run_stage(name: str, stage: Stage, config: Config, storage: Storage) -> dict[str, Any]:
    """Run a stage and save its result with the resolved configuration under `runs/<run>/`."""
    logger.info("%s: started (run %s, storage %s)", name, config.run, storage.root)
    started = time.time()
    result = stage(config, storage)
    seconds = time.time() - started
    logger.info("%s: done in %.0f s", name, seconds)
    record = {
        "stage": name,
        "run": config.run,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "detect_ai": __version__,
        "result": result,
        "config": config.model_dump(),
    }
    storage.write_json(result_key(config.run, name), record)
    return result


def result_key(run: str, stage: str) -> str:
    """Key of the result of a stage."""
    return f"runs/{run}/{stage}.json"


def read_result(storage: Storage, run: str, stage: str) -> dict[str, Any]:
    """The result of an earlier stage of the same run. Raises ConfigError if it has not run under this run name."""
    try:
        result: dict[str, Any] = storage.read_json(result_key(run, stage))["result"]
    except FileNotFoundError:
        command = f"python jobs/{stage}.py run={run}"
        raise ConfigError(f"run={run}: no result of '{stage}' under {storage.root}: run `{command}` first") from None
    return result


def attempt(kind: str) -> str:
    """A new name for an attempt. With an already used name, Ray Train would restore the old run."""
    return f"{kind}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')[:-3]}"
