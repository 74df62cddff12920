"""Where the time of a training step goes, by kind of operation: `python benchmarks/operations.py`.

For `minilm` and a DistilBERT of full size with random weights, on documents of the sample up to 512 tokens, 16 to a
step, in fp32 on the CPU: our model on our batches, and the model as transformers has it, with dropout 0.1, on batches
drawn at random and padded to their longest document, as the Trainer's guide has it. `torch.profiler` counts the time
that each operation spends itself, and each kind is given in microseconds for a real token (padding not counted). The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import plain
from material import BATCH, LR, MODELS, corpus_of, our_steps, prepared, settings, token_ids
from torch import profiler

from detect_ai.models import batch as batches
from detect_ai.models import encoder
from detect_ai.models.backends.torch import model_inputs

# The first kind of which a part of an operation's name is a word; what is left over is `other`.
KINDS = {
    "products": ("mm", "linear"),
    "attention": ("attention",),
    "dropout": ("bernoulli", "dropout", "rand"),
    "optimizer": ("adam",),
    "embeddings": ("embedding", "index"),
    "pointwise": ("gelu", "norm", "add", "mul", "div", "copy", "sum", "tanh", "zero", "fill", "where", "pow"),
}


def main() -> int:
    """Profile both arms of both models. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(2)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            job = prepared(Path(scratch), name, None, 16 * BATCH)
            for arm in ("ours", "trainer"):
                found[f"{name} {arm}"] = profiled(arm, settings(job, f"train.max_steps={options.steps + 1}"))
                print(f"{name} {arm}: {found[f'{name} {arm}']}", file=sys.stderr, flush=True)
    print(json.dumps(found))
    return 0


def profiled(arm: str, config: Any) -> dict[str, float]:
    """Microseconds for a real token by kind of operation; and products of a padded token, in GFLOP a second."""
    if arm == "trainer":
        config.model = replace(config.model, dropout=0.1, attention_dropout=0.1)
    network = encoder.build(config.model, config.seed)
    network = (network if arm == "ours" else plain(network)).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01, fused=arm == "ours")
    steps = ours(config) if arm == "ours" else at_random(config)
    train(network, optimizer, steps[:1])
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU], with_flops=True) as profile:
        train(network, optimizer, steps[1:])
    tokens = sum(int(batch.lengths.sum()) for step in steps[1:] for batch, _ in step)
    times: Counter[str] = Counter()
    for event in profile.key_averages():
        times[kind(event.key)] += event.self_cpu_time_total
    flops = sum(event.flops for event in profile.key_averages())
    shares = {name: round(time / tokens, 1) for name, time in times.most_common()}
    return {**shares, "all": round(times.total() / tokens, 1), "gflops": round(flops / times["products"] / 1e3)}


def kind(operation: str) -> str:
    """What an operation is for."""
    return next((name for name, parts in KINDS.items() if any(part in operation for part in parts)), "other")


def ours(config: Any) -> list[Any]:
    """Our steps: microbatches and labels."""
    return [[(part.batch, part.labels) for part in step] for step in our_steps(config, corpus_of(config))]


def at_random(config: Any) -> list[Any]:
    """Steps of documents drawn at random, in one batch each."""
    corpus = corpus_of(config)
    ids, labels = token_ids(config, corpus, "train"), corpus.labels("train")
    drawn = np.random.default_rng(0).permutation(len(ids))
    nothing = np.empty(0, np.int32)
    rows = [drawn[i * BATCH : (i + 1) * BATCH] for i in range(config.train.max_steps)]
    return [[(batches.collate([ids[i] for i in row], nothing, nothing, 0), labels[row])] for row in rows]


def train(network: Any, optimizer: Any, steps: list[Any]) -> None:
    """Make steps."""
    for step in steps:
        for batch, labels in step:
            logits = network(**model_inputs(batch, torch.device("cpu"))).logits
            target = torch.from_numpy(np.asarray(labels, dtype=np.int64))
            (torch.nn.functional.cross_entropy(logits, target, reduction="sum") / BATCH).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    sys.exit(main())
