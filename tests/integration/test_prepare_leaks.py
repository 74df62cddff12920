"""What `prepare` does about texts that lie close to others: near duplicates, evaluation sets, copies."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from detect_ai.core.config import SPLITS, SourceConfig
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import CONTAMINATION, QUARANTINE, Corpus
from detect_ai.corpus.prepare import prepare
from tests.fixtures import tiny_models
from tests.integration.runs import config_for

Rows = list[dict[str, Any]]


def essay(seed: int) -> str:
    return tiny_models.text("human" if seed % 2 else "ai", random.Random(seed), 120)


def edited(text: str) -> str:
    return text.replace(text.split()[60], "Zanzibar", 1)


def rows_with(texts: list[str]) -> Rows:
    return [{"text": text, "label": i % 2, "group": f"g{i // 2}"} for i, text in enumerate(texts)]


def test_near_duplicates_never_stand_in_two_splits(encoder: Path, tmp_path: Path) -> None:
    texts = [essay(seed) for seed in range(60)]
    rows = [
        *rows_with(texts),
        *({**row, "text": edited(str(row["text"])), "group": f"{row['group']}-late"} for row in rows_with(texts)[:20]),
    ]
    tiny_models.write_jsonl(tmp_path / "texts.jsonl", rows)
    config = config_for(encoder, tmp_path / "store", tmp_path / "texts.jsonl", "jsonl")
    storage = Storage(config.storage.root)
    corpus = Corpus.open(storage, prepare(config, storage)["corpus"])
    where = {row["text"]: split for split in SPLITS for row in corpus.read(split, ["text"]).to_pylist()}
    assert corpus.manifest.near_duplicates == {"clusters": 20, "texts": 40, "largest": 2}
    assert all(where[text] == where[edited(text)] for text in texts[:20])


def test_what_an_evaluation_set_holds_too_is_listed_and_dropped(encoder: Path, tmp_path: Path) -> None:
    texts = [essay(seed) for seed in range(60)]
    tiny_models.write_jsonl(tmp_path / "texts.jsonl", rows_with(texts))
    tiny_models.write_jsonl(
        tmp_path / "exam.jsonl", [{"id": "e1", "text": edited(texts[7])}, {"id": "e2", "text": essay(99)}]
    )
    config = config_for(encoder, tmp_path / "store", tmp_path / "texts.jsonl", "jsonl")
    config.corpus.against = [SourceConfig(kind="jsonl", path=str(tmp_path / "exam.jsonl"), name="exam", id="id")]
    storage = Storage(config.storage.root)
    found = prepare(config, storage)
    corpus = Corpus.open(storage, found["corpus"])
    [row] = corpus.read(QUARANTINE, ["id", "text", "reason", "twin"]).to_pylist()
    assert (row["text"], row["reason"], row["twin"]) == (texts[7], "contaminated", "e1")
    assert found["contamination"] == {"exam": 1}
    assert storage.read_json(f"{corpus.key}/{CONTAMINATION}") == {"exam": [[row["id"], "e1"]]}
    assert found["rows_read"] == 60


def test_copies_under_an_attack_stand_beside_their_originals_in_training_alone(encoder: Path, tmp_path: Path) -> None:
    tiny_models.write_jsonl(tmp_path / "texts.jsonl", rows_with([essay(seed) for seed in range(80)]))
    config = config_for(encoder, tmp_path / "store", tmp_path / "texts.jsonl", "jsonl")
    config.corpus.augment, config.corpus.augment_share = ["article_deletion", "upper_lower"], 0.5
    storage = Storage(config.storage.root)
    corpus = Corpus.open(storage, prepare(config, storage)["corpus"])
    train = corpus.read("train", ["id", "text", "group", "attack", "label", "input_ids"]).to_pandas().set_index("id")
    copies = train[train["attack"] != "none"]
    assert 8 <= len(copies) <= 24
    assert set(copies["attack"]) == {"article_deletion", "upper_lower"}
    for name, copy in copies.iterrows():
        original = train.loc[str(name).rpartition("+")[0]]
        assert (copy["group"], copy["label"]) == (original["group"], original["label"])
        assert copy["text"] != original["text"]
    assert all(set(corpus.read(split, ["attack"])["attack"].to_pylist()) == {"none"} for split in SPLITS[1:])
    assert sum(count["rows"] for count in corpus.manifest.counts) == 80 + len(copies)
