"""Search space of a sweep: the keys that it may vary, their values or ranges, and how a trial applies them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detect_ai.core.config import Config, check_names, parse_config
from detect_ai.core.errors import ConfigError

_TRAIN = ("lr", "batch_size", "warmup", "weight_decay")
_AUGMENTATION = ("shortest_span", "attack_weight", "adversarial")
_MODEL = ("dropout", "pooling", "layers")
PLACES = {**dict.fromkeys(_TRAIN + _AUGMENTATION, "train"), **dict.fromkeys(_MODEL, "model")}


@dataclass(frozen=True)
class Dimension:
    """Search dimension of one key: a list of values, or a range sampled log-uniformly or uniformly."""

    values: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan
    log: bool = True

    @classmethod
    def parse(cls, given: Any) -> Dimension | None:
        """The dimension in a configuration; None when it is neither a list nor a range of numbers."""
        if isinstance(given, list):
            return cls(tuple(given)) if given else None
        if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
            return None
        low, high, log = given["low"], given["high"], given.get("log", True)
        numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high))
        return cls((), low, high, log) if numbers and isinstance(log, bool) else None


def apply(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with the values of a trial; a microbatch is never larger than the batch.

    Raises:
        ConfigError: a value is impossible, alone or together with the rest.
    """
    plain = config.model_dump()
    for name, value in values.items():
        plain[PLACES[name]][name] = value
    plain["train"]["microbatch_size"] = min(plain["train"]["microbatch_size"], plain["train"]["batch_size"])
    return parse_config(plain)


def check(config: Config) -> None:
    """Refuse a space with unknown keys, malformed dimensions or values that a key cannot have. Raises ConfigError."""
    check_names("sweep.space", config.sweep.space, PLACES)
    for name, given in config.sweep.space.items():
        dimension, allowed = Dimension.parse(given), ""
        if dimension is None:
            allowed = "a list of values, or a range {low: …, high: …, log: …}"
        elif not dimension.values and config.sweep.search == "grid":
            allowed = "a list of values for sweep.search=grid"
        elif not dimension.values and not dimension.low < dimension.high:
            allowed = "low < high"
        elif not dimension.values and dimension.log and dimension.low <= 0:
            allowed = "low above 0, or log: false"
        if allowed:
            raise ConfigError(f"config: sweep.space.{name}={given}: expected {allowed}")
        for value in ends(config, name):
            apply(config, {name: value})


def ends(config: Config, name: str) -> list[Any]:
    """Every value of a dimension, or the ends of its range: what must be valid for all of it to be."""
    dimension = _dimension(config, name)
    if dimension.values:
        return list(dimension.values)
    low, high = dimension.low, dimension.high
    return [round(low), round(high)] if _is_integer(config, name) else [low, high]


def _dimension(config: Config, name: str) -> Dimension:
    dimension = Dimension.parse(config.sweep.space[name])
    assert dimension, "`check` has refused it"
    return dimension


def _is_integer(config: Config, name: str) -> bool:
    return type(getattr(getattr(config, PLACES[name]), name)) is int


def tune_space(config: Config) -> dict[str, Any]:
    """The search space in the form of Ray Tune."""
    from ray import tune

    def domain(name: str) -> Any:
        dimension = _dimension(config, name)
        if dimension.values:
            return (tune.grid_search if config.sweep.search == "grid" else tune.choice)(list(dimension.values))
        low, high = ends(config, name)
        if _is_integer(config, name):  # Tune excludes the upper end
            return (tune.lograndint if dimension.log else tune.randint)(low, high + 1)
        return (tune.loguniform if dimension.log else tune.uniform)(low, high)

    return {name: domain(name) for name in config.sweep.space}
