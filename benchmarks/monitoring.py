"""Latency cost of monitoring and false alarm rate of its drift detection, for a bundle.

1. Latency of single texts through the service's application, with the prediction log and without, in alternating rounds
   (in process: no proxy, no network).
2. The rate of false alarms in windows drawn from the calibration texts, by the fraction of AI texts in them, with the
   upper end of its 95% interval.

    python benchmarks/monitoring.py BUNDLE TEXTS.parquet --rounds 5 --requests 200

The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from scipy.stats import beta

from detect_ai.core.config import DriftConfig, MonitoringConfig, ScoreConfig, ServeConfig
from detect_ai.core.errors import DetectAIError
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.detector import Detector
from detect_ai.monitoring.prediction_log import PredictionLog
from detect_ai.monitoring.reference import Reference, Traffic
from serve_app.api.app import create_app
from serve_app.auth.access import AccessControl
from serve_app.auth.rate_limit import Limiter
from serve_app.engine.engine import Engine
from serve_app.engine.metrics import discard
from serve_app.engine.versions import Versions

WINDOWS = {0.5: 5000, **dict.fromkeys((0.0, 0.03, 0.1, 0.3, 0.7, 1.0), 1000)}  # by fraction of AI texts


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", help="a file or folder of texts to send")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200, help="in a round, one after the other")
    options = parser.parse_args()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # no log line for each request
    try:
        texts = [text.text for text in islice(texts_of(options.texts, ScoreConfig()), options.requests)]
        detector = Detector.load(options.bundle)
    except DetectAIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = {"latency_ms": asyncio.run(latencies(detector, texts, options.rounds)), **false_alarms(detector.spec)}
    print(json.dumps({**result, "threads": torch.get_num_threads(), "torch": torch.__version__}))
    return 0


async def latencies(detector: Detector, texts: list[str], rounds: int) -> list[dict[str, float]]:
    """Median and 99th percentile of each round, with the log and without, in milliseconds."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            log = PredictionLog(Storage(folder), MonitoringConfig(log=True), discard)
            arms = {
                name: await stack.enter_async_context(service(detector, own))
                for name, own in (("without", None), ("with", log))
            }
            for number in range(rounds):
                row: dict[str, float] = {}
                for name in list(arms)[:: 1 if number % 2 else -1]:
                    seconds = []
                    for text in texts:
                        started = time.perf_counter()
                        (await arms[name].post("/v1/detect", json={"text": text})).raise_for_status()
                        seconds.append(time.perf_counter() - started)
                    for quantile in (50, 99):
                        row[f"{name}_p{quantile}"] = round(1000 * float(np.percentile(seconds, quantile)), 2)
                rows.append(row)
    return rows


@asynccontextmanager
async def service(detector: Detector, log: PredictionLog | None) -> AsyncIterator[httpx.AsyncClient]:
    """The application of a replica, in this process."""

    async def admit(*_: object) -> tuple[int]:
        return (1,)

    app = create_app(Versions(Engine(detector, ServeConfig(), log=log)), AccessControl(Limiter(admit)))
    transport: Any = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        yield client


def false_alarms(spec: DetectorSpec) -> dict[str, Any]:
    """The rate of alarms in windows without drift."""
    config = DriftConfig()
    started = time.perf_counter()
    traffic, class_weights = Traffic.of_calibration(spec, b"benchmark")
    reference = Reference(traffic, config.window, config.false_alarms, class_weights)
    seconds = time.perf_counter() - started
    rates = []
    for ai_fraction, windows in WINDOWS.items():
        weights = np.asarray([1 - ai_fraction, ai_fraction]) @ class_weights
        rate = reference.alarm_rate(traffic, windows, seed=1, weights=weights)
        alarms = round(rate * windows)
        upper = float(beta.ppf(0.95, alarms + 1, windows - alarms))
        rates.append({"ai_fraction": ai_fraction, "windows": windows, "rate": rate, "upper": round(upper, 4)})
    return {"nominal": config.false_alarms, "false_alarms": rates, "reference_seconds": round(seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())
