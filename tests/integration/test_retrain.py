"""Collecting texts for the next training on a real cluster, their splits, and the gate on another corpus."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.config import Config, RetrainConfig, ScoreConfig
from detect_ai.core.errors import ConfigError, GateError
from detect_ai.core.job import run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.detector.bundle import read_spec, write_spec
from detect_ai.detector.registry import Registry
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.monitoring import mirrors as mirrors_module
from detect_ai.monitoring.mirrors import mirrors
from detect_ai.monitoring.retrain import collect, with_sources
from detect_ai.release.publish import publish
from tests.fixtures import tiny_models
from tests.fixtures.endpoint import Endpoint, make_generator, running
from tests.integration.runs import OPEN_GATE, changed, store_with_champion

HUMANS = [{"id": f"h{i}", "text": f"Report {i} of the council.", "group": f"g{i}", "domain": "news"} for i in range(6)]


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with running() as endpoint:
        yield endpoint


def make(server: Endpoint, storage: Storage, **changes: Any) -> list[dict[str, Any]]:
    own: dict[str, Any] = {"generator": "endpoint", "model": "small", "url": server.url, "requests_per_minute": 1e6}
    return mirrors(HUMANS, RetrainConfig(**own | changes), ScoreConfig(), storage, "mirrors")


def test_every_text_gets_a_mirror_of_its_group(
    server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors_module, "CONCURRENT", 2)
    server.statuses = [429]
    made = make(server, Storage(str(tmp_path)))
    assert [(row["group"], row["domain"], row["generator"]) for row in made] == [
        (f"g{i}", "news", "small") for i in range(6)
    ]
    assert len({row["text"] for row in made}) == len(server.requests) == 6


def test_an_interrupted_run_makes_the_missing_mirrors(
    server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors_module, "CONCURRENT", 1)
    storage, server.statuses = Storage(str(tmp_path)), [200, 200, *[401] * 6]
    with pytest.raises(ConfigError, match=r"^retrain\.url: \S+ answered 401$"):
        make(server, storage)
    kept = {name: storage.read_bytes(f"mirrors/{name}") for name in storage.list("mirrors")}
    assert len(kept) == 2
    server.statuses = []
    assert len(make(server, storage)) == len(server.requests) == 6
    assert kept.items() <= {n: storage.read_bytes(f"mirrors/{n}") for n in storage.list("mirrors")}.items()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Storage:
    return store_with_champion(tmp_path_factory.mktemp("champion"), tiny_bundle)


@pytest.fixture(scope="module")
def config(storage: Storage, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """40 pairs, and 30 human texts in a column of another name, among which to find hard negatives."""
    folder = tmp_path_factory.mktemp("texts")
    source = tiny_models.write_jsonl(folder / "pairs.jsonl", tiny_models.rows(40))
    texts = [tiny_models.text("human", random.Random(i), 40 + i) for i in range(30)]
    humans = tiny_models.write_jsonl(folder / "humans.jsonl", [{"essay": text} for text in texts])
    config = tiny_models.config(encoder, Path(storage.root), source)
    generator = make_generator(folder / "tiny-gpt", encoder)
    return changed(
        config,
        retrain={"humans": str(humans), "hard_negatives": 12, "generator": "local", "model": str(generator)},
        score={"threads_per_worker": 1, "columns": {"text": "essay"}},
        evaluation={"baseline": False},
        gate=OPEN_GATE,
    )


@pytest.fixture(scope="module")
def collected(config: Config, storage: Storage) -> dict[str, Any]:
    return run_stage("collect", collect, config, storage)


@pytest.fixture(scope="module")
def corpus(config: Config, storage: Storage, collected: dict[str, Any]) -> Corpus:
    prepared = run_stage("prepare", prepare, with_sources(config, collected["sources"]), storage)
    return Corpus.open(storage, prepared["corpus"])


def test_a_local_model_writes_mirrors_under_its_name(collected: dict[str, Any], corpus: Corpus) -> None:
    assert collected["numbers"] == {"hard_negatives": 12, "mirrors": 12}
    rows = corpus.read("train", ["source", "generator"]).to_pylist()
    assert {row["generator"] for row in rows if row["source"] == "mirrors"} == {"tiny-gpt"}


def test_texts_chosen_by_score_are_trained_on_alone(corpus: Corpus) -> None:
    chosen = {"hard_negatives", "mirrors"}
    found = {split: set(corpus.read(split, ["source"])["source"].to_pylist()) for split in ("train", "validation")}
    assert set.union(*found.values()) == {"made", *chosen}
    for split in ("calibration", "test"):
        assert set(corpus.read(split, ["source"])["source"].to_pylist()) == {"made"}


def test_a_champion_of_another_corpus_is_compared_on_the_test_split(
    config: Config, storage: Storage, corpus: Corpus, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The challenger has the champion's weights, and therefore the same metrics."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "challenger")
    spec = read_spec(tiny_bundle)
    spec = write_spec(folder, replace(spec, corpus={**spec.corpus, "fingerprint": corpus.manifest.fingerprint}))
    storage.upload(folder, f"runs/{config.run}/candidate-1")
    candidate = {"bundle": f"runs/{config.run}/candidate-1", "version": spec.version}
    storage.write_json(f"runs/{config.run}/calibrate.json", {"result": candidate})
    evaluated = run_stage("evaluate", evaluate, config, storage)
    key = f"runs/{config.run}/evaluate.json"
    worse = {**storage.read_json(key), "result": {**evaluated, "auroc": evaluated["auroc"] - 0.1}}
    storage.write_json(key, worse)
    before = Registry(storage).require_champion()
    with pytest.raises(GateError, match="max_auroc_drop"):
        publish(config, storage)
    [name] = storage.list(f"runs/{config.run}/champion")
    measured = storage.read_json(f"runs/{config.run}/champion/{name}")
    assert name.startswith(before)
    for metric in ("auroc", "fpr_at_target", "cleared_ai_fraction", "n_human", "n_ai", "test_fingerprint"):
        assert measured[metric] == evaluated[metric]
    storage.write_json(key, {**worse, "result": evaluated})
    assert publish(config, storage)["warnings"] == []
    assert storage.list(f"runs/{config.run}/champion") == [name]
    assert not [folder for folder in storage.list(f"runs/{config.run}") if folder.startswith("champion-")]
