"""One arm of `benchmarks/train.py` in its own process: `python benchmarks/arms.py ARM JOB`; JOB is JSON.

With `steps` in the job, an arm makes some steps that do not count and `steps` that do, and writes their speed as JSON
to the file `result`. Otherwise it trains two whole epochs for each of the `seeds` and writes the validation losses.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from material import corpus_of, our_steps, settings, token_ids

BEGAN = time.time()
THREADS = 2


def warm(job: dict[str, Any]) -> int:
    """Steps that do not count: libraries load, and on a GPU code is compiled."""
    return 20 if job["gpu"] else 1


def main() -> int:
    """Run the arm. Returns the exit code."""
    import torch

    arm, job = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(THREADS)
    train: Callable[..., Any] = ours if arm.startswith("ours") else bare if arm.startswith("bare") else trainer
    losses = []
    for seed in job["seeds"]:
        config = settings(job, f"seed={seed}")
        if job["steps"]:
            config.train.max_steps = warm(job) + job["steps"]
            documents = sum(shard.rows for shard in corpus_of(config).shards("train"))
            config.train.epochs = 1 + math.ceil(config.train.max_steps * config.train.batch_size / documents)
            config.train.log_every = 2
        losses.append(train(arm, job, config))
    if not job["steps"]:
        Path(job["result"]).write_text(json.dumps(losses))
    return 0


class StepClock:
    """Measures the steps of an arm after those that do not count, and writes their speed.

    `since` names the starts of start-up times; `count` returns the tokens so far, without and with padding; `wait`
    waits for queued work of a GPU.
    """

    def __init__(
        self, job: dict[str, Any], since: dict[str, float], count: Callable[[], Any], wait: Callable[[], None]
    ) -> None:
        self._first, self._last = warm(job), warm(job) + job["steps"]
        self._file, self._count, self._wait = Path(job["result"]), count, wait
        self._start_up = {name: time.time() - start for name, start in since.items()}
        self._done = 0
        self._began: tuple[float, int, int] = (0.0, 0, 0)  # time and tokens

    def step(self) -> None:
        """Call it after every step."""
        self._done += 1
        if self._done not in (self._first, self._last):
            return
        self._wait()
        now = (time.perf_counter(), *self._count())
        if self._done == self._first:
            self._began = now
        else:
            seconds, tokens, padded = np.subtract(now, self._began).tolist()
            speed = {"tokens_per_second": tokens / seconds, "padding": 1 - tokens / padded}
            self._file.write_text(json.dumps(speed | self._start_up))


def ours(arm: str, job: dict[str, Any], config: Any) -> float:
    """The project's own training. Returns the validation loss."""
    from detect_ai.core import ray_runtime
    from detect_ai.core.job import attempt
    from detect_ai.training import train

    config.train.num_workers, config.train.threads_per_worker = 1, THREADS
    config.train.compile = arm == "ours_compiled"
    ray_runtime.connect()
    if job["steps"]:
        since = {"start_up": BEGAN, "start_up_after_ray": time.time()}
        train._train_loop = partial(measured_loop, job, since)
    result = train.run_training(config, corpus_of(config), attempt("bench"))
    return float(result.history[-1]["val_loss"])


def measured_loop(job: dict[str, Any], since: dict[str, float], arguments: dict[str, Any]) -> dict[str, Any]:
    """Our training loop on a worker, without an evaluation or a checkpoint before its end."""
    from detect_ai.training import worker

    tokens, clocks, plain = np.zeros(2, np.int64), list[StepClock](), worker.train_step

    def step(trainer: Any, microbatches: Any) -> None:
        if not clocks:
            clocks.append(StepClock(job, since, tokens.tolist, trainer.synchronize))
        plain(trainer, microbatches)
        for part in microbatches:
            tokens[:] += part.batch.lengths[part.documents >= 0].sum(), part.batch.input_ids.size
        clocks[0].step()

    worker.train_step = step
    return worker.train_loop(arguments | {"steps_per_epoch": arguments["config"].train.max_steps})


def trainer(arm: str, job: dict[str, Any], config: Any) -> float | None:
    """transformers.Trainer over the same token ids. Returns the validation loss, if two epochs are trained."""
    corpus = corpus_of(config)
    if arm != "trainer_matched":
        config.model.dropout = 0.1
    loop = hugging_face(arm, job, config, rows_of(config, corpus, "train"))
    loop.train()
    return None if job["steps"] else float(loop.evaluate(rows_of(config, corpus, "validation"))["eval_loss"])


def hugging_face(arm: str, job: dict[str, Any], config: Any, rows: Any) -> Any:
    """The Trainer of an arm."""
    import torch
    import transformers

    from detect_ai.models import encoder

    source, _ = encoder.resolve(config.model)
    pad = transformers.AutoTokenizer.from_pretrained(source)
    tuned, device = arm != "trainer", torch.device("cuda" if job["gpu"] else "cpu")
    arguments = transformers.TrainingArguments(
        output_dir=str(Path(tempfile.gettempdir()) / "unused"),
        learning_rate=config.train.lr,
        per_device_train_batch_size=config.train.batch_size,
        per_device_eval_batch_size=config.train.batch_size,
        num_train_epochs=config.train.epochs,
        max_steps=config.train.max_steps or -1,
        weight_decay=0.01,
        warmup_steps=config.train.warmup,  # below 1: a fraction of the steps
        seed=config.seed,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not job["gpu"],
        bf16=tuned and encoder.has_bf16(device),  # emulated bf16 would be slower than fp32
        optim="adamw_torch_fused" if tuned else "adamw_torch",
        # By length for speed; at random where quality is compared, because that trains better (docs/TRAINING.md).
        train_sampling_strategy="group_by_length" if tuned and job["steps"] else "random",
    )
    network = encoder.build(config.model, config.seed)
    if config.model.dropout:
        network = with_attention_dropout(network, config.model.dropout)
    collator = transformers.DataCollatorWithPadding(pad)
    loop = transformers.Trainer(model=network, args=arguments, train_dataset=rows, data_collator=collator)
    if job["steps"]:
        loop.add_callback(measuring(job, Counter(network), device))
    return loop


def measuring(job: dict[str, Any], counter: Counter, device: Any) -> Any:
    """A callback of the Trainer that measures its steps."""
    from transformers import TrainerCallback

    class Measuring(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.clock = StepClock(job, {"start_up": BEGAN}, counter.count, partial(wait_for, device))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.clock.step()

    return Measuring()


def with_attention_dropout(network: Any, rate: float) -> Any:
    """The same model with dropout in attention, which our encoder lacks."""
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(network.config, name):
            setattr(network.config, name, rate)
    copy = type(network)(network.config)
    copy.load_state_dict(network.state_dict())
    return copy


class Counter:
    """Counts tokens of training batches. The collator prepares one batch more than the training uses."""

    def __init__(self, network: Any) -> None:
        self._tokens: Any = 0  # on the device: reading it at every step would synchronise the GPU
        self._padded = 0
        network.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, network: Any, _: Any, inputs: dict[str, Any]) -> None:
        self._tokens = self._tokens + inputs["attention_mask"].sum()
        self._padded += inputs["attention_mask"].numel()

    def count(self) -> tuple[int, int]:
        """Tokens so far, without and with padding."""
        return int(self._tokens), self._padded


def rows_of(config: Any, corpus: Any, split: str) -> Any:
    """A split as a dataset for the Trainer."""
    import datasets

    labels = [int(label) for label in corpus.labels(split)]
    ids = [row.tolist() for row in token_ids(config, corpus, split)]
    mask = [[1] * len(row) for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": labels})


def bare(arm: str, job: dict[str, Any], config: Any) -> None:
    """A bare loop over our batches, which are prepared in advance."""
    import torch

    from detect_ai.models import encoder
    from detect_ai.models.backends.torch import autocast, model_inputs, upload

    device = torch.device("cuda" if job["gpu"] else "cpu")
    dtype = encoder.autocast_dtype("auto", device)
    network: Any = encoder.build(config.model, config.seed).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.train.lr, weight_decay=0.01, fused=True)
    steps = our_steps(config, corpus_of(config))
    tokens = padded = 0
    clock = StepClock(job, {"start_up": BEGAN}, lambda: (tokens, padded), partial(wait_for, device))
    for step in steps:
        for part in step:
            with autocast(device, dtype):
                logits = network(**model_inputs(part.batch, device)).logits
            target = upload(part.labels, device)
            loss = torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum")
            (loss / part.step_weight).backward()
            tokens, padded = tokens + int(part.batch.lengths.sum()), padded + part.batch.input_ids.size
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step()


def wait_for(device: Any) -> None:
    """Wait for queued work of a GPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
