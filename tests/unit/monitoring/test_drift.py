from __future__ import annotations

import json
import random
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai.core.config import Config, DriftConfig
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.detector import Detector, Document
from detect_ai.detector.registry import Registry
from detect_ai.monitoring import drift as module
from detect_ai.monitoring.drift import DriftWatch, drift
from detect_ai.monitoring.prediction_log import SKETCH_BITS, RowLog
from detect_ai.monitoring.reference import DECIDED, Reference, Traffic
from detect_ai.schemas import Label, Verdict
from tests.fixtures import tiny_models

WINDOW = 40


@pytest.fixture
def storage(tmp_path: Path, tiny_bundle: Path) -> Storage:
    """A storage with the tiny bundle as champion."""
    storage = Storage(str(tmp_path))
    registry = Registry(storage)
    registry.set_champion(registry.add(tiny_bundle))
    return storage


def config(storage: Storage, **changes: Any) -> Config:
    own = Config()
    own.storage.root = storage.root
    own.monitoring.drift = DriftConfig(window=WINDOW, **changes)
    return own


TODAY = datetime.now(UTC).replace(hour=12)


def rows_of(version: str, windows: int, shift: float = 0.0, time: datetime = TODAY, **changes: Any) -> list[Any]:
    """Rows of texts like those of the tiny bundle's calibration, or with other scores."""
    rng, rows = np.random.default_rng(0), []
    for i in range(windows * WINDOW):
        row = {"time": time + timedelta(milliseconds=i), "request_id": str(i), "index": 0, "model_version": version}
        score = rng.normal(0, 0.1) + 0.1 * (i % 2) - 0.05 + shift
        known = {"score": score, "num_tokens": 64, "reasons": ["between_thresholds"], "nearest_domain": None}
        rows.append({**row, **known, "sketch": None, **changes})
    return rows


def log_texts(storage: Storage, version: str, windows: int, shift: float = 0.0, time: datetime = TODAY) -> None:
    log = RowLog(storage, "predictions", 99, 10**9)
    log.append(rows_of(version, windows, shift, time))
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
    version, yesterday = Registry(storage).require_champion(), TODAY - timedelta(1)
    log_texts(storage, version, windows=2, shift=5.0, time=yesterday)
    log_texts(storage, "other", windows=2, time=yesterday)
    log_texts(storage, version, windows=2, time=yesterday - timedelta(1))
    with pytest.raises(ConfigError, match="0 texts"):  # all of them are the reference
        drift(config(storage, reference=f"{(yesterday - timedelta(1)).date()}/{TODAY.date()}"), storage)
    with pytest.raises(InputError, match="no texts of version"):
        drift(config(storage, reference="2020-01-01/2020-01-02"), storage)
    log_texts(storage, version, windows=1, shift=5.0)
    result = drift(config(storage, reference=f"{yesterday.date()}/{yesterday.date()}"), storage)
    assert (result["num_windows"], result["num_alarms"], result["ai_fraction"]) == (1, 0, None)


def test_long_days_are_sampled(storage: Storage, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REFERENCE", 50)
    spec = read_spec(tiny_bundle)
    log_texts(storage, spec.version, windows=3)
    own = DriftConfig(window=WINDOW, reference=f"{TODAY.date()}/{TODAY.date()}")
    assert len(module.read_reference(own, storage, spec).traffic) == 50


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
    assert changed["window"] == WINDOW
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


KINDS = ("news", "mail", "essays")


def made_up(n: int = 400, **changes: Any) -> Traffic:
    """Texts of two kinds of writing."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, n)
    known: dict[str, Any] = {
        "scores": rng.normal(kinds, 1.0),
        "num_tokens": rng.integers(50, 600, n),
        "outcomes": np.where(rng.random(n) < 0.2, "between_thresholds", DECIDED),
        "domains": np.asarray(KINDS)[kinds],
        "bits": (rng.random((n, SKETCH_BITS)) < 0.4 + 0.2 * kinds[:, None]).astype(np.uint8),
    }
    return Traffic(**known | {name: change(known[name], rng) for name, change in changes.items()})


CHANGES: dict[str, tuple[Any, int]] = {  # by signal: the change, and the texts after which it is detected
    "scores": ({"scores": lambda scores, rng: scores + rng.normal(0.6, 0.5, len(scores))}, 400),
    "lengths": ({"num_tokens": lambda lengths, _: np.minimum(lengths, 400)}, 200),
    "words": ({"bits": lambda bits, rng: bits | (rng.random(bits.shape) < 0.15)}, 400),
    "abstentions": ({"outcomes": lambda own, rng: np.where(rng.random(len(own)) < 0.2, "too_short", own)}, 200),
    "domains": ({"domains": lambda own, rng: np.where(rng.random(len(own)) < 0.25, "essays", own)}, 200),
}


@pytest.mark.parametrize("signal", CHANGES)
def test_a_change_is_noticed_after_some_hundred_texts(signal: str) -> None:
    change, expected = CHANGES[signal]
    reference, traffic = Reference(made_up(), 200, 0.01), made_up(**change)
    noticed = [module._noticed_after(reference, traffic, seed) for seed in range(10)]
    assert module._summary(noticed)["quantile_90"] <= expected
    rng = np.random.default_rng(0)
    alarms = [reference.check(traffic[rng.integers(0, len(traffic), 200)]).alarms for _ in range(5)]
    assert {name for own in alarms for name in own} == {signal}


def test_a_replay_states_the_error_rates_in_the_new_traffic(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, own = Detector.load(tiny_bundle), Config()
    verdict = detector.verdict

    def some_are_ai(document: Document, *rest: Any) -> Verdict:
        label = Label.AI if zlib.crc32(document.text.encode()) % 3 == 0 else Label.HUMAN
        return verdict(document, *rest).model_copy(update={"label": label})

    monkeypatch.setattr(detector, "verdict", some_are_ai)
    own.monitoring.drift = DriftConfig(window=WINDOW, simulate=["length"])
    own.data = write_texts(tmp_path)
    texts = list(texts_of(own.data, own.score))
    labels = np.asarray([text.label for text in texts])
    is_ai = np.asarray([verdict.label == "ai" for verdict in detector.detect([text.text for text in texts])])
    row = module.replay(own, detector)[0]
    assert (row["fpr"], row["tpr"]) == (is_ai[labels == 0].mean(), is_ai[labels == 1].mean())
    assert row["fpr"] != row["tpr"]


class Found(dict[tuple[str, str], float]):
    """Recorded metrics, by name and signal."""

    def __call__(self, metric: str, value: float = 1, **labels: str) -> None:
        self[metric, labels.get("signal", "")] = value

    @property
    def alarms(self) -> set[str]:
        return {signal for (metric, signal), value in self.items() if metric == "drift_alarm" and value}


def test_the_service_reports_drift(tiny_bundle: Path, tmp_path: Path) -> None:
    spec, storage, found = read_spec(tiny_bundle), Storage(str(tmp_path)), Found()
    watch = DriftWatch(storage, spec, DriftConfig(window=WINDOW), found)
    watch.add(rows_of("canary", 1, shift=9.0, num_tokens=5))
    assert found == {}
    own = rows_of(spec.version, 1, shift=9.0, num_tokens=5)
    watch.add(own[1:])
    assert found == {}
    watch.add(own[:1])
    assert found.alarms >= {"scores", "lengths"}
    (name,) = storage.list("monitoring/drift")
    alarm = json.loads(storage.read_bytes(f"monitoring/drift/{name}"))
    assert set(alarm["alarms"]) == found.alarms
    assert (alarm["texts"], alarm["model_version"]) == (WINDOW, spec.version)


def test_the_service_compares_with_days_of_the_log(tiny_bundle: Path, tmp_path: Path) -> None:
    spec, storage, found = read_spec(tiny_bundle), Storage(str(tmp_path)), Found()
    yesterday = TODAY - timedelta(1)
    log_texts(storage, spec.version, windows=3, shift=5.0, time=yesterday)
    own = DriftConfig(window=WINDOW, reference=f"{yesterday.date()}/{yesterday.date()}")
    watch = DriftWatch(storage, spec, own, found)
    watch.add(rows_of(spec.version, 1, time=yesterday))
    assert found == {}  # texts of the reference
    watch.add(rows_of(spec.version, 1, shift=5.0))
    assert (found["drift_alarm", "scores"], found.alarms) == (0, set())
    watch.add(rows_of(spec.version, 1))
    assert found.alarms == {"scores"}


@pytest.mark.parametrize("own", [DriftConfig(window=81), DriftConfig(window=40, reference="2020-01-01/2020-01-02")])
def test_a_reference_smaller_than_a_window_switches_drift_off(
    tiny_bundle: Path, tmp_path: Path, own: DriftConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, storage = read_spec(tiny_bundle), Storage(str(tmp_path))
    watch = DriftWatch(storage, spec, own, lambda *_, **__: pytest.fail("nothing to report"))
    watch.add(rows_of(spec.version, 5))
    monkeypatch.setattr(module, "read_reference", lambda *_: pytest.fail("is off"))
    watch.add(rows_of(spec.version, 5))
    assert storage.list("monitoring/drift") == []


def test_lost_storage_delays_drift(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, found = read_spec(tiny_bundle), Found()
    watch = DriftWatch(Storage(str(tmp_path)), spec, DriftConfig(window=WINDOW), found)

    def lost(_: Storage) -> bytes:
        raise OSError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(module, "log_secret", lost)
        with pytest.raises(OSError, match="lost"):
            watch.add(rows_of(spec.version, 1, shift=9.0))
    assert found == {}
    watch.add(rows_of(spec.version, 1, shift=9.0))
    assert "scores" in found.alarms


def test_the_last_comparison_is_reported_again(tiny_bundle: Path, tmp_path: Path) -> None:
    spec, found = read_spec(tiny_bundle), []
    watch = DriftWatch(Storage(str(tmp_path)), spec, DriftConfig(window=40), lambda name, *_, **__: found.append(name))
    watch.add(rows_of(spec.version, 1))
    number = len(found)
    watch.add([])
    assert len(found) == 2 * number > 0
