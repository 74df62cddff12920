"""The search space of a sweep: which keys of a configuration it varies, over what, and a configuration with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from detect_ai.core.config import Config, ModelConfig, SweepConfig, TrainConfig
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
        ConfigError: a value is of the wrong type.
    """
    by_place: dict[str, dict[str, Any]] = {"train": {}, "model": {}}
    for name, value in values.items():
        by_place[PLACES[name]][name] = value
    train, model = (_with(getattr(config, place), place, found) for place, found in by_place.items())
    train.microbatch_size = min(train.microbatch_size, train.batch_size)
    return replace(config, train=train, model=model)


def _with(part: TrainConfig | ModelConfig, place: str, values: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(part), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: sweep.space: {place}: {str(error).splitlines()[0]}") from error


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
