"""Search space of a sweep: the configuration keys to vary, their values or ranges, and how a trial applies them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from detect_ai.core.compose import parse_config
from detect_ai.core.config import Config, check_names
from detect_ai.core.errors import ConfigError

_TRAIN = ("lr", "batch_size", "warmup", "weight_decay", "shortest_span", "attack_weight")
_MODEL = ("dropout", "pooling", "layers")
PLACES = {**dict.fromkeys(_TRAIN, "train"), **dict.fromkeys(_MODEL, "model")}


def apply(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with the values of a trial; a microbatch is never larger than the batch.

    Raises ConfigError if a value is impossible, alone or together with the rest.
    """
    plain = config.model_dump()
    for name, value in values.items():
        plain[PLACES[name]][name] = value
    plain["train"]["microbatch_size"] = min(plain["train"]["microbatch_size"], plain["train"]["batch_size"])
    return parse_config(plain)


def check(config: Config) -> None:
    """Raise ConfigError for a space with unknown keys, malformed dimensions or values that a key cannot have."""
    check_names("sweep.space", config.sweep.space, PLACES)
    for name, given in config.sweep.space.items():
        if expected := _expected(given, config.sweep.search):
            raise ConfigError(f"config: sweep.space.{name}={given}: expected {expected}")
        for value in given if isinstance(given, list) else _ends(config, name):  # valid ends imply a valid range
            apply(config, {name: value})


def _expected(given: Any, search: str) -> str:
    """The expected form of a dimension; empty if it is well-formed."""
    if isinstance(given, list) and given:
        return ""
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        return "a list of values, or a range {low: …, high: …, log: …}"
    low, high, log = given["low"], given["high"], given.get("log", True)
    if not isinstance(log, bool) or not all(isinstance(n, int | float) and math.isfinite(n) for n in (low, high)):
        return "numbers as low and high, true or false as log"
    if search == "grid":
        return "a list of values for sweep.search=grid"
    if low >= high:
        return "low < high"
    return "low above 0, or log: false" if log and low <= 0 else ""


def _ends(config: Config, name: str) -> list[Any]:
    """The ends of a range: integers for an integer key, else floats."""
    given, is_integer = config.sweep.space[name], type(getattr(getattr(config, PLACES[name]), name)) is int
    return [round(end) if is_integer else float(end) for end in (given["low"], given["high"])]


def tune_space(config: Config) -> dict[str, Any]:
    """The search space in Ray Tune's format."""
    from ray import tune

    space: dict[str, Any] = {}
    for name, given in config.sweep.space.items():
        if isinstance(given, list):
            space[name] = (tune.grid_search if config.sweep.search == "grid" else tune.choice)(given)
            continue
        low, high = _ends(config, name)
        log = given.get("log", True)
        if isinstance(high, int):  # Tune excludes the upper end
            space[name] = (tune.lograndint if log else tune.randint)(low, high + 1)
        else:
            space[name] = (tune.loguniform if log else tune.uniform)(low, high)
    return space
