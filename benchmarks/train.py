"""Training throughput against the Hugging Face Trainer and a bare PyTorch loop: `make bench-train`.

Arms, each in a process of its own, in order and in reversed order, on one corpus; slow arms make fewer steps:

    ours_1           the project's training (Ray Data, Ray Train), one worker with two threads
    ours_2           the same, two workers with one thread each
    trainer          transformers.Trainer as its text-classification guide has it: fp32, dropout 0.1, dynamic padding
    trainer_tuned    the same, grouped by length, bf16 autocast where the hardware has it, fused AdamW
    trainer_matched  tuned, and with our dropout of 0
    bare             a bare PyTorch loop over our batches held in memory, two threads
    ours_compiled    on a GPU: ours_1 with train.compile=true

for `minilm` and for a DistilBERT of full size with random weights. Reported are tokens a second after the first steps
(without padding), seconds of start-up (`overhead`: of everything but the training) as medians over the rounds with
their range. For `minilm` also the validation loss after two epochs over three seeds, on the first 40 words of each
text, ours minus that of `trainer_matched`, paired.
The last line is JSON; its ratios are those of `ours_1` and of the model where they are worse, `two_workers` those of
`ours_2`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from material import MODELS, prepared

# Steps of 16 documents, after those that warm up. Grouped by length, the Trainer reads 48 of 240 documents from the
# longest to the shortest, then the next: of such three steps none may be left out.
STEPS = {
    "minilm": {"trainer": 2, "trainer_tuned": 6, "trainer_matched": 9, "ours_1": 6, "ours_2": 6, "bare": 6},
    "distilbert": {"trainer": 1, "trainer_tuned": 3, "trainer_matched": 3, "ours_1": 3, "ours_2": 3, "bare": 3},
}
# On a GPU, of 64 documents.
GPU_ARMS = ("trainer", "trainer_tuned", "trainer_matched", "ours_1", "ours_compiled", "bare")
GPU_STEPS = dict.fromkeys(GPU_ARMS, 160) | {"trainer": 40}
DOCUMENTS = 240  # of training
GPU_DOCUMENTS = 12_800
SEEDS = (0, 1, 2)
LOSS_WORDS = 40  # of each text, where losses are compared


def main() -> int:
    """Run all arms. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="Parquet file or folder with columns `text` and `label`; else the sample")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps, for faster hardware")
    parser.add_argument(
        "--gpu", action=argparse.BooleanOptionalAction, help="on one GPU; the default where there is one"
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    options.gpu = torch.cuda.is_available() if options.gpu is None else options.gpu
    with tempfile.TemporaryDirectory() as scratch:
        documents = round((GPU_DOCUMENTS if options.gpu else DOCUMENTS) * max(1, options.scale))
        jobs = {name: prepared(Path(scratch), name, options.texts, documents, options.gpu) for name in options.models}
        results = {}
        gap: dict[str, Any] = {}
        for name, job in jobs.items():
            results[name] = measured(job, options)
            if name == "minilm" and not options.gpu:
                gap = nll_gap(prepared(Path(scratch), name, options.texts, documents, words=LOSS_WORDS))
    print(json.dumps({**ratios(results), **gap, "models": results}))
    return 0


def measured(job: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds of every metric of every arm."""
    planned = GPU_STEPS if options.gpu else STEPS[job["name"]]
    steps = {arm: round(n * options.scale) for arm, n in planned.items()}
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in steps}
    for number in range(options.rounds):
        for arm in steps if number % 2 == 0 else reversed(steps):
            runs[arm] += call(arm, job, max(1, steps[arm]), [0])
            print(f"{job['name']} {arm}: {runs[arm][-1]}", file=sys.stderr, flush=True)
    return {arm: summary(of_arm) for arm, of_arm in runs.items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each metric, and the lowest and highest speed."""
    speeds = [run["tokens_per_second"] for run in runs]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0] if name != "val_loss"}
    return {**{name: round(value, 4) for name, value in medians.items()}, "spread": [min(speeds), max(speeds)]}


def call(arm: str, job: dict[str, Any], steps: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Run an arm in a process of its own, once for each seed; 0 steps: all of two epochs."""
    folder = Path(__file__).parent
    given = json.dumps({**job, "steps": steps, "seeds": seeds})
    command = [sys.executable, str(folder / "arms.py"), arm, given]
    done = subprocess.run(command, cwd=folder.parent, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    result: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def nll_gap(job: dict[str, Any]) -> dict[str, Any]:
    """Validation loss after the same examples, two epochs, ours minus the matched Trainer's, over seeds."""
    pairs = list(zip(*(call(arm, job, 0, list(SEEDS)) for arm in ("ours_1", "trainer_matched")), strict=True))
    for seed, (ours, theirs) in zip(SEEDS, pairs, strict=True):
        print(
            f"seed {seed}: ours {ours['val_loss']:.4f}, Trainer {theirs['val_loss']:.4f}", file=sys.stderr, flush=True
        )
    gaps = [ours["val_loss"] - theirs["val_loss"] for ours, theirs in pairs]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    return {"nll_gap": round(statistics.mean(gaps), 4), "nll_gap_standard_error": round(error, 4)}


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ours against each peer, of the model where it is worse; and the highest fraction of padding."""

    def worst(over: str, under: str) -> float | None:
        pairs = [(arms[over], arms[under]) for arms in results.values() if over in arms and under in arms]
        ratios = [top["tokens_per_second"] / bottom["tokens_per_second"] for top, bottom in pairs]
        return round(min(ratios), 3) if ratios else None

    def against(ours: str) -> dict[str, float | None]:
        peers = ("trainer", "trainer_tuned", "trainer_matched")
        return {f"vs_{arm}": worst(ours, arm) for arm in peers} | {"vs_bare_loop": worst(ours, "bare")}

    return {
        **against("ours_1"),
        "two_workers": against("ours_2"),  # as configs/train/default.yaml has it
        "ddp_efficiency": worst("ours_2", "ours_1"),
        "padding": max(arms["ours_1"]["padding"] for arms in results.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
