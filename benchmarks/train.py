"""Training throughput against the Hugging Face Trainer and a bare PyTorch loop: `make bench-train`.

Arms, each in a new process, in an order that rotates from round to round: A B C B C A … Side by side they would
distort each other: with others in memory, an arm with large batches loses a quarter of its speed.

    ours_1           the project's training (Ray Train), one worker with two threads
    trainer          transformers.Trainer as its text-classification guide has it: fp32, dropout 0.1, dynamic padding
    trainer_tuned    the same, grouped by length, bf16 autocast where the hardware has it, fused AdamW
    trainer_matched  tuned, and with our dropout of 0
    bare             a bare PyTorch loop over our batches held in memory, two threads
    ours_2           only with `--arms`: ours with two workers of one thread each and DDP
    ours_compiled    on a GPU: ours_1 with train.compile=true

for `minilm`, or with `--model distilbert` for a DistilBERT of full size with random weights (use `--rounds 2`).
Reported are tokens per second without padding, and the seconds until the first step from the start of the program
(`start_up`) and from the start of Ray (`start_up_after_ray`). The first step does not count (on a GPU: 20 steps), and
no arm evaluates or writes a checkpoint before the last. Ratios are those of a round, as [lower quartile, median, upper
quartile] over the rounds. `--loss` compares the validation loss instead: after two epochs over three seeds, on the
first 40 words of each text, ours minus that of `trainer_matched`, paired. The last line is JSON.
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

import numpy as np
import torch
from material import CHECKOUT, MODELS, prepared, quartiles
from numpy.typing import NDArray

# Steps that count, of 16 documents. Grouped by length, the Trainer reads 48 of 240 documents from the longest to the
# shortest, then the next: three steps.
STEPS = {"ours_1": 5, "trainer": 1, "trainer_tuned": 3, "trainer_matched": 3, "bare": 5, "ours_2": 5}
# Of 64 documents, on a GPU. The Trainer groups 3,200 documents: 50 steps.
GPU_STEPS = {"ours_1": 50, "trainer": 10, "trainer_tuned": 50, "trainer_matched": 50, "bare": 50, "ours_compiled": 50}
OPTIONAL = ("ours_2",)
DOCUMENTS = 240  # of training
GPU_DOCUMENTS = 12_800
SEEDS = (0, 1, 2)
LOSS_WORDS = 40  # of each text, where losses are compared


def main() -> int:
    """Run all arms. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="Parquet file or folder with columns `text` and `label`; else the sample")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--gpu", action=argparse.BooleanOptionalAction, help="on one GPU; the default where there is one"
    )
    parser.add_argument("--model", default="minilm", choices=MODELS)
    parser.add_argument(
        "--arms", nargs="+", choices=sorted(STEPS | GPU_STEPS), help="the first is compared with others"
    )
    parser.add_argument("--loss", action="store_true", help="compare the validation loss, not the speed")
    options = parser.parse_args()
    gpu = torch.cuda.is_available() if options.gpu is None else options.gpu
    with tempfile.TemporaryDirectory() as scratch:
        given = (Path(scratch), options.model, options.texts, GPU_DOCUMENTS if gpu else DOCUMENTS)
        if options.loss:
            result = nll_gap(prepared(*given, words=LOSS_WORDS))
        else:
            steps = GPU_STEPS if gpu else STEPS
            arms = options.arms or [arm for arm in steps if arm not in OPTIONAL]
            result = measured(prepared(*given, gpu), {arm: steps[arm] for arm in arms}, options.rounds)
    print(json.dumps({"model": options.model, **result}))
    return 0


def measured(job: dict[str, Any], steps: dict[str, int], rounds: int) -> dict[str, Any]:
    """Speed of the first arm against each other one, and the results of all."""
    arms = list(steps)
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for number in range(rounds):
        first = number % len(arms)
        for arm in arms[first:] + arms[:first]:
            results[arm].append(run(arm, {**job, "steps": steps[arm], "seeds": [number]}))
        speeds = [f"{arm} {results[arm][-1]['tokens_per_second']:.0f}" for arm in arms]
        print(f"round {number + 1}: " + ", ".join(speeds), file=sys.stderr, flush=True)

    def speed(arm: str) -> NDArray[np.float64]:
        return np.asarray([one["tokens_per_second"] for one in results[arm]])

    return {
        **{f"vs_{'bare_loop' if arm == 'bare' else arm}": quartiles(speed(arms[0]) / speed(arm)) for arm in arms[1:]},
        "arms": {
            arm: {name: quartiles([one[name] for one in runs]) for name in runs[0]} for arm, runs in results.items()
        },
    }


def run(arm: str, job: dict[str, Any]) -> Any:
    """Run an arm in a process of its own, and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        script, given = Path(__file__).parent / "arms.py", json.dumps({**job, "result": str(result)})
        command = [sys.executable, str(script), arm, given]
        done = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
        return json.loads(result.read_text())


def nll_gap(job: dict[str, Any]) -> dict[str, Any]:
    """Validation loss after the same examples, two epochs, ours minus the matched Trainer's, over seeds."""
    arms = ("ours_1", "trainer_matched")
    losses = [run(arm, {**job, "steps": 0, "seeds": SEEDS}) for arm in arms]
    print(dict(zip(arms, losses, strict=True)), file=sys.stderr, flush=True)
    gaps = [ours - theirs for ours, theirs in zip(*losses, strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    return {"nll_gap": round(statistics.mean(gaps), 4), "nll_gap_standard_error": round(error, 4)}


if __name__ == "__main__":
    sys.exit(main())
