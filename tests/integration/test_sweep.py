"""The sweep on a real cluster: all trials in a table, the best named, everything free afterwards."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.util import placement_group_table

from detect_ai.config import SweepConfig
from detect_ai.sweep import concurrency, sweep
from tests.integration.conftest import Run

FAILS = 1e30  # a learning rate that no loss survives


@pytest.fixture(scope="module")
def swept(run: Run) -> dict[str, Any]:
    """Three learning rates, one of which cannot work."""
    config = replace(run.config, sweep=SweepConfig(search="grid", lrs=[1e-5, 1e-2, FAILS], epochs=1))
    return sweep(config, run.storage)


def test_every_learning_rate_is_tried_once(swept: dict[str, Any]) -> None:
    assert sorted(trial["lr"] for trial in swept["trials"]) == [1e-5, 1e-2, FAILS]


def test_the_best_trial_is_named_with_its_checkpoint(swept: dict[str, Any], run: Run) -> None:
    finished = [trial for trial in swept["trials"] if trial["error"] is None]
    assert swept["best"]["auroc"] == max(trial["auroc"] for trial in finished)
    assert run.storage.exists(f"{swept['best']['checkpoint']}/model.safetensors")


def test_a_trial_that_diverges_is_recorded_and_does_not_end_the_sweep(swept: dict[str, Any]) -> None:
    failed = [trial for trial in swept["trials"] if trial["error"] is not None]
    assert [trial["lr"] for trial in failed] == [FAILS]
    assert len(swept["trials"]) == 3


def test_resources_are_free_after_a_sweep(swept: dict[str, Any]) -> None:
    until = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < until:
        time.sleep(0.2)
    assert ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]
    assert not [group for group in placement_group_table().values() if group["state"] == "CREATED"]


def test_as_many_trials_run_at_once_as_fit(run: Run) -> None:
    assert concurrency(run.config) == int(ray.cluster_resources()["CPU"] // 3.1)
    limited = replace(run.config, sweep=replace(run.config.sweep, max_concurrent=1))
    assert concurrency(limited) == 1
