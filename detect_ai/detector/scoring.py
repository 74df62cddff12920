"""Score a split of a corpus by its tokens with Ray Data, scorers in actors: every document, and spans of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai.calibration.domain_classifier import Registers
from detect_ai.core import ray_runtime
from detect_ai.core.config import ModelConfig, ScoreConfig
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.splits import shuffle_key
from detect_ai.detector.detector import Scorer
from detect_ai.text.windows import sample_spans_by_length


@dataclass(frozen=True)
class Scored:
    """Scores of a split, in the corpus's order; those of a document's spans before that of the whole.

    Attributes:
        labels: 0 human, 1 ai; int64, shape (scores,).
        scores: log-odds of AI; float64, shape (scores,).
        num_tokens: of each span; int64, shape (scores,).
        registers: domain of each text, "" throughout without a domain classifier; shape (scores,).
        whole: whether the score is that of a whole document, shape (scores,).
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    num_tokens: NDArray[np.int64]
    registers: NDArray[np.str_]
    whole: NDArray[np.bool_]


def checkpoint_loader(config: ScoreConfig, model: ModelConfig) -> Callable[[Path], Scorer]:
    """Loads a checkpoint's folder in an actor."""
    return partial(Scorer.of_checkpoint, config=model, device=device_of(config), precision=config.precision)


def device_of(config: ScoreConfig) -> str:
    """Where an actor runs the encoder."""
    return "cuda" if config.use_gpu else "cpu"


class ScoreBatch:
    """An actor that holds a scorer and scores batches of token ids.

    Args:
        root: the storage root.
        key: of the folder with the checkpoint.
        load: turns that folder into a scorer.
        threads: of the forward pass.
        edges: of ranges of lengths, see `windows.sample_spans_by_length`.
        registers: tells the spans apart.
    """

    def __init__(
        self,
        root: str,
        key: str,
        load: Callable[[Path], Scorer],
        threads: int,
        edges: Sequence[int] = (),
        registers: Registers | None = None,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._edges, self._registers = edges, registers
        with Storage(root).local_folder(key) as folder:
            self._scorer = load(folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows `id`, `label`, `score`, `num_tokens`, `register`, `whole` for rows with `input_ids`."""
        found: dict[str, list[Any]] = {name: [] for name in ("id", "label", "num_tokens", "whole")}
        ids = []
        columns = (batch[name].to_pylist() for name in ("id", "label"))
        for name, label, tokens in zip(*columns, batch["input_ids"].to_numpy(), strict=True):
            tokens = np.asarray(tokens, dtype=np.int32)
            # Drawn from the id: the same document gives the same spans on every machine.
            cut = sample_spans_by_length(len(tokens), self._edges, np.random.default_rng(shuffle_key(0, name)))
            ids += [tokens[start:stop] for start, stop in cut]
            found["id"] += [name] * len(cut)
            found["label"] += [label] * len(cut)
            found["num_tokens"] += [stop - start for start, stop in cut]
            found["whole"] += [False] * (len(cut) - 1) + [True]
        registers = self._registers.of(ids) if self._registers else [""] * len(ids)
        return pa.table({**found, "register": registers, "score": pa.array(self._scorer.score(ids), pa.float64())})


def score_split(
    corpus: Corpus,
    split: str,
    key: str,
    load: Callable[[Path], Scorer],
    config: ScoreConfig,
    edges: Sequence[int] = (),
    registers: Registers | None = None,
) -> Scored:
    """Score every document of a split.

    Args:
        corpus: a finished corpus, tokenised by the tokenizer of the scorer.
        split: its name.
        key: of the folder with the checkpoint, in the corpus's storage.
        load: turns that folder into a scorer, see `checkpoint_loader`.
        config: actors, threads, precision.
        edges: score a span of each document in every range of lengths, too, see `windows.sample_spans_by_length`.
        registers: tells the spans apart.
    """
    import ray

    ray_runtime.connect()
    gpus = config.workers if config.use_gpu else 0
    # One CPU beside the actors: the read tasks need it.
    needed = config.workers * config.cpus_per_worker + 1
    ray_runtime.require_resources(
        f"scoring ({config.workers} workers x {config.cpus_per_worker:g} CPUs + 1)", needed, gpus
    )
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
            "edges": tuple(edges),
            "registers": registers,
        },
    )
    found = scored.to_pandas().set_index("id")
    ids = corpus.read(split, ["id"])["id"].to_pylist()
    ordered: Any = found.loc[ids]
    whole = ordered["whole"].to_numpy().astype(np.bool_)
    assert whole.sum() == len(ids), f"{len(ids)} documents went in, {whole.sum()} came out"
    return Scored(
        labels=ordered["label"].to_numpy().astype(np.int64),
        scores=ordered["score"].to_numpy(),
        num_tokens=ordered["num_tokens"].to_numpy().astype(np.int64),
        registers=ordered["register"].to_numpy().astype(np.str_),
        whole=whole,
    )
