import re
from typing import Any

import pytest

from detect_ai.core.compose import load_config
from detect_ai.core.errors import ConfigError
from detect_ai.training import search_space


@pytest.mark.parametrize(
    ("search", "name", "given", "expected"),
    [
        ("random", "epochs", [1], "expected one of lr"),
        ("random", "lr", [], "expected a list of values, or a range"),
        ("random", "lr", {"low": 1e-5}, "expected a list of values, or a range"),
        ("random", "lr", {"low": 1e-5, "high": "1"}, "expected numbers"),
        ("random", "lr", {"low": 1e-4, "high": 1e-5}, "expected low < high"),
        ("random", "warmup", {"low": 0, "high": 0.3}, "expected low above 0, or log: false"),
        ("random", "warmup", {"low": 0, "high": 1, "log": False}, "train.warmup=1"),
        ("random", "pooling", ["mean", "median"], "model.pooling=median"),
        ("grid", "lr", {"low": 1e-5, "high": 1e-4}, "expected a list of values for sweep.search=grid"),
    ],
)
def test_impossible_search_space_is_refused(search: str, name: str, given: Any, expected: str) -> None:
    config = load_config([])
    config.sweep.search, config.sweep.space = search, {name: given}
    with pytest.raises(ConfigError, match=re.escape(expected)):
        search_space.check(config)


def test_space_of_ray_tune_samples_within_bounds() -> None:
    config = load_config([])
    config.sweep.space = {"batch_size": {"low": 4, "high": 5.2}, "warmup": {"low": 0, "high": 0.3, "log": False}}
    search_space.check(config)
    space = search_space.tune_space(config)
    drawn = [{name: domain.sample() for name, domain in space.items()} for _ in range(100)]
    assert {values["batch_size"] for values in drawn} == {4, 5}
    assert 0 <= min(v["warmup"] for v in drawn) < 0.1 < 0.2 < max(v["warmup"] for v in drawn) <= 0.3
    assert search_space.apply(config, drawn[0]).train.microbatch_size == 4
