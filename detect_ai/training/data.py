"""Input streams of a training run: from tokenised shards to microbatches on every rank.

A shard is a pool, whose steps are planned (`detect_ai.training.batch_plan`) when it is read. A single worker reads the
pools in its own process. With several workers, one Ray Data task reads a pool and yields one row per microbatch. Every
row is a separate block and the order is preserved, so `streaming_split(equal=True)` sends row i to rank i mod W. Steps
are padded with empty microbatches to a multiple of W: all ranks run the same number of steps, and a step has the same
documents for any W.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig

from detect_ai.core.config import Config, ModelConfig
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import ORIGINAL, Corpus
from detect_ai.models.batch import collate, padded_length, plan_scoring
from detect_ai.models.tokenizer import Ids, Tokenizer
from detect_ai.text import windows
from detect_ai.training import checkpoint
from detect_ai.training.batch_plan import Microbatch, num_steps, pad_to_world_size, plan_steps

EVAL_BATCH_TOKENS = 8192
AHEAD = 32  # microbatches prefetched into memory


@dataclass(frozen=True)
class WindowFormat:
    """Window layout, to convert token ids to rows of a batch."""

    prefix: Ids  # special tokens before each window
    suffix: Ids  # special tokens after each window
    pad_id: int
    window: int  # tokens, special tokens included
    stride: int  # tokens between the starts of neighbouring windows

    @classmethod
    def of(cls, tokenizer: Tokenizer, model: ModelConfig) -> WindowFormat:
        """The format of a tokenizer and a model."""
        return cls(tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id, model.window, model.stride)

    @property
    def num_special(self) -> int:
        """Number of special tokens around each window."""
        return len(self.prefix) + len(self.suffix)


@dataclass(frozen=True)
class Plan:
    """What the ranks of a run read: the pools in order, and `read`, which yields a pool's microbatches round-robin."""

    pools: list[dict[str, Any]]
    read: Callable[[dict[str, Any]], Iterator[Microbatch]]
    num_workers: int

    def microbatches(self) -> Iterator[Microbatch]:
        """All microbatches, prefetched while the model runs: the stream of a single worker."""
        stream = (microbatch for pool in self.pools for microbatch in self.read(pool))
        thread = ThreadPoolExecutor(1)
        try:
            following = deque(thread.submit(next, stream, None) for _ in range(AHEAD))
            while (microbatch := following.popleft().result()) is not None:
                following.append(thread.submit(next, stream, None))
                yield microbatch
        finally:
            thread.shutdown(cancel_futures=True)

    def dataset(self) -> Dataset:
        """All microbatches, one per block."""
        import ray

        def rows(item: pa.Table) -> Iterator[pa.Table]:
            for microbatch in self.read(item.to_pylist()[0]):
                yield pa.table({"microbatch": [pickle.dumps(microbatch)]})

        # One reader per rank: by default Ray Data starts a process for every shard while CPUs are free.
        compute = ray.data.TaskPoolStrategy(size=self.num_workers)
        dataset = ray.data.from_items(self.pools, override_num_blocks=len(self.pools))
        stream: Dataset = dataset.map_batches(rows, batch_size=1, batch_format="pyarrow", compute=compute)
        # A yielded table becomes a block when it reaches the target size: 1 byte makes every row a separate block.
        stream.context.target_max_block_size = 1
        stream.context.execution_options.preserve_order = True
        stream.context.enable_progress_bars = False  # the run logs its steps
        return stream


class StreamDataConfig(DataConfig):
    """Ray Train `DataConfig`: builds the streams for the started workers, from the step at which `folder` resumes."""

    def __init__(self, corpus: Corpus, form: WindowFormat, config: Config, folder: str) -> None:
        # With locality, ranks on several machines would get each other's microbatches and wait indefinitely.
        super().__init__(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)
        self._corpus, self._form, self._config, self._folder = corpus, form, config, folder

    def plan(self, split: str, num_workers: int, start: int = 0) -> Plan:
        """What the ranks read of a split: `train` for all epochs from step `start`, otherwise every window once."""
        if split == "train":
            return training_plan(self._corpus, self._form, self._config, num_workers, start)
        # Without gradients, four times the tokens of a training pass fit into memory, so one setting controls both.
        window = padded_length(self._form.window)
        tokens = min(EVAL_BATCH_TOKENS, 4 * self._config.train.microbatch_size * window)
        return scoring_plan(self._corpus, split, self._form, num_workers, tokens)

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> Any:
        """The shards of the requested streams, one per rank. Ray Train calls this when rank 0 requests its shard."""
        # The workers have restored the same checkpoint before: Ray Train gives them the last registered one.
        start = checkpoint.resume_step(self._corpus.storage, self._folder)
        streams = {split: self.plan(split, world_size, start).dataset() for split in datasets}
        return super().configure(streams, world_size, *args, **kwargs)


def training_plan(corpus: Corpus, form: WindowFormat, config: Config, num_workers: int, start: int = 0) -> Plan:
    """All microbatches of all epochs from step `start`. Each epoch has another shard order and other windows."""
    pools, root = training_pools(corpus, config, start), corpus.storage.root
    assert pools, f"step {start}: the run has no more steps"
    return Plan(
        pools, lambda pool: training_microbatches(read_pool(root, pool), pool, form, config, num_workers), num_workers
    )


def scoring_plan(corpus: Corpus, split: str, form: WindowFormat, num_workers: int, batch_tokens: int) -> Plan:
    """Every window of every document of a split once, in batches of similar length."""
    root = corpus.storage.root
    return Plan(
        _pools(corpus, split),
        lambda pool: scoring_microbatches(read_pool(root, pool), pool, form, num_workers, batch_tokens),
        num_workers,
    )


def read_stream(shard: Any) -> Iterator[Microbatch]:
    """The microbatches that Ray Data sends to a rank, prefetched while the model runs."""
    for row in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        assert row.num_rows == 1, f"expected one microbatch in a block, found {row.num_rows}"
        yield pickle.loads(row["microbatch"][0].as_py())  # noqa: S301  # from a task of this run


def steps_per_epoch(corpus: Corpus, batch_size: int) -> int:
    """Optimizer steps of one epoch, for any number of workers."""
    return sum(num_steps(shard.rows, batch_size) for shard in corpus.shards("train"))


def training_pools(corpus: Corpus, config: Config, start: int) -> list[dict[str, Any]]:
    """The shards of all epochs from step `start`, each with the number of its steps to skip."""
    pools, shards, before = [], _pools(corpus, "train"), start
    for epoch in range(config.train.epochs):
        for i in np.random.default_rng([config.seed, epoch]).permutation(len(shards)):
            steps = num_steps(shards[i]["rows"], config.train.batch_size)
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
    """The rows of a shard, with the columns that training reads."""
    return Storage(root).read_table(pool["key"], ["input_ids", "label", "weight", "attack"])


def training_microbatches(
    table: pa.Table, pool: dict[str, Any], form: WindowFormat, config: Config, num_workers: int
) -> Iterator[Microbatch]:
    """The microbatches of a shard in one epoch, for all ranks round-robin."""
    train, content = config.train, form.window - form.num_special
    rng = np.random.default_rng([config.seed, pool["epoch"], pool["number"]])
    if train.shortest_span:
        ids = windows.sample_span(_token_ids(table), content, train.shortest_span, rng)
    else:
        ids = windows.sample_window(_token_ids(table), content, form.stride, rng)
    labels = table["label"].to_numpy().astype(np.int64)
    weights = table["weight"].to_numpy().astype(np.float32)
    weights[pc.not_equal(table["attack"], ORIGINAL).to_numpy()] *= np.float32(train.attack_weight)
    lengths = np.asarray([len(row) + form.num_special for row in ids])
    steps = plan_steps(lengths, labels, train.batch_size, train.microbatch_size, rng)
    for step in steps[pool["skip"] :]:
        step_weight = float(sum(weights[positions].sum() for positions in step))
        slots = pad_to_world_size(step, num_workers)
        for slot, positions in enumerate(slots):
            last = slot >= len(slots) - num_workers
            documents, rows = pool["first"] + positions, [ids[i] for i in positions]
            yield _microbatch(rows, form, labels[positions], weights[positions], documents, step_weight, slot, last)


def scoring_microbatches(
    table: pa.Table, pool: dict[str, Any], form: WindowFormat, num_workers: int, batch_tokens: int
) -> Iterator[Microbatch]:
    """The batches of all windows of a shard, for all ranks round-robin."""
    rows, owners = windows.split_windows(_token_ids(table), form.window - form.num_special, form.stride)
    labels, weights = table["label"].to_numpy().astype(np.int64), table["weight"].to_numpy()
    lengths = np.asarray([len(row) + form.num_special for row in rows])
    for positions in pad_to_world_size(plan_scoring(lengths, batch_tokens), num_workers):
        documents, ids = owners[positions], [rows[i] for i in positions]
        yield _microbatch(ids, form, labels[documents], weights[documents], pool["first"] + documents)


def _token_ids(table: pa.Table) -> list[Ids]:
    """The lists of the column `input_ids` as arrays, without a copy."""
    column = table["input_ids"].combine_chunks()
    values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _microbatch(
    ids: list[Ids],
    form: WindowFormat,
    labels: NDArray[np.int64],
    weights: NDArray[np.float32],
    documents: NDArray[np.int64],
    step_weight: float = 1.0,
    slot: int = 0,
    last: bool = True,
) -> Microbatch:
    """Collate rows. An empty microbatch gets one row of special tokens with weight 0."""
    if not ids:
        ids, documents = [np.empty(0, dtype=np.int32)], np.full(1, -1)
        labels, weights = np.zeros(1, np.int64), np.zeros(1, np.float32)
    batch = collate(ids, form.prefix, form.suffix, form.pad_id)
    return Microbatch(batch, labels, weights, documents, step_weight, slot, last)
