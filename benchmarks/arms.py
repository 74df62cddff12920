"""One arm of `benchmarks/train.py` in its own process: `python benchmarks/arms.py ARM JOB`; JOB is JSON.

Every arm runs warm-up steps, then measures the `steps` of the job or, if `steps` is 0, two whole epochs, once for each
of its `seeds`. Prints metrics as JSON: tokens per second (without padding, warm-up and start-up), fraction of padding,
`start_up` (seconds until the first batch is read or, in our training, requested), `overhead` (seconds of everything
except training), validation loss.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from material import corpus_of, our_steps, settings, token_ids

BEGAN = time.time()
THREADS = 2


def warm(job: dict[str, Any]) -> int:
    """Steps before the measurement, in which processes start and GPU libraries and compiled code load."""
    return 20 if job["gpu"] else 2


def main() -> int:
    """Run the arm. Returns the exit code."""
    import torch

    arm, job = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(THREADS)
    kind: Callable[..., Any] = ours if arm.startswith("ours") else bare if arm.startswith("bare") else trainer
    print(json.dumps([kind(arm, job, settings(job, *more)) for more in runs(job)]))
    return 0


def runs(job: dict[str, Any]) -> list[list[str]]:
    """Overrides of every run of this process: one for each seed."""
    steps = job["steps"] + warm(job) if job["steps"] else 0
    return [[f"seed={seed}", f"train.max_steps={steps}", f"train.log_every={warm(job)}"] for seed in job["seeds"]]


def ours(arm: str, job: dict[str, Any], config: Any) -> dict[str, Any]:
    """The project's own training."""
    from detect_ai.core import ray_runtime
    from detect_ai.core.job import attempt
    from detect_ai.training.telemetry import read_metrics
    from detect_ai.training.train import run_training

    config.train.num_workers = 2 if arm == "ours_2" else 1
    config.train.compile = arm == "ours_compiled"
    config.train.threads_per_worker = THREADS // config.train.num_workers
    ray_runtime.connect()
    corpus, name = corpus_of(config), attempt("bench")
    started = time.perf_counter()
    result = run_training(config, corpus, name)
    seconds = time.perf_counter() - started
    lines = read_metrics(corpus.storage, f"runs/{config.run}/{name}")
    measured = [line for line in lines if line["kind"] == "training" and line["step"] > warm(job)]
    clock = sum(line["seconds"] for line in measured)
    last = result.history[-1]
    return {
        "tokens_per_second": round(sum(line["tokens_per_second"] * line["seconds"] for line in measured) / clock),
        "padding": last["padding"],
        "start_up": lines[0]["time"] - BEGAN,
        "overhead": seconds - sum(epoch["seconds"] for epoch in result.history),
        "val_loss": last["val_loss"],
    }


def trainer(arm: str, job: dict[str, Any], config: Any) -> dict[str, Any]:
    """transformers.Trainer over the same token ids."""
    corpus = corpus_of(config)
    if arm != "trainer_matched":
        config.model.dropout = 0.1
    train, validation = (rows_of(config, corpus, split) for split in ("train", "validation"))
    started = time.perf_counter()
    first = None
    if job["steps"]:
        # Short texts load the same libraries in the first step.
        few = train if job["gpu"] else train.select(np.argsort([len(ids) for ids in train["input_ids"]])[:16])
        warming, first = hugging_face(arm, job, config, few, warm(job) if job["gpu"] else 1)
        warming.train()
    loop, counted = hugging_face(arm, job, config, train, job["steps"])
    runtime = loop.train().metrics["train_runtime"]
    overhead = time.perf_counter() - started - runtime
    return {
        "tokens_per_second": round(counted.tokens / runtime),
        "padding": 1 - counted.tokens / counted.padded,
        "start_up": (first or counted).began - BEGAN,
        "overhead": overhead,
        **({} if job["steps"] else {"val_loss": loop.evaluate(validation)["eval_loss"]}),
    }


def hugging_face(arm: str, job: dict[str, Any], config: Any, rows: Any, steps: int) -> tuple[Any, Counter]:
    """The Trainer of an arm, and a counter of its tokens."""
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
        max_steps=steps or -1,
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
        train_sampling_strategy="group_by_length" if tuned and steps else "random",
    )
    network = encoder.build(config.model, config.seed)
    if config.model.dropout:
        network = with_attention_dropout(network, config.model.dropout)
    collator = transformers.DataCollatorWithPadding(pad)
    loop = transformers.Trainer(model=network, args=arguments, train_dataset=rows, data_collator=collator)
    return loop, Counter(network)


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
        self.padded = 0
        self.began = 0.0  # when the first batch was read
        network.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, network: Any, _: Any, inputs: dict[str, Any]) -> None:
        self.began = self.began or time.time()
        if network.training:
            self._tokens = self._tokens + inputs["attention_mask"].sum()
            self.padded += inputs["attention_mask"].numel()

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self._tokens)


def rows_of(config: Any, corpus: Any, split: str) -> Any:
    """A split as a dataset for the Trainer."""
    import datasets

    labels = [int(label) for label in corpus.labels(split)]
    ids = [row.tolist() for row in token_ids(config, corpus, split)]
    mask = [[1] * len(row) for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": labels})


def bare(arm: str, job: dict[str, Any], config: Any) -> dict[str, Any]:
    """A bare loop over our batches, which are prepared in advance."""
    import torch

    from detect_ai.models import encoder
    from detect_ai.models.backends.torch import autocast, model_inputs, upload

    device = torch.device("cuda" if job["gpu"] else "cpu")
    dtype = encoder.autocast_dtype("auto", device)
    network: Any = encoder.build(config.model, config.seed).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.train.lr, weight_decay=0.01, fused=True)
    steps = our_steps(config, corpus_of(config))
    began = time.time()
    for number, step in enumerate(steps):
        if number == warm(job):
            wait_for(device)
            started = time.perf_counter()
        for part in step:
            with autocast(device, dtype):
                logits = network(**model_inputs(part.batch, device)).logits
            target = upload(part.labels, device)
            loss = torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum")
            (loss / part.step_weight).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait_for(device)
    seconds = time.perf_counter() - started
    parts = [part.batch for step in steps[warm(job) :] for part in step]
    tokens, padded = sum(int(part.lengths.sum()) for part in parts), sum(part.input_ids.size for part in parts)
    return {"tokens_per_second": round(tokens / seconds), "padding": 1 - tokens / padded, "start_up": began - BEGAN}


def wait_for(device: Any) -> None:
    """Wait for queued work of a GPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
