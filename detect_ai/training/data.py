"""Input streams of a training run: tokenised shards to whole microbatches on every rank, by Ray Data.

A shard is a pool: one Ray Data task reads it, plans its steps (`detect_ai.training.batch_plan`) and emits one row for
each microbatch. Every row is a block of its own and the order is preserved, so `streaming_split(equal=True)` deals row
i to rank i mod W. Steps are padded with empty microbatches to a multiple of W: all ranks make the same number of steps,
and a step holds the same documents at any W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig

from detect_ai.core.config import Config, ModelConfig
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import ORIGINAL, Corpus
from detect_ai.models.batch import Batch, collate, padded_length, plan_scoring
from detect_ai.models.tokenizer import Ids, Tokenizer
from detect_ai.text import windows
from detect_ai.training import checkpoint
from detect_ai.training.batch_plan import Microbatch, num_steps, pad_to_world_size, plan_steps

EVAL_BATCH_TOKENS = 8192
_COLUMNS = ["input_ids", "label", "weight", "attack"]


@dataclass(frozen=True)
class WindowFormat:
    """Window layout: token ids to rows of a batch.

    Attributes:
        prefix: special tokens before each window.
        suffix: special tokens after each window.
        pad_id: id of the padding token.
        content: tokens in a window, special tokens not counted.
        stride: tokens between the starts of neighbouring windows.
    """

    prefix: Ids
    suffix: Ids
    pad_id: int
    content: int
    stride: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, model: ModelConfig) -> WindowFormat:
        """The format of a tokenizer and a model."""
        content = model.window - tokenizer.num_special
        return cls(tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id, content, model.stride)

    def row_length(self, ids: Ids) -> int:
        """Length of a row with its special tokens."""
        return len(self.prefix) + len(ids) + len(self.suffix)


@dataclass(frozen=True)
class TrainingPlan:
    """Batch sizes, epochs, seed and spans with which a training run reads a corpus."""

    batch_size: int
    microbatch_size: int
    epochs: int
    seed: int
    num_workers: int
    shortest_span: int = 0  # tokens; 0: whole windows are read
    attack_weight: float = 1.0  # of augmented copies

    @classmethod
    def from_config(cls, config: Config) -> TrainingPlan:
        """The plan of a configuration, for the largest number of workers."""
        t = config.train
        workers = t.worker_range[1]
        return cls(t.batch_size, t.microbatch_size, t.epochs, config.seed, workers, t.shortest_span, t.attack_weight)

    def num_steps(self, corpus: Corpus) -> int:
        """Steps of one epoch."""
        return sum(num_steps(shard.rows, self.batch_size) for shard in corpus.shards("train"))


class StreamDataConfig(DataConfig):
    """Ray Train `DataConfig` that builds the input streams once the worker group has started.

    They depend on the number of workers that there are and on the step that these resume from.

    Args:
        corpus: to read.
        form: of the model's windows.
        plan: its number of workers is ignored.
        folder: key of the run.
    """

    def __init__(self, corpus: Corpus, form: WindowFormat, plan: TrainingPlan, folder: str) -> None:
        # With locality, the ranks of several machines would get one another's microbatches, and wait for ever.
        super().__init__(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)
        self._corpus, self._form, self._plan, self._folder = corpus, form, plan, folder

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> Any:
        """The shards of the requested streams, one for each rank. Ray Train calls this when rank 0 asks for its own."""
        streams = {split: self._stream(split, world_size) for split in datasets}
        return super().configure(streams, world_size, *args, **kwargs)

    def _stream(self, split: str, num_workers: int) -> Dataset:
        if split == "validation":
            # Without gradients four times a training pass fits into memory, so that one setting decides about both.
            window = padded_length(len(self._form.prefix) + self._form.content + len(self._form.suffix))
            tokens = min(EVAL_BATCH_TOKENS, 4 * self._plan.microbatch_size * window)
            return scoring_stream(self._corpus, split, self._form, num_workers, tokens)
        # The workers restored the same checkpoint before they ask: Ray Train hands them the last registered one.
        start = checkpoint.resume_step(self._corpus.storage, self._folder)
        return training_stream(self._corpus, self._form, replace(self._plan, num_workers=num_workers), start)


def stream_placeholder() -> Any:
    """Stands for a dataset that `StreamDataConfig` builds."""


def training_stream(corpus: Corpus, form: WindowFormat, plan: TrainingPlan, start: int = 0) -> Dataset:
    """All microbatches of all epochs from a step on. Each epoch reads the shards in another order, and other windows.

    Raises:
        ValueError: no step is left.
    """
    pools = training_pools(corpus, plan, start)
    if not pools:
        raise ValueError(f"step {start}: the run has no more steps")
    root = corpus.storage.root
    return _one_block_a_row(
        pools, lambda pool: training_rows(read_pool(root, pool), pool, form, plan), plan.num_workers
    )


def scoring_stream(corpus: Corpus, split: str, form: WindowFormat, num_workers: int, batch_tokens: int) -> Dataset:
    """Every window of every document of a split once, in batches of similar length."""
    root = corpus.storage.root
    return _one_block_a_row(
        _pools(corpus, split),
        lambda pool: scoring_rows(read_pool(root, pool), pool, form, num_workers, batch_tokens),
        num_workers,
    )


def _one_block_a_row(
    pools: list[dict[str, Any]], rows_of: Callable[[dict[str, Any]], Iterator[pa.Table]], num_readers: int
) -> Dataset:
    import ray

    def expand(item: pa.Table) -> Iterator[pa.Table]:
        yield from rows_of(item.to_pylist()[0])

    # One reader for each rank: left to itself Ray Data starts a process for every shard that it finds a CPU for.
    compute = ray.data.TaskPoolStrategy(size=num_readers)
    dataset = ray.data.from_items(pools, override_num_blocks=len(pools))
    rows: Dataset = dataset.map_batches(expand, batch_size=1, batch_format="pyarrow", compute=compute)
    # A yielded table becomes a block as soon as it reaches the target size. Rank r's next row must be the next block.
    rows.context.target_max_block_size = 1
    rows.context.execution_options.preserve_order = True
    rows.context.enable_progress_bars = False  # the run has its own
    return rows


def training_pools(corpus: Corpus, plan: TrainingPlan, start: int) -> list[dict[str, Any]]:
    """The shards of all epochs from a step on, each with the number of its steps to skip."""
    pools = []
    before = start
    for epoch in range(plan.epochs):
        shards = _pools(corpus, "train")
        for i in np.random.default_rng([plan.seed, epoch]).permutation(len(shards)):
            steps = num_steps(shards[i]["rows"], plan.batch_size)
            if before < steps:
                pools.append({**shards[i], "epoch": epoch, "skip": before})
            before = max(0, before - steps)
    return pools


def _pools(corpus: Corpus, split: str) -> list[dict[str, Any]]:
    pools, first = [], 0
    for number, shard in enumerate(corpus.shards(split)):
        pools.append({"key": corpus.shard_key(shard), "number": number, "first": first, "rows": shard.rows})
        first += shard.rows
    return pools


def read_pool(root: str, pool: dict[str, Any]) -> pa.Table:
    """The rows of a shard that training reads."""
    storage = Storage(root)
    return pq.read_table(storage.path(pool["key"]), columns=_COLUMNS, filesystem=storage.filesystem)


def training_rows(table: pa.Table, pool: dict[str, Any], form: WindowFormat, plan: TrainingPlan) -> Iterator[pa.Table]:
    """The microbatches of a shard in one epoch, for all ranks in turn, each a table of one row."""
    rng = np.random.default_rng([plan.seed, pool["epoch"], pool["number"]])
    documents = _token_ids(table)
    if plan.shortest_span:
        ids = windows.sample_span(documents, form.content, plan.shortest_span, rng)
    else:
        ids = windows.sample_window(documents, form.content, form.stride, rng)
    labels = table["label"].to_numpy().astype(np.int64)
    weights = table["weight"].to_numpy().astype(np.float32)
    weights[pc.not_equal(table["attack"], ORIGINAL).to_numpy()] *= np.float32(plan.attack_weight)
    lengths = np.asarray([form.row_length(row) for row in ids])
    steps = plan_steps(lengths, labels, plan.batch_size, plan.microbatch_size, rng)
    for step in steps[pool["skip"] :]:
        step_weight = float(sum(weights[positions].sum() for positions in step))
        slots = pad_to_world_size(step, plan.num_workers)
        for slot, positions in enumerate(slots):
            yield _microbatch_row(
                [ids[i] for i in positions],
                form,
                labels=labels[positions],
                weights=weights[positions],
                documents=pool["first"] + positions,
                step_weight=step_weight,
                slot=slot,
                last=slot >= len(slots) - plan.num_workers,
                epoch=pool["epoch"],
            )


def scoring_rows(
    table: pa.Table, pool: dict[str, Any], form: WindowFormat, num_workers: int, batch_tokens: int
) -> Iterator[pa.Table]:
    """The batches of all windows of a shard, for all ranks in turn, each a table of one row."""
    rows, owners = windows.split_windows(_token_ids(table), form.content, form.stride)
    labels, weights = table["label"].to_numpy().astype(np.int64), table["weight"].to_numpy()
    lengths = np.asarray([form.row_length(row) for row in rows])
    for positions in pad_to_world_size(plan_scoring(lengths, batch_tokens), num_workers):
        documents = owners[positions]
        yield _microbatch_row(
            [rows[i] for i in positions],
            form,
            labels=labels[documents],
            weights=weights[documents],
            documents=pool["first"] + documents,
            step_weight=1.0,
            slot=0,
            last=True,
            epoch=0,
        )


def _token_ids(table: pa.Table) -> list[Ids]:
    """The lists of the column `input_ids` as arrays, without a copy."""
    column = table["input_ids"].combine_chunks()
    values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _microbatch_row(ids: list[Ids], form: WindowFormat, **fields: Any) -> pa.Table:
    """One microbatch as a table of one row. An empty one gets a row of special tokens with weight 0."""
    if not ids:
        ids = [np.empty(0, dtype=np.int32)]
        fields |= {"labels": np.zeros(1, np.int64), "weights": np.zeros(1, np.float32), "documents": np.full(1, -1)}
    batch = collate(ids, form.prefix, form.suffix, form.pad_id)
    fields |= {"input_ids": batch.input_ids.ravel(), "lengths": batch.lengths}
    return pa.table({name: pa.array([value]) for name, value in fields.items()})


def read_microbatch(row: pa.Table) -> Microbatch:
    """Read back what `_microbatch_row` wrote."""
    assert row.num_rows == 1, f"expected one microbatch in a block, found {row.num_rows}"

    def array(name: str) -> NDArray[Any]:
        values: NDArray[Any] = row[name].combine_chunks().values.to_numpy()
        return values

    lengths = array("lengths")
    return Microbatch(
        batch=Batch(array("input_ids").reshape(len(lengths), -1), lengths),
        labels=array("labels"),
        weights=array("weights"),
        documents=array("documents"),
        step_weight=row["step_weight"][0].as_py(),
        slot=row["slot"][0].as_py(),
        last=row["last"][0].as_py(),
        epoch=row["epoch"][0].as_py(),
    )
