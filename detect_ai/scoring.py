"""Score a split of a corpus with Ray Data: detectors in actors, one verdict's score for every document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai import cluster
from detect_ai.config import ScoreConfig
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector import Detector
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


class ScoreBatch:
    """An actor that holds a detector and scores batches of token ids.

    Args:
        root: the storage root.
        bundle: key of the bundle's folder.
        config: precision, threads and device.
    """

    def __init__(self, root: str, bundle: str, config: ScoreConfig) -> None:
        import torch

        torch.set_num_threads(config.threads_per_worker)
        device = "cuda" if config.use_gpu else "cpu"
        with Storage(root).local_folder(bundle) as folder:
            self._detector = Detector.load(folder, device=device, precision=config.precision)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Replace `input_ids` by `score`."""
        ids = [np.asarray(row, dtype=np.int32) for row in batch["input_ids"].to_numpy()]
        scores = self._detector.score(ids)
        return batch.drop(["input_ids"]).append_column("score", pa.array(scores, pa.float64()))


def score_split(corpus: Corpus, split: str, bundle: str, config: ScoreConfig) -> Scored:
    """Score every document of a split.

    Args:
        corpus: a finished corpus, tokenised by the tokenizer of the bundle.
        split: its name.
        bundle: key of the bundle's folder in the corpus's storage.
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
    rows = ray.data.read_parquet(paths, filesystem=storage.filesystem, columns=["id", "label", "input_ids"])
    scored = rows.map_batches(
        ScoreBatch,
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.workers),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
        fn_constructor_kwargs={"root": storage.root, "bundle": bundle, "config": config},
    )
    found = scored.to_pandas().set_index("id")
    ids = corpus.read(split, ["id"])["id"].to_pylist()
    assert len(found) == len(ids), f"{len(ids)} documents went in, {len(found)} came out"
    ordered: Any = found.loc[ids]
    return Scored(ordered["label"].to_numpy().astype(np.int64), ordered["score"].to_numpy())
