"""Run one stage as a job: configuration in, one JSON result under the storage root and as the last line out."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from detect_ai import __version__
from detect_ai.core.config import Config, load_config
from detect_ai.core.errors import ConfigError, DetectAIError, InputError, redact_row, unwrap_ray_error
from detect_ai.core.storage import Storage

logger = logging.getLogger(__name__)

Stage = Callable[[Config, Storage], dict[str, Any]]


def run_job(
    name: str,
    stage: Stage,
    argv: Sequence[str] | None = None,
    result_name: Callable[[Config], str] | None = None,
    settle: Callable[[Config, Sequence[str]], None] | None = None,
) -> int:
    """Run a stage from command line arguments.

    Args:
        name: of the stage.
        stage: the function to run.
        argv: arguments; those of the process when None.
        result_name: name of the result, if it is not that of the stage.
        settle: adjusts or refuses the configuration, given the overrides of the command line.

    Returns:
        0 after printing the result as one JSON line; after one `error:` line 2 for bad input, 1 for everything else.
        `--verbose` prints the traceback.
    """
    arguments = _arguments(name, stage, sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = load_config(arguments.overrides, arguments.config_dir)
        if settle:
            settle(config, arguments.overrides)
        storage = Storage(config.storage.root)
        config.storage.root = storage.root  # absolute: workers have other working directories
        result = run_stage(result_name(config) if result_name else name, stage, config, storage)
    except Exception as error:
        if arguments.verbose:
            traceback.print_exc()
        cause = unwrap_ray_error(error)
        print(f"error: {_describe(cause, arguments.verbose)}", file=sys.stderr, flush=True)  # noqa: T201
        return 2 if isinstance(cause, InputError) else 1
    _leave_cluster()
    print(json.dumps(result), flush=True)  # noqa: T201
    return 0


def _leave_cluster() -> None:
    """Disconnect, so that no worker output follows the result."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def run_stage(name: str, stage: Stage, config: Config, storage: Storage) -> dict[str, Any]:
    """Run a stage and save its result with the resolved configuration under `runs/<run>/`."""
    logger.info("%s: started (run %s, storage %s)", name, config.run, storage.root)
    started = time.time()
    result = stage(config, storage)
    logger.info("%s: done in %.0f s", name, time.time() - started)
    record = {
        "stage": name,
        "run": config.run,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "detect_ai": __version__,
        "result": result,
        "config": config.to_dict(),
    }
    storage.write_json(result_key(config.run, name), record)
    return result


def result_key(run: str, stage: str) -> str:
    """Key of the result of a stage."""
    return f"runs/{run}/{stage}.json"


def read_result(storage: Storage, run: str, stage: str) -> dict[str, Any]:
    """The result of an earlier stage of the same run.

    Raises:
        ConfigError: the stage has not run yet under this run name.
    """
    try:
        record = storage.read_json(result_key(run, stage))
    except FileNotFoundError:
        raise ConfigError(
            f"run={run}: no result of '{stage}' under {storage.root}: run `python jobs/{stage}.py run={run}` first"
        ) from None
    result: dict[str, Any] = record["result"]
    return result


def attempt(kind: str) -> str:
    """A new name for a run; with a name used before, Ray Train would restore the old run."""
    return f"{kind}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')[:-3]}"


def _describe(error: BaseException, verbose: bool) -> str:
    lines = redact_row(str(error)).strip().splitlines() or [""]
    if isinstance(error, DetectAIError):
        return lines[0]
    hint = "" if verbose else " (--verbose shows the traceback)"
    return f"{type(error).__name__}: {lines[-1].strip()}{hint}"


def _arguments(name: str, stage: Stage, argv: Sequence[str]) -> argparse.Namespace:
    summary = (stage.__doc__ or "").strip().split("\n")[0]
    parser = argparse.ArgumentParser(
        prog=f"python jobs/{name}.py",
        description=summary,
        epilog="Overrides are Hydra's: train.lr=3e-5 model=distilbert. All keys: detect_ai/core/config.py.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the configuration")
    parser.add_argument("--config-dir", help="a directory with further options for the groups")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    return parser.parse_intermixed_args(list(argv))
