"""What the choice of a step's documents costs and gives: `python benchmarks/steps.py`, on the sample, with `minilm`.

One bare loop, three ways to cut an epoch into steps of 16 documents and microbatches of 4:

    by_length    documents of like length, whatever their class (as group_by_length, over the whole epoch)
    at_random    documents drawn at random, sorted by length within the step only
    by_class     the project's plan: like lengths within each class, every step with the classes in their shares

For each the validation loss over seeds, the share of padding, and the spread of the share of AI texts over the steps.
The last line is JSON. The sample is small: the figures compare plans and say nothing of a detector's quality.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import BATCH, LR, MICROBATCH, corpus_of, prepared, settings, token_ids

from detect_ai import metrics
from detect_ai.models import batch as batches
from detect_ai.models import encoder
from detect_ai.models.backends.torch import autocast, log_odds, model_inputs
from detect_ai.training.trainer import lr_share

PLANS = ("by_length", "at_random", "by_class")
NOTHING = np.empty(0, np.int32)


def main() -> int:
    """Run all plans over all seeds. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="Parquet file or folder with columns `text` and `label`; else the sample")
    parser.add_argument("--documents", type=int, default=352, help="of training")
    parser.add_argument("--words", type=int, help="read so many words of a text, as benchmarks/train.py for its losses")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        job = prepared(Path(scratch), "minilm", options.texts, options.documents, words=options.words)
        corpus = corpus_of(settings(job))
        splits = {s: (token_ids(settings(job), corpus, s), corpus.labels(s)) for s in ("train", "validation")}
        found: dict[str, list[dict[str, float]]] = {plan: [] for plan in PLANS}
        for seed in options.seeds:
            for plan in PLANS:
                found[plan].append(trained(plan, settings(job, f"seed={seed}"), splits, options.epochs))
                print(f"seed {seed} {plan}: {found[plan][-1]}", file=sys.stderr, flush=True)
    print(json.dumps({plan: {name: [run[name] for run in runs] for name in runs[0]} for plan, runs in found.items()}))
    return 0


def steps(plan: str, lengths: Any, labels: Any, rng: np.random.Generator) -> list[list[Any]]:
    """The steps of an epoch, each a list of microbatches."""
    if plan == "at_random":
        drawn = np.array_split(rng.permutation(len(lengths)), batches.num_steps(len(lengths), BATCH))
        return [np.array_split(step[np.argsort(lengths[step])], BATCH // MICROBATCH) for step in drawn]
    return batches.plan_steps(lengths, labels if plan == "by_class" else labels * 0, BATCH, MICROBATCH, rng)


def trained(plan: str, config: Any, splits: dict[str, Any], epochs: int) -> dict[str, float]:
    """Train by a plan and judge the validation split."""
    ids, labels = splits["train"]
    lengths, rng, device = (
        np.asarray([len(row) for row in ids]),
        np.random.default_rng(config.seed),
        torch.device("cpu"),
    )
    network, dtype = encoder.build(config.model, config.seed).train(), encoder.autocast_dtype("auto", device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01, fused=True)
    planned = [step for _ in range(epochs) for step in steps(plan, lengths, labels, rng)]
    padded, shares = 0, []
    for done, step in enumerate(planned):
        optimizer.param_groups[0]["lr"] = LR * lr_share(done, len(planned), 0.1, "linear")
        for part in step:
            batch = batches.collate([ids[i] for i in part], NOTHING, NOTHING, 0)
            with autocast(device, dtype):
                logits = network(**model_inputs(batch, device)).logits
            losses = torch.nn.functional.cross_entropy(logits.float(), torch.from_numpy(labels[part]), reduction="sum")
            (losses / sum(map(len, step))).backward()
            padded += batch.input_ids.size
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        shares.append(labels[np.concatenate(step)].mean())
    return {
        "val_loss": round(judged(network, *splits["validation"]), 4),
        "padding": round(1 - epochs * lengths.sum() / padded, 4),
        "share_of_ai_sd": round(statistics.pstdev(shares), 4),
    }


def judged(network: Any, ids: list[Any], labels: Any) -> float:
    """Mean negative log-likelihood."""
    network.eval()
    with torch.inference_mode():
        rows = [batches.collate([row], NOTHING, NOTHING, 0) for row in ids]
        scores = [float(log_odds(network(**model_inputs(row, torch.device("cpu"))).logits)[0]) for row in rows]
    return metrics.log_loss(labels, 1 / (1 + np.exp(-np.asarray(scores))))


if __name__ == "__main__":
    sys.exit(main())
