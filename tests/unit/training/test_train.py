from __future__ import annotations

from typing import Any

import pytest

from detect_ai.core import ray_runtime
from detect_ai.core.compose import load_config
from detect_ai.core.config import Config
from detect_ai.training.train import _omit_actors, worker_range


@pytest.mark.parametrize(
    ("workers", "cpus", "can_grow", "expected"),
    [
        ([1, 8], 4.0, False, (1, 3)),  # one CPU is left to Ray Data
        ([1, 8], 1.0, False, (1, 1)),
        ([1, 8], 4.0, True, (1, 8)),
        (2, 4.0, False, (2, 2)),
    ],
)
def test_worker_range_leaves_room_for_ray_data(
    monkeypatch: pytest.MonkeyPatch, workers: Any, cpus: float, can_grow: bool, expected: tuple[int, int]
) -> None:
    config: Config = load_config([])
    config.train.num_workers = workers
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": cpus})
    monkeypatch.setattr(ray_runtime, "can_grow", lambda: can_grow)
    assert worker_range(config) == expected


def test_single_worker_omits_actors_it_does_not_use() -> None:
    from ray.train.torch import TorchTrainer

    def started(trainer: Any) -> list[str]:
        return [type(callback).__name__ for callback in trainer._create_default_callbacks()]

    trainer: Any = TorchTrainer(lambda: None)
    before = started(trainer)
    _omit_actors(trainer)
    assert set(before) - set(started(trainer)) == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
