"""One arm of `benchmarks/train.py` in a process of its own: `python benchmarks/arms.py ARM JOB`, JOB being JSON.

Every arm makes the job's `steps` (0: two epochs), once for each of its `seeds`. Prints its figures as JSON: real tokens
a second (padding and start-up not counted), share of padding, seconds besides the training, validation loss.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from material import BATCH, MICROBATCH, corpus_of, settings, token_ids

THREADS = 2


def main() -> int:
    """Run the arm. Returns the exit code."""
    import torch

    arm, job = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(THREADS)
    kind: Callable[..., Any] = ours if arm.startswith("ours") else bare if arm == "bare" else trainer
    print(json.dumps([kind(arm, job, settings(job, *more)) for more in runs(job)]))
    return 0


def runs(job: dict[str, Any]) -> list[list[str]]:
    """Overrides of every run of this process: one for each seed."""
    return [[f"seed={seed}", f"train.max_steps={job['steps']}"] for seed in job["seeds"]]


def ours(arm: str, job: dict[str, Any], config: Any) -> dict[str, Any]:
    """The project's own training."""
    from detect_ai import cluster
    from detect_ai.stage import attempt
    from detect_ai.training import run_training

    config.train.num_workers = 2 if arm == "ours_2" else 1
    config.train.threads_per_worker = THREADS // config.train.num_workers
    cluster.connect()
    corpus = corpus_of(config)
    started = time.perf_counter()
    result = run_training(config, corpus, attempt("bench"))
    seconds = time.perf_counter() - started
    last = result.history[-1]
    return {
        "tokens_per_second": last["tokens_per_second"],
        "padding": last["padding"],
        "start_up": seconds - sum(epoch["seconds"] for epoch in result.history),
        "val_loss": last["val_loss"],
        **({"mfu": last["mfu"]} if "mfu" in last else {}),
    }


def trainer(arm: str, job: dict[str, Any], config: Any) -> dict[str, Any]:
    """transformers.Trainer over the same token ids."""
    from dataclasses import replace

    import torch
    import transformers

    from detect_ai import model

    corpus = corpus_of(config)
    if arm != "trainer_matched":
        config.model = replace(config.model, dropout=0.1, attention_dropout=0.1)
    network = model.build(config.model, config.seed)
    source, _ = model.resolve(config.model)
    pad = transformers.AutoTokenizer.from_pretrained(source)
    train, validation = (rows_of(config, corpus, split) for split in ("train", "validation"))
    tuned = arm != "trainer"
    device = torch.device("cuda" if job["gpu"] else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            learning_rate=config.train.lr,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            max_steps=steps_of(config, len(train)),
            weight_decay=0.01,
            warmup_steps=config.train.warmup,  # below 1 a share of the steps
            seed=config.seed,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not job["gpu"],
            bf16=tuned and model.has_bf16(device),  # emulated it would be slower than fp32
            optim="adamw_torch_fused" if tuned else "adamw_torch",
            train_sampling_strategy="group_by_length" if tuned else "random",
        )
        started = time.perf_counter()
        loop = transformers.Trainer(
            model=network,
            args=arguments,
            train_dataset=train,
            data_collator=(counted := Counted(transformers.DataCollatorWithPadding(pad))),
        )
        runtime = loop.train().metrics["train_runtime"]
        seconds = time.perf_counter() - started
        tokens, padded = counted.tokens, counted.padded
        loss = loop.evaluate(validation)["eval_loss"]
    return {
        "tokens_per_second": round(tokens / runtime),
        "padding": 1 - tokens / padded,
        "start_up": seconds - runtime,
        "val_loss": loss,
    }


class Counted:
    """A collator that counts what it hands out."""

    def __init__(self, collator: Any) -> None:
        self._collator, self.tokens, self.padded = collator, 0, 0

    def __call__(self, rows: Any) -> Any:
        """Collate and count."""
        batch = self._collator(rows)
        self.tokens += int(batch["attention_mask"].sum())
        self.padded += int(batch["attention_mask"].numel())
        return batch


def rows_of(config: Any, corpus: Any, split: str) -> Any:
    """A split as the Trainer takes it."""
    import datasets

    labels = [int(label) for label in corpus.labels(split)]
    ids = [row.tolist() for row in token_ids(config, corpus, split)]
    mask = [[1] * len(row) for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": labels})


def steps_of(config: Any, documents: int) -> int:
    """Steps of a run."""
    return config.train.max_steps or config.train.epochs * -(-documents // BATCH)


def bare(arm: str, job: dict[str, Any], config: Any) -> dict[str, Any]:
    """A bare loop: our batches, made beforehand."""
    import torch

    from detect_ai import batches, model
    from detect_ai.backends.torch import autocast, model_inputs

    corpus = corpus_of(config)
    device = torch.device("cuda" if job["gpu"] else "cpu")
    dtype = model.autocast_dtype("auto", device)
    network = model.build(config.model, config.seed).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.train.lr, weight_decay=0.01, fused=True)
    ids, labels = token_ids(config, corpus, "train"), corpus.labels("train")
    lengths, nothing = np.asarray([len(row) for row in ids]), np.empty(0, np.int32)
    rng = np.random.default_rng(config.seed)
    epochs = (batches.plan_steps(lengths, labels, BATCH, MICROBATCH, rng) for _ in itertools.count())
    plan = itertools.islice(itertools.chain.from_iterable(epochs), steps_of(config, len(ids)))
    made = [
        [(batches.collate([ids[i] for i in part], nothing, nothing, 0), labels[part]) for part in step] for step in plan
    ]
    started = time.perf_counter()
    for step in made:
        count = sum(len(truth) for _, truth in step)
        for batch, truth in step:
            with autocast(device, dtype):
                logits = network(**model_inputs(batch, device)).logits
            target = torch.from_numpy(np.asarray(truth)).to(device)
            (torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum") / count).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if job["gpu"]:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    parts = [batch for step in made for batch, _ in step]
    tokens, padded = sum(int(part.lengths.sum()) for part in parts), sum(part.input_ids.size for part in parts)
    return {"tokens_per_second": round(tokens / seconds), "padding": 1 - tokens / padded}


if __name__ == "__main__":
    sys.exit(main())
