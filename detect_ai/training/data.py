"""Stream the tokenised shards of a corpus to the ranks as whole microbatches, by Ray Data.

A shard is a pool: one Ray Data task reads it, plans its steps (`detect_ai.models.batch`) and emits one row for each
microbatch. Every row is a block of its own and the order is preserved, so `streaming_split(equal=True)` deals row i to
rank i mod W. Steps are filled up with empty microbatches to a multiple of W: all ranks make the same number of steps,
and a step holds the same documents at any W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detect_ai.core.config import ModelConfig
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import ORIGINAL, Corpus
from detect_ai.models import batch as batches
from detect_ai.models.tokenizer import Ids, Tokenizer
from detect_ai.text import windows

if TYPE_CHECKING:
    from ray.data import Dataset

_COLUMNS = ["input_ids", "label", "weight", "attack"]


@dataclass(frozen=True)
class Frame:
    """What turns token ids into the rows of a batch."""

    prefix: Ids
    suffix: Ids
    pad_id: int
    content: int
    stride: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, model: ModelConfig) -> Frame:
        """The frame of a tokenizer and the windows of a model."""
        content = model.window - tokenizer.num_special
        return cls(tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id, content, model.stride)

    @property
    def widest(self) -> int:
        """The padded length of a whole window."""
        return int(batches.padded_length(len(self.prefix) + self.content + len(self.suffix)))


@dataclass(frozen=True)
class Microbatch:
    """One forward pass of one rank.

    Attributes:
        batch: token ids and lengths; a single row of weight 0 when the microbatch is empty.
        labels: int64, shape (rows,).
        weights: float32, shape (rows,).
        documents: position of each row's document in the split, shape (rows,); -1 in an empty microbatch.
        step_weight: weight of all documents of the whole step, over all ranks.
        slot: its place in the step over all ranks: rank r of W has those of r, r + W, r + 2 W …
        last: whether the step ends with it on this rank.
        epoch: counted from 0.
    """

    batch: batches.Batch
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    documents: NDArray[np.int64]
    step_weight: float
    slot: int
    last: bool
    epoch: int


@dataclass(frozen=True)
class TrainingPlan:
    """How a training run reads a corpus."""

    batch_size: int
    microbatch_size: int
    epochs: int
    seed: int
    num_workers: int
    shortest_span: int = 0  # tokens; 0: whole windows are read
    class_weights: tuple[float, float] = (1.0, 1.0)  # of human and of AI texts
    attack_weight: float = 1.0  # of changed copies
    multiple: int = batches.LENGTH_MULTIPLE  # of which padded lengths are

    def num_steps(self, corpus: Corpus) -> int:
        """Steps of one epoch."""
        return sum(batches.num_steps(shard.rows, self.batch_size) for shard in corpus.shards("train"))


def training_stream(corpus: Corpus, frame: Frame, plan: TrainingPlan, start: int = 0) -> Dataset:
    """All microbatches of all epochs from a step on. Each epoch reads the shards in another order, and other windows.

    Raises:
        ValueError: no step is left.
    """
    items = _training_pools(corpus, plan, start)
    if not items:
        raise ValueError(f"step {start}: the run has no more steps")
    root = corpus.storage.root

    def expand(item: pa.Table) -> Iterator[pa.Table]:
        pool = item.to_pylist()[0]
        yield from _training_rows(_read(root, pool), pool, frame, plan)

    return _one_block_a_row(items, expand, plan.num_workers)


def scoring_stream(corpus: Corpus, split: str, frame: Frame, num_workers: int, batch_tokens: int) -> Dataset:
    """Every window of every document of a split once, in batches of like length."""
    root = corpus.storage.root

    def expand(item: pa.Table) -> Iterator[pa.Table]:
        pool = item.to_pylist()[0]
        yield from _scoring_rows(_read(root, pool), pool, frame, num_workers, batch_tokens)

    return _one_block_a_row([{**pool, "epoch": 0} for pool in _pools(corpus, split)], expand, num_workers)


def _one_block_a_row(
    items: list[dict[str, Any]], expand: Callable[[pa.Table], Iterator[pa.Table]], readers: int
) -> Dataset:
    import ray

    pools = ray.data.from_items(items, override_num_blocks=len(items))
    # One reader for each rank: left to itself Ray Data starts a process for every shard that it finds a CPU for.
    compute = ray.data.TaskPoolStrategy(size=readers)
    rows: Dataset = pools.map_batches(expand, batch_size=1, batch_format="pyarrow", compute=compute)
    # A yielded table becomes a block as soon as it reaches the target size. Rank r's next row must be the next block.
    rows.context.target_max_block_size = 1
    rows.context.execution_options.preserve_order = True
    rows.context.enable_progress_bars = False  # the run has a progress of its own
    return rows


def _training_pools(corpus: Corpus, plan: TrainingPlan, start: int) -> list[dict[str, Any]]:
    """The shards of all epochs from a step on, each with the steps of it that are not read again."""
    items = []
    before = start
    for epoch in range(plan.epochs):
        pools = _pools(corpus, "train")
        order = np.random.default_rng([plan.seed, epoch]).permutation(len(pools))
        for pool in (pools[i] for i in order):
            steps = batches.num_steps(pool["rows"], plan.batch_size)
            if before < steps:
                items.append({**pool, "epoch": epoch, "skip": before})
            before = max(0, before - steps)
    return items


def _pools(corpus: Corpus, split: str) -> list[dict[str, Any]]:
    pools, first = [], 0
    for number, shard in enumerate(corpus.shards(split)):
        pools.append({"key": corpus.shard_key(shard), "number": number, "first": first, "rows": shard.rows})
        first += shard.rows
    return pools


def _read(root: str, pool: dict[str, Any]) -> pa.Table:
    storage = Storage(root)
    return pq.read_table(storage.path(pool["key"]), columns=_COLUMNS, filesystem=storage.filesystem)


def _token_ids(table: pa.Table) -> list[Ids]:
    """The lists of a column as arrays, without a copy."""
    column = table["input_ids"].combine_chunks()
    values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _training_rows(table: pa.Table, pool: dict[str, Any], frame: Frame, plan: TrainingPlan) -> Iterator[pa.Table]:
    rng = np.random.default_rng([plan.seed, pool["epoch"], pool["number"]])
    documents = _token_ids(table)
    if plan.shortest_span:
        ids = windows.sample_span(documents, frame.content, plan.shortest_span, rng)
    else:
        ids = windows.sample_window(documents, frame.content, frame.stride, rng)
    labels = table["label"].to_numpy().astype(np.int64)
    weights = table["weight"].to_numpy() * np.asarray(plan.class_weights, np.float32)[labels]
    weights[pc.not_equal(table["attack"], ORIGINAL).to_numpy()] *= np.float32(plan.attack_weight)
    lengths = np.asarray([len(frame.prefix) + len(row) + len(frame.suffix) for row in ids])
    sizes = plan.batch_size, plan.microbatch_size
    for step in batches.plan_steps(lengths, labels, *sizes, rng, plan.multiple)[pool["skip"] :]:
        step_weight = float(sum(weights[positions].sum() for positions in step))
        slots = _filled_up(step, plan.num_workers)
        for slot, positions in enumerate(slots):
            yield _row(
                [ids[i] for i in positions],
                frame,
                plan.multiple,
                labels=labels[positions],
                weights=weights[positions],
                documents=pool["first"] + positions,
                step_weight=step_weight,
                slot=slot,
                last=slot >= len(slots) - plan.num_workers,
                epoch=pool["epoch"],
            )


def _scoring_rows(
    table: pa.Table, pool: dict[str, Any], frame: Frame, num_workers: int, batch_tokens: int
) -> Iterator[pa.Table]:
    rows, owners = windows.split_windows(_token_ids(table), frame.content, frame.stride)
    labels, weights = table["label"].to_numpy().astype(np.int64), table["weight"].to_numpy()
    lengths = np.asarray([len(row) + len(frame.prefix) + len(frame.suffix) for row in rows])
    for positions in _filled_up(batches.plan_scoring(lengths, batch_tokens), num_workers):
        documents = owners[positions]
        yield _row(
            [rows[i] for i in positions],
            frame,
            batches.LENGTH_MULTIPLE,
            labels=labels[documents],
            weights=weights[documents],
            documents=pool["first"] + documents,
            step_weight=1.0,
            slot=0,
            last=True,
            epoch=0,
        )


def _filled_up(microbatches: list[NDArray[np.int64]], num_workers: int) -> list[NDArray[np.int64]]:
    missing = -len(microbatches) % num_workers
    return [*microbatches, *[np.empty(0, dtype=np.int64)] * missing]


def _row(ids: list[Ids], frame: Frame, multiple: int, **fields: Any) -> pa.Table:
    """One microbatch as a table of one row. An empty one gets a row of special tokens that weighs nothing."""
    if not ids:
        ids = [np.empty(0, dtype=np.int32)]
        fields |= {"labels": np.zeros(1, np.int64), "weights": np.zeros(1, np.float32), "documents": np.full(1, -1)}
    batch = batches.collate(ids, frame.prefix, frame.suffix, frame.pad_id, multiple, frame.widest)
    fields |= {"input_ids": batch.input_ids.ravel(), "lengths": batch.lengths}
    return pa.table({name: pa.array([value]) for name, value in fields.items()})


def microbatch(row: pa.Table) -> Microbatch:
    """Read back what `_row` wrote."""
    assert row.num_rows == 1, f"expected one microbatch in a block, found {row.num_rows}"

    def array(name: str) -> NDArray[Any]:
        values: NDArray[Any] = row[name].combine_chunks().values.to_numpy()
        return values

    lengths = array("lengths")
    return Microbatch(
        batch=batches.Batch(array("input_ids").reshape(len(lengths), -1), lengths),
        labels=array("labels"),
        weights=array("weights"),
        documents=array("documents"),
        step_weight=row["step_weight"][0].as_py(),
        slot=row["slot"][0].as_py(),
        last=row["last"][0].as_py(),
        epoch=row["epoch"][0].as_py(),
    )
