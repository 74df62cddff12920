"""The search space of a sweep: which keys of a configuration it varies, over what, and a configuration with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detect_ai.core.config import Config, SweepConfig, check_names, parse_config
from detect_ai.core.errors import ConfigError

_TRAIN = ("lr", "batch_size", "warmup", "decay", "weight_decay", "max_grad_norm", "label_smoothing", "frozen")
_AUGMENTATION = ("shortest_span", "attack_weight", "adversarial")
_MODEL = ("dropout", "attention_dropout", "pooling", "layers")
PLACES = {**dict.fromkeys(_TRAIN + _AUGMENTATION, "train"), **dict.fromkeys(_MODEL, "model")}


@dataclass(frozen=True)
class Dimension:
    """What a sweep tries for one key: values, or else a range."""

    values: tuple[Any, ...] = ()
    low: float = math.nan
    high: float = math.nan
    log: bool = True

    @classmethod
    def of(cls, given: Any) -> Dimension | None:
        """The dimension that a configuration means; none when it is neither a list nor a range of numbers."""
        if isinstance(given, list):
            return cls(tuple(given)) if given else None
        if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
            return None
        low, high, log = given["low"], given["high"], given.get("log", True)
        numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high))
        return cls((), low, high, log) if numbers and isinstance(log, bool) else None


def apply(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with values of a trial in it; a microbatch is never larger than the batch.

    Raises:
        ConfigError: a value is impossible, alone or together with the rest.
    """
    plain = config.to_dict()
    for name, value in values.items():
        plain[PLACES[name]][name] = value
    plain["train"]["microbatch_size"] = min(plain["train"]["microbatch_size"], plain["train"]["batch_size"])
    return parse_config(plain)


def check(config: Config) -> None:
    """Refuse a space with unknown keys, malformed dimensions or values that a key cannot have. Raises ConfigError."""
    check_names("sweep.space", config.sweep.space, PLACES)
    for name, given in config.sweep.space.items():
        found = Dimension.of(given)
        if found is None:
            allowed = "a list of values, or a range {low: …, high: …, log: …}"
        elif found.values:
            allowed = ""
        elif config.sweep.search == "grid":
            allowed = "a list of values for sweep.search=grid"
        elif not found.low < found.high:
            allowed = "low < high"
        else:
            allowed = "low above 0, or log: false" if found.log and found.low <= 0 else ""
        if allowed:
            raise ConfigError(f"config: sweep.space.{name}={given}: expected {allowed}")
        for value in ends(config, name):
            apply(config, {name: value})


def count(sweep: SweepConfig) -> int:
    """Trials that a sweep makes."""
    return math.prod(map(len, sweep.space.values())) if sweep.search == "grid" else sweep.trials


def ends(config: Config, name: str) -> list[Any]:
    """What must be possible for a key if all that a sweep tries for it is: every value, or the ends of the range."""
    found = Dimension.of(config.sweep.space[name])
    assert found
    if found.values:
        return list(found.values)
    return [round(found.low), round(found.high)] if _is_integer(config, name) else [found.low, found.high]


def _is_integer(config: Config, name: str) -> bool:
    return type(getattr(getattr(config, PLACES[name]), name)) is int


def tune_space(config: Config) -> dict[str, Any]:
    """The space as Ray Tune takes it."""
    from ray import tune

    def domain(name: str) -> Any:
        found = Dimension.of(config.sweep.space[name])
        assert found
        if found.values:
            return (tune.grid_search if config.sweep.search == "grid" else tune.choice)(list(found.values))
        low, high = ends(config, name)
        if _is_integer(config, name):  # Tune leaves the upper end out
            return (tune.lograndint if found.log else tune.randint)(low, high + 1)
        return (tune.loguniform if found.log else tune.uniform)(low, high)

    return {name: domain(name) for name in config.sweep.space}
