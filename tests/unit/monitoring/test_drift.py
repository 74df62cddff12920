from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai.core.config import Config, DriftConfig
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.registry import Registry
from detect_ai.monitoring import drift as module
from detect_ai.monitoring.drift import DriftWatch, drift
from detect_ai.monitoring.prediction_log import RowLog
from tests.fixtures import tiny_models

WINDOW = 40


@pytest.fixture
def storage(tmp_path: Path, tiny_bundle: Path) -> Storage:
    """With the tiny bundle as champion."""
    storage = Storage(str(tmp_path))
    registry = Registry(storage)
    registry.set_champion(registry.add(tiny_bundle))
    return storage


def config(storage: Storage, **changes: Any) -> Config:
    own = Config()
    own.storage.root = storage.root
    own.monitoring.drift = DriftConfig(window=WINDOW, **changes)
    return own


def log_texts(storage: Storage, version: str, windows: int, num_tokens: int = 64, shift: float = 0.0) -> None:
    """Texts like those of the tiny bundle's calibration, or longer or with other scores."""
    log = RowLog(storage, "predictions", 99, 10**9)
    rng, now = np.random.default_rng(0), datetime.now(UTC)
    for i in range(windows * WINDOW):
        row = {"time": now + timedelta(milliseconds=i), "request_id": str(i), "index": 0, "model_version": version}
        score = rng.normal(0, 0.1) + 0.1 * (i % 2) - 0.05 + shift
        log.append([{**row, "score": score, "num_tokens": num_tokens, "reasons": ["between_thresholds"]}])
    log.flush()


def test_the_log_is_compared_window_by_window(storage: Storage) -> None:
    version = Registry(storage).require_champion()
    log_texts(storage, version, windows=2, shift=5.0)
    result = drift(config(storage), storage)
    assert (result["num_windows"], result["num_alarms"]) == (2, 2)
    assert "scores" in result["alarms"]
    page = storage.read_bytes(result["report"]).decode()
    assert result["sentences"][0] in page
    assert "data:image/svg+xml" in page


def test_days_of_the_log_may_be_the_reference(storage: Storage) -> None:
    version, today = Registry(storage).require_champion(), datetime.now(UTC).date()
    log_texts(storage, version, windows=2, shift=5.0)
    with pytest.raises(ConfigError, match="0 texts"):  # all of them are the reference
        drift(config(storage, reference=f"{today}/{today}"), storage)
    with pytest.raises(InputError, match="0 texts of the reference"):
        drift(config(storage, reference="2020-01-01/2020-01-02"), storage)
    with pytest.raises(ConfigError, match="2026-11-01/2026-11-14"):
        drift(config(storage, reference="yesterday"), storage)


def test_texts_of_other_versions_are_left_out(storage: Storage) -> None:
    log_texts(storage, "other", windows=2)
    with pytest.raises(ConfigError, match="0 texts"):
        drift(config(storage), storage)


def write_texts(path: Path) -> str:
    rng = random.Random(0)
    rows = [
        {"text": tiny_models.text(kind, rng, 100), "label": label, "domain": kind}
        for label, kind in enumerate(("human", "ai"))
        for _ in range(60)
    ]
    return str(tiny_models.write_jsonl(path / "texts.jsonl", rows))


def test_a_replay_tells_what_is_noticed(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEEDS", 4)
    own = config(storage, simulate=["domain", "length"])
    own.data = write_texts(tmp_path)
    rows = {(row["from"], row["to"]): row for row in drift(own, storage)["replays"]}
    assert len(rows) == 8
    changed, same = rows["human", "ai"], rows["human", "human"]
    assert changed["noticed"] == 1
    assert changed["quantile_90"] <= 5 * WINDOW
    assert (same["fpr"] is None, same["tpr"] is None) == (False, True)
    assert rows["as they are", f"first {module.SHORT_WORDS} words"]["quantile_90"] == WINDOW


def test_a_replay_needs_two_values(storage: Storage, tmp_path: Path) -> None:
    own = config(storage, simulate=["generator"])
    own.data = write_texts(tmp_path)
    with pytest.raises(InputError, match="simulate=generator"):
        drift(own, storage)


def test_quantiles_count_replays_without_an_alarm() -> None:
    assert module._summary([100, None, 200, None]) == {"noticed": 0.5, "median": 200, "quantile_90": None}


def test_the_service_reports_drift(tiny_bundle: Path, tmp_path: Path) -> None:
    spec, storage, found = read_spec(tiny_bundle), Storage(str(tmp_path)), {}

    def record(metric: str, value: float = 1, **labels: str) -> None:
        found[metric, labels.get("signal", "")] = value

    watch = DriftWatch(storage, spec, DriftConfig(window=40), record)
    own = {"score": 9.0, "num_tokens": 5, "reasons": [], "nearest_domain": None, "sketch": None}
    watch.add([{**own, "model_version": "canary"}] * 40)
    assert found == {}
    watch.add([{**own, "model_version": spec.version}] * 39)
    assert found == {}
    watch.add([{**own, "model_version": spec.version}])
    assert (found["drift_alarm", "scores"], found["drift_alarm", "lengths"]) == (1, 1)
    (name,) = storage.list("monitoring/drift")
    alarm = json.loads(storage.read_bytes(f"monitoring/drift/{name}"))
    assert set(alarm["alarms"]) >= {"scores", "lengths"}
    assert (alarm["texts"], alarm["model_version"]) == (40, spec.version)


def test_a_window_larger_than_the_calibration_switches_drift_off(tiny_bundle: Path, tmp_path: Path) -> None:
    spec, storage = read_spec(tiny_bundle), Storage(str(tmp_path))
    watch = DriftWatch(storage, spec, DriftConfig(window=81), lambda *_, **__: pytest.fail("nothing to report"))
    watch.add([{"model_version": spec.version}] * 200)
    assert storage.list("monitoring/drift") == []


def test_the_last_comparison_is_reported_again(tiny_bundle: Path, tmp_path: Path) -> None:
    spec, found = read_spec(tiny_bundle), []
    watch = DriftWatch(Storage(str(tmp_path)), spec, DriftConfig(window=40), lambda name, *_, **__: found.append(name))
    own = {"score": 9.0, "num_tokens": 5, "reasons": [], "nearest_domain": None, "sketch": None}
    watch.add([{**own, "model_version": spec.version}] * 40)
    number = len(found)
    watch.add([])
    assert len(found) == 2 * number > 0
