"""The bare model for `benchmarks/serve.py`, in a process of its own: no HTTP and no queue.

`python benchmarks/limit.py JOB` (JSON) reads lines of JSON and answers each with one:

    {}                probabilities of AI of every text: calibrated as in the service, and of the logits
    {"all": [3, 1]}   texts per second: these texts at once, sorted by length, in batches of the service's size; one
                      batch per thread, or one batch at a time on all threads if that was faster at the start
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
    detector.backend.warm_up(detector.spec.window)  # as in the service
    documents = detector.read(texts)
    assert all(document.num_windows == 1 for document in documents), "expected texts that fit a window"
    rows = [document.input_ids for document in documents]
    speeds = [speed(detector, rows[:64], lanes) for lanes in (True, False, True, False)]  # the first is slow
    lanes = speeds[2] > speeds[3]
    for line in sys.stdin:
        print(json.dumps(answer(detector, documents, rows, lanes, json.loads(line))), flush=True)
    return 0


def answer(detector: Any, documents: list[Any], rows: list[Any], lanes: bool, asked: dict[str, Any]) -> Any:
    """The reply to a line."""
    if "only" in asked:
        return [seconds(detector, [rows[i]]) for i in asked["only"]]
    if "all" in asked:
        return speed(detector, [rows[i] for i in asked["all"]], lanes)
    scores = detector.window_scores(rows)
    verdicts = [detector.verdict(*scored, None, 0.05) for scored in zip(documents, scores, strict=True)]
    return {"calibrated": [v.probability for v in verdicts], "logits": (1 / (1 + np.exp(-scores))).tolist()}


def speed(detector: Any, rows: list[Any], lanes: bool) -> float:
    """Texts per second, with one batch per thread or with one batch on all threads."""
    detector.backend.has_lanes = lanes
    try:
        return len(rows) / seconds(detector, rows)
    finally:
        detector.backend.has_lanes = True


def seconds(detector: Any, rows: list[Any]) -> float:
    """Seconds of the model for windows."""
    started = time.perf_counter()
    detector.window_scores(rows)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
