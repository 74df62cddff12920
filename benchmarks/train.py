"""Training throughput against the Hugging Face Trainer and a bare PyTorch loop: `make bench-train`.

Arms, each in a process of its own, in an order that rotates from round to round, on one corpus; slow arms make fewer
steps:

    ours_1           the project's training (Ray Train), one worker with two threads
    ours_2           the same, two workers with one thread each and DDP
    trainer          transformers.Trainer as its text-classification guide has it: fp32, dropout 0.1, dynamic padding
    trainer_tuned    the same, grouped by length, bf16 autocast where the hardware has it, fused AdamW
    trainer_matched  tuned, and with our dropout of 0
    bare             a bare PyTorch loop over our batches held in memory, two threads
    ours_compiled    on a GPU: ours_1 with train.compile=true

for `minilm`, or with `--model distilbert` for a DistilBERT of full size with random weights. Reported are tokens a
second after the first steps (without padding), and seconds of start-up (`overhead`: of everything but the training).
Ratios are those of a round, as [lower quartile, median, upper quartile] over the rounds. `--loss` compares the
validation loss instead: after two epochs over three seeds, on the first 40 words of each text, ours minus that of
`trainer_matched`, paired. The last line is JSON.
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
from material import MODELS, prepared, quartiles

# Steps of 16 documents, after those that warm up. Grouped by length, the Trainer reads 48 of 240 documents from the
# longest to the shortest, then the next: of such three steps none may be left out.
STEPS = {
    "minilm": {"trainer": 3, "trainer_tuned": 9, "trainer_matched": 18, "ours_1": 24, "ours_2": 24, "bare": 24},
    "distilbert": {"trainer": 2, "trainer_tuned": 3, "trainer_matched": 6, "ours_1": 8, "ours_2": 8, "bare": 8},
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps, for faster hardware")
    parser.add_argument(
        "--gpu", action=argparse.BooleanOptionalAction, help="on one GPU; the default where there is one"
    )
    parser.add_argument("--model", default="minilm", choices=MODELS)
    parser.add_argument("--loss", action="store_true", help="compare the validation loss, not the speed")
    options = parser.parse_args()
    options.gpu = torch.cuda.is_available() if options.gpu is None else options.gpu
    with tempfile.TemporaryDirectory() as scratch:
        documents = round((GPU_DOCUMENTS if options.gpu else DOCUMENTS) * max(1, options.scale))
        given = (Path(scratch), options.model, options.texts, documents)
        if options.loss:
            result = nll_gap(prepared(*given, words=LOSS_WORDS))
        else:
            result = report(measured(prepared(*given, options.gpu), options))
    print(json.dumps({"model": options.model, **result}))
    return 0


def measured(job: dict[str, Any], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Results of every arm, one per round."""
    planned = GPU_STEPS if options.gpu else STEPS[job["name"]]
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in planned}
    for number in range(options.rounds):
        first = number % len(runs)
        for arm in [*runs][first:] + [*runs][:first]:
            runs[arm] += call(arm, job, max(1, round(planned[arm] * options.scale)), [0])
            print(f"{job['name']} {arm}: {runs[arm][-1]}", file=sys.stderr, flush=True)
    return runs


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


def report(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Speed of ours against each peer, and the results of all arms."""

    def ratio(over: str, under: str) -> list[float]:
        pairs = zip(runs[over], runs[under], strict=True)
        return quartiles([top["tokens_per_second"] / bottom["tokens_per_second"] for top, bottom in pairs])

    peers = {"vs_bare_loop": "bare"} | {f"vs_{arm}": arm for arm in ("trainer", "trainer_tuned", "trainer_matched")}
    ours = [arm for arm in runs if arm.startswith("ours")]
    return {
        **{name: ratio("ours_1", arm) for name, arm in peers.items()},
        **{f"{arm}_vs_ours_1": ratio(arm, "ours_1") for arm in ours if arm != "ours_1"},
        "arms": {
            arm: {name: quartiles([run[name] for run in of_arm]) for name in of_arm[0]} for arm, of_arm in runs.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
