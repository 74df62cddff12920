"""What a configuration makes of a training, before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config, load_config
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.training import sweep
from detect_ai.training.data import TrainingPlan
from detect_ai.training.train import train, training_plan


@pytest.fixture
def config() -> Config:
    return load_config(["model.window=256"])


def test_the_plan_has_every_key_that_a_stream_reads(config: Config) -> None:
    changes: dict[str, Any] = {"batch_size": 24, "microbatch_size": 6, "epochs": 7, "num_workers": [2, 5]}
    changes |= {"shortest_span": 9, "class_weights": [1.0, 3.0], "attack_weight": 0.5}
    config.train = replace(config.train, **changes, compile=True, compiled_lengths=4)
    config.seed = 11
    assert training_plan(config) == TrainingPlan(
        batch_size=24,
        microbatch_size=6,
        epochs=7,
        seed=11,
        num_workers=5,
        shortest_span=9,
        class_weights=(1.0, 3.0),
        attack_weight=0.5,
        multiple=64,
    )


def test_what_a_sweep_found_best_must_go_with_the_rest(config: Config, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_json(f"runs/{config.run}/sweep.json", {"result": {"best": {"values": {"adversarial": 3.0}}}})
    config.train = replace(config.train, from_sweep=True, frozen="embeddings")
    with pytest.raises(ConfigError, match=r"train\.adversarial=3\.0: expected 0 unless train\.frozen=nothing"):
        train(config, storage)


@pytest.mark.parametrize(("free", "expected"), [(8.0, 2), (4.0, 1), (0.0, 1)])
def test_as_many_trials_run_as_fit_what_is_free_of_the_cluster(
    config: Config, monkeypatch: pytest.MonkeyPatch, free: float, expected: int
) -> None:
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0})
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": free})
    monkeypatch.setattr(ray_runtime, "can_grow", lambda: False)
    config.train.num_workers, config.train.cpus_per_worker, config.train.use_gpu = 2, 1, False
    assert sweep.concurrency(config) == expected


@pytest.mark.parametrize(("asked", "expected"), [(4, 4), (0, 1)])
def test_on_a_cluster_that_can_grow_as_many_trials_run_as_are_asked_for(
    config: Config, monkeypatch: pytest.MonkeyPatch, asked: int, expected: int
) -> None:
    """Before its workers come a cluster may have a head alone."""
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray_runtime, "can_grow", lambda: True)
    config.sweep.max_concurrent = asked
    assert sweep.concurrency(config) == expected
