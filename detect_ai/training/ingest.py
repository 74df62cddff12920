"""The streams of a training run, made by Ray Train when its workers stand. Imports Ray: import it inside functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray.data import Dataset, ExecutionOptions
from ray.train import DataConfig

from detect_ai.corpus.manifest import Corpus
from detect_ai.training import data, runlog
from detect_ai.training.data import Frame, TrainingPlan

EVAL_BATCH_TOKENS = 8192


class Streams(DataConfig):
    """Makes the streams of a run when its workers stand: for as many as there are, from the step they go on from.

    Args:
        corpus: what is read.
        frame: of the model.
        plan: its number of workers is not read.
        folder: key of the run.
    """

    def __init__(self, corpus: Corpus, frame: Frame, plan: TrainingPlan, folder: str) -> None:
        # Dealt by locality, the ranks of several machines would get one another's microbatches, and wait for ever.
        super().__init__(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)
        self._corpus, self._frame, self._plan, self._folder = corpus, frame, plan, folder

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> Any:
        """The shards of the stream that is asked for, one for each rank. Ray Train calls this after `write_start`."""
        made = {name: self._stream(name, world_size) for name in datasets}
        return super().configure(made, world_size, *args, **kwargs)

    def _stream(self, split: str, num_workers: int) -> Dataset:
        if split == "validation":
            # Without gradients four times what a training pass holds has room, so memory hangs on one setting.
            tokens = min(EVAL_BATCH_TOKENS, 4 * self._plan.microbatch_size * self._frame.widest)
            return data.scoring_stream(self._corpus, split, self._frame, num_workers, tokens)
        start = runlog.read_start(self._corpus.storage, self._folder)
        return data.training_stream(self._corpus, self._frame, replace(self._plan, num_workers=num_workers), start)


def later() -> Any:
    """Stands for a dataset that `Streams` makes."""
