"""Input streams on a real cluster: every document once per epoch, in equal steps, at any world size."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detect_ai.core.config import Config
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import ORIGINAL, Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.text.windows import split_windows
from detect_ai.training import data
from detect_ai.training.batch_plan import Microbatch
from tests.integration.runs import EPOCHS, Steps, changed, consume, small_config, token_ids, window_format


def documents(parts: list[Microbatch]) -> list[int]:
    return [int(d) for part in parts for d in part.documents if d >= 0]


@pytest.mark.parametrize("shape", [("many", 1), ("many", 2), ("many", 3), ("few", 3)])
def test_documents_are_read_once_per_epoch_in_planned_steps(
    shape: tuple[str, int], streamed: dict[Any, list[Steps]], many: tuple[Config, Corpus], few: tuple[Config, Corpus]
) -> None:
    corpus, ranks = {"many": many, "few": few}[shape[0]][1], streamed[shape]
    steps = data.steps_per_epoch(corpus, 8)
    assert [len(rank) for rank in ranks] == [EPOCHS * steps] * shape[1]
    for epoch in range(EPOCHS):
        parts = [part for rank in ranks for step in rank[epoch * steps : (epoch + 1) * steps] for part in step]
        assert Counter(documents(parts)) == Counter(range(corpus.num_rows("train")))


@pytest.mark.parametrize("workers", [2, 3])
def test_steps_are_equal_at_any_world_size(workers: int, streamed: dict[Any, list[Steps]]) -> None:
    def by_step(workers: int) -> list[list[int]]:
        steps = zip(*streamed["many", workers], strict=True)
        return [sorted(d for parts in step for d in documents(parts)) for step in steps]

    assert by_step(workers) == by_step(1)


def test_one_worker_reads_what_ray_data_would_deal_to_it(
    streamed: dict[Any, list[Steps]], many: tuple[Config, Corpus]
) -> None:
    config, corpus = many
    config = changed(config, train={"batch_size": 8, "microbatch_size": 3, "epochs": EPOCHS})
    parts = list(data.training_plan(corpus, window_format(config), config, 1).microbatches())
    dealt = [part for step in streamed["many", 1][0] for part in step]
    assert [pickle.dumps(part) for part in parts] == [pickle.dumps(part) for part in dealt]


def test_validation_reads_every_window_once(many: tuple[Config, Corpus]) -> None:
    config, corpus = many
    frame = window_format(config)
    ids = token_ids(corpus, "test")
    _, owners = split_windows(ids, frame.window - frame.num_special, frame.stride)
    assert len(owners) > len(ids), "no document has two windows"
    ranks = consume(data.scoring_plan(corpus, "test", frame, 3, batch_tokens=512).dataset(), 3)
    assert Counter(documents([part for rank in ranks for part in rank])) == Counter(owners.tolist())


def test_attack_weight_scales_augmented_copies_only(encoder: Path, source: Path, tmp_path: Path) -> None:
    config = small_config(encoder, tmp_path, source)
    config.corpus.augment = ["homoglyph"]
    config.train.attack_weight, config.train.num_workers, config.train.epochs = 0.25, 1, 1
    storage = Storage(config.storage.root)
    corpus = Corpus.open(storage, prepare(config, storage)["corpus"])
    attacks = np.asarray(corpus.read("train", ["attack"])["attack"].to_pylist())
    assert set(attacks) == {ORIGINAL, "homoglyph"}
    (parts,) = consume(data.training_plan(corpus, window_format(config), config, 1).dataset(), 1)
    weights = {int(d): float(w) for part in parts for d, w in zip(part.documents, part.weights, strict=True) if d >= 0}
    assert weights == {i: 1.0 if attack == ORIGINAL else 0.25 for i, attack in enumerate(attacks)}
