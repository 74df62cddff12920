"""Training throughput against the Hugging Face Trainer and a bare PyTorch loop: `make bench-train`.

Arms, each in a new process, in an order that rotates from round to round: A B C B C A … Side by side they would
distort each other: with others in memory, an arm with large batches loses a quarter of its speed.

    ours_1           the project's training (Ray Train), one worker with two threads
    trainer          transformers.Trainer as its text-classification guide has it: fp32, dropout 0.1, dynamic padding
    trainer_tuned    the same, grouped by length, bf16 autocast where the hardware has it, fused AdamW
    trainer_matched  tuned, and with our dropout of 0
    bare             a bare PyTorch loop over our batches held in memory, two threads
    bare_malloc      on a CPU: the same, and glibc keeps freed memory, as our workers do (`train.KEEP_MEMORY`)
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
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import CHECKOUT, MODELS, prepared, quartiles, settings
from numpy.typing import NDArray

from detect_ai.training.train import KEEP_MEMORY

# Steps that count, of 16 documents. Grouped by length, the Trainer reads 48 of 240 documents from the longest to the
# shortest, then the next: three steps.
STEPS = {"ours_1": 5, "trainer": 1, "trainer_tuned": 3, "trainer_matched": 3, "bare": 5, "bare_malloc": 5}
# Of 64 documents, on a GPU. The Trainer groups 3,200 documents: 50 steps.
GPU_STEPS = {"ours_1": 50, "trainer": 10, "trainer_tuned": 50, "trainer_matched": 50, "bare": 50, "ours_compiled": 50}
DOCUMENTS = 240  # of training
GPU_DOCUMENTS = 12_800
SEEDS = (0, 1, 2)
LOSS_WORDS = 40  # of each text, where losses are compared


def main() -> int:
    """Run all arms. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="Parquet file or folder with columns `text` and `label`; else the sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--gpu", action=argparse.BooleanOptionalAction, help="on one GPU; the default where there is one"
    )
    parser.add_argument("--model", default="minilm", choices=MODELS)
    parser.add_argument(
        "--arms", nargs="+", choices=sorted(STEPS | GPU_STEPS), help="the first is compared with others"
    )
    parser.add_argument(
        "--peak-tflops", type=float, help="of the hardware in the arms' precision, to report `mfu` of the first arm"
    )
    parser.add_argument("--loss", action="store_true", help="compare the validation loss, not the speed")
    options = parser.parse_args()
    gpu = not options.loss and (torch.cuda.is_available() if options.gpu is None else options.gpu)
    steps = GPU_STEPS if gpu else STEPS
    arms = options.arms or list(steps)
    if unknown := set(arms) - set(steps):
        parser.error(f"arms on a {'GPU' if gpu else 'CPU'}: {', '.join(steps)}; found {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as scratch:
        given = (Path(scratch), options.model, options.texts, GPU_DOCUMENTS if gpu else DOCUMENTS)
        if options.loss:
            result = nll_gap(prepared(*given, words=LOSS_WORDS))
        else:
            job = prepared(*given, gpu)
            result = measured(job, {arm: steps[arm] for arm in arms}, options.rounds)
            if options.peak_tflops:
                result |= {"mfu": mfu(job, result["arms"][arms[0]]["tokens_per_second"], options.peak_tflops)}
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
        **{f"vs_{arm.replace('bare', 'bare_loop')}": quartiles(speed(arms[0]) / speed(arm)) for arm in arms[1:]},
        "arms": {
            arm: {name: quartiles([one[name] for one in runs]) for name in runs[0]} for arm, runs in results.items()
        },
    }


def mfu(job: dict[str, Any], tokens_per_second: list[float], peak_tflops: float) -> list[float]:
    """Fraction of the peak that the matrix products at a speed use, without padding and without recomputation."""
    return quartiles(np.asarray(tokens_per_second) * flops_per_token(job) / (peak_tflops * 1e12))


def flops_per_token(job: dict[str, Any]) -> float:
    """Operations of a training step for each token of a full window, forward and backward, as PyTorch counts them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from detect_ai.models import encoder

    config = settings(job).model
    network: Any = encoder.build(config, 0).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others are not counted on a CPU
        network(input_ids=torch.ones((1, config.window), dtype=torch.int64)).logits.sum().backward()
    return float(counter.get_total_flops() / config.window)


def run(arm: str, job: dict[str, Any]) -> Any:
    """Run an arm in a process of its own, and return its result."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        script, given = Path(__file__).parent / "arms.py", json.dumps({**job, "result": str(result)})
        command = [sys.executable, str(script), arm, given]
        env = os.environ | (KEEP_MEMORY if arm == "bare_malloc" else {})
        done = subprocess.run(command, cwd=CHECKOUT, env=env, check=False, capture_output=True, text=True)
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
