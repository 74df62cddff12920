"""The stage `recalibrate` on a real cluster: a child of the tiny bundle, published through the gate."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.config import Config
from detect_ai.core.errors import CalibrationError, CorpusError
from detect_ai.core.job import run_stage
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.release.publish import publish, rollback
from detect_ai.release.recalibrate import recalibrate
from detect_ai.schemas import Reference
from tests.fixtures import tiny_models
from tests.integration.runs import OPEN_GATE, changed, store_with_champion

POPULATION = "essays of our first-year students"


def texts(n: int) -> list[str]:
    return [tiny_models.text("human", random.Random(i), 40 + i) for i in range(n)]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Storage:
    return store_with_champion(tmp_path_factory.mktemp("champion"), tiny_bundle)


@pytest.fixture(scope="module")
def config(storage: Storage, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """60 different texts in two files, one of them twice, and one too short."""
    folder, own = tmp_path_factory.mktemp("humans"), texts(60)
    for name, part in {"a": own[:30], "b": [*own[29:], "Too short."]}.items():
        tiny_models.write_jsonl(
            folder / f"{name}.jsonl", [{"essay": text, "student": i} for i, text in enumerate(part)]
        )
    config = tiny_models.config(encoder, Path(storage.root))
    return changed(
        config,
        recalibrate={"humans": str(folder), "population": POPULATION},
        score={"threads_per_worker": 1, "columns": {"text": "essay", "id": "student"}},
        gate=OPEN_GATE,
    )


@pytest.fixture(scope="module")
def result(config: Config, storage: Storage) -> dict[str, Any]:
    return run_stage("recalibrate", recalibrate, config, storage)


def load(storage: Storage, version: str) -> Detector:
    with Registry(storage).folder(version) as folder:
        return Detector.load(folder)


def test_the_child_has_its_parents_encoder_and_thresholds_of_its_own(
    storage: Storage, result: dict[str, Any], tiny_bundle: Path
) -> None:
    registry = Registry(storage)
    champion = registry.require_champion()
    with registry.folder(result["version"]) as child:
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            assert (child / name).read_bytes() == (tiny_bundle / name).read_bytes()
    assert (result["parent"], result["n_human"]) == (champion, 60)
    assert result["left_out"] == {"duplicate": 1, "too_short": 1}
    detector, parent = load(storage, result["version"]), load(storage, champion)
    expected = parent.score([document.input_ids for document in parent.read(texts(60))])
    own = detector.spec.calibration.domains[0]
    assert own.name == POPULATION
    assert sorted(own.human.scores) == pytest.approx(sorted(expected.tolist()), abs=1e-4)


def test_a_verdict_names_the_population(storage: Storage, result: dict[str, Any]) -> None:
    [verdict] = load(storage, result["version"]).detect(texts(1))
    assert (verdict.compared_with, verdict.nearest_domain) == (Reference.POPULATION, POPULATION)
    assert verdict.num_compared == 60


def test_the_certificate_is_beside_the_bundle(storage: Storage, config: Config, result: dict[str, Any]) -> None:
    folder = result["certificate"].rpartition("/")[0]
    assert storage.list(folder) == ["bundle", "certificate.html", "certificate.json"]
    certificate = storage.read_json(f"{folder}/certificate.json")
    assert {**result, "bundle": "", "certificate": ""} == {**certificate, "bundle": "", "certificate": ""}
    assert POPULATION in storage.read_bytes(result["certificate"]).decode()
    json.dumps(certificate, allow_nan=False)
    with Registry(storage).folder(result["version"]) as child:
        assert config.recalibrate.humans not in "".join(path.read_text("latin-1") for path in child.iterdir())


def test_the_gate_decides_on_the_child(storage: Storage, config: Config, result: dict[str, Any]) -> None:
    before = Registry(storage).champion()
    by_name = config.model_copy(update={"bundle": result["version"]})
    published = publish(by_name, storage)
    assert published["before"] == before
    assert not [warning for warning in published["warnings"] if "same texts" in warning]
    assert Registry(storage).champion() == result["version"]
    assert rollback(config, storage)["champion"] == before


def test_text_files_are_enough_and_too_few_texts_leave_nothing(
    storage: Storage, config: Config, result: dict[str, Any], tmp_path: Path
) -> None:
    for i, text in enumerate(texts(18)):
        (tmp_path / f"{i}.txt").write_text(text)
    few = changed(config, recalibrate={"humans": str(tmp_path)}, score={"columns": {}})
    kept = storage.list(f"runs/{config.run}"), Registry(storage).versions()
    with pytest.raises(CalibrationError, match=r"at least 19 .* found 18"):
        recalibrate(few, storage)
    with pytest.raises(CorpusError, match="no such file"):
        recalibrate(changed(config, recalibrate={"humans": str(tmp_path / "none")}), storage)
    assert (storage.list(f"runs/{config.run}"), Registry(storage).versions()) == kept
    (tmp_path / "18.txt").write_text(texts(19)[18])
    assert recalibrate(few, storage)["n_human"] == 19
