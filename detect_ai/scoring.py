"""Score a split of a corpus with Ray Data: detectors in actors, one verdict's score for every document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai import cluster
from detect_ai.config import ModelConfig, ScoreConfig
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector import Detector, Scorer
from detect_ai.storage import Storage


@dataclass(frozen=True)
class Scored:
    """Scores of a split, in the corpus's order.

    Attributes:
        labels: 0 human, 1 ai; int64, shape (documents,).
        scores: log-odds of AI; float64, shape (documents,).
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]


def bundle_loader(config: ScoreConfig) -> Callable[[Path], Scorer]:
    """Loads a bundle's folder in an actor."""
    return partial(Detector.load, device=_device(config), precision=config.precision)


def checkpoint_loader(config: ScoreConfig, model: ModelConfig) -> Callable[[Path], Scorer]:
    """Loads a checkpoint's folder in an actor."""
    return partial(Scorer.of_checkpoint, config=model, device=_device(config), precision=config.precision)


def _device(config: ScoreConfig) -> str:
    return "cuda" if config.use_gpu else "cpu"


class ScoreBatch:
    """An actor that holds a scorer and scores batches of token ids.

    Args:
        root: the storage root.
        key: of the folder with the bundle or the checkpoint.
        load: turns that folder into a scorer.
        threads: of the forward pass.
    """

    def __init__(self, root: str, key: str, load: Callable[[Path], Scorer], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        with Storage(root).local_folder(key) as folder:
            self._scorer = load(folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Replace `input_ids` by `score`."""
        ids = [np.asarray(row, dtype=np.int32) for row in batch["input_ids"].to_numpy()]
        scores = self._scorer.score(ids)
        return batch.drop(["input_ids"]).append_column("score", pa.array(scores, pa.float64()))


def score_split(corpus: Corpus, split: str, key: str, load: Callable[[Path], Scorer], config: ScoreConfig) -> Scored:
    """Score every document of a split.

    Args:
        corpus: a finished corpus, tokenised by the tokenizer of the scorer.
        split: its name.
        key: of the folder with the bundle or the checkpoint, in the corpus's storage.
        load: `bundle_loader` or `checkpoint_loader`.
        config: actors, threads, precision.
    """
    import ray

    cluster.connect()
    gpus = config.workers if config.use_gpu else 0
    # One CPU beside the actors: the read tasks need it.
    needed = config.workers * config.cpus_per_worker + 1
    cluster.require_resources(f"scoring ({config.workers} workers x {config.cpus_per_worker:g} CPUs + 1)", needed, gpus)
    storage = corpus.storage
    paths = [storage.path(corpus.shard_key(shard)) for shard in corpus.shards(split)]
    columns = ["id", "label", "input_ids"]
    rows = ray.data.read_parquet(paths, filesystem=storage.filesystem).select_columns(columns)
    scored = rows.map_batches(
        ScoreBatch,
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.workers),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
        fn_constructor_kwargs={
            "root": storage.root,
            "key": key,
            "load": load,
            "threads": config.threads_per_worker,
        },
    )
    found = scored.to_pandas().set_index("id")
    ids = corpus.read(split, ["id"])["id"].to_pylist()
    assert len(found) == len(ids), f"{len(ids)} documents went in, {len(found)} came out"
    ordered: Any = found.loc[ids]
    return Scored(ordered["label"].to_numpy().astype(np.int64), ordered["score"].to_numpy())
