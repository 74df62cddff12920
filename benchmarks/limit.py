"""The bare model for `benchmarks/serve.py`, in a process of its own: no HTTP and no queue.

`python benchmarks/limit.py JOB` (JSON) reads lines of JSON and answers each with one:

    {}                probabilities of AI of every text: calibrated as in the service, and of the logits
    {"all": true}     texts per second: all texts at once, sorted by length, in batches of the service's size; with
                      one batch per thread, and with one batch at a time on all threads
    {"only": [3, 1]}  seconds of each of these texts alone
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from material import CHECKOUT  # noqa: F401 - puts the checkout on the path


def main() -> int:
    """Answer lines until the input ends. Returns the exit code."""
    import torch

    from detect_ai.detector.detector import Detector

    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
    detector = Detector.load(Path(job["bundle"]), batch_tokens=job["batch_tokens"])
    documents = detector.read(texts)
    assert all(document.num_windows == 1 for document in documents), "expected texts that fit a window"
    rows = [document.input_ids for document in documents]
    detector.window_scores(rows[:32])
    for line in sys.stdin:
        print(json.dumps(answer(detector, documents, rows, json.loads(line))), flush=True)
    return 0


def answer(detector: Any, documents: list[Any], rows: list[Any], asked: dict[str, Any]) -> Any:
    """The reply to a line."""
    if "only" in asked:
        return [seconds(detector, [rows[i]]) for i in asked["only"]]
    if "all" in asked:
        speeds = []
        for detector.backend.has_lanes in (True, False):
            speeds.append(len(rows) / seconds(detector, rows))
        detector.backend.has_lanes = True
        return speeds
    scores = detector.window_scores(rows)
    verdicts = [detector.verdict(*scored, None, 0.05) for scored in zip(documents, scores, strict=True)]
    return {"calibrated": [v.probability for v in verdicts], "logits": (1 / (1 + np.exp(-scores))).tolist()}


def seconds(detector: Any, rows: list[Any]) -> float:
    """Seconds of the model for windows."""
    started = time.perf_counter()
    detector.window_scores(rows)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
