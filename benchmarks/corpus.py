"""Benchmark of tokenisation speed and of the memory of `prepare`: `make bench-corpus`.

1. The tokenising stage (from normalised texts in scratch files to finished shards) against `datasets.map(batched=True,
   num_proc=2)` with the same tokenizer and texts, in alternating rounds, worker start-up included on both sides.
2. Peak memory of the whole process tree (PSS: shared memory counts once) over the whole of `prepare`, for 20,000 and
   for 200,000 distinct rows, on a cluster whose object store has a fixed size.

The rows are made by mixing the sentences of real texts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from detect_ai.core.compose import load_config
from detect_ai.core.config import Config, SourceConfig
from detect_ai.core.local_cluster import LocalCluster
from detect_ai.corpus.manifest import ORIGINAL
from detect_ai.corpus.shards import SHARD_ROWS, ShardPlan, write_shards
from detect_ai.corpus.sources import list_pieces, read_piece
from detect_ai.models.encoder import load_tokenizer
from detect_ai.text.normalize import normalise
from detect_ai.text.sentences import sentences

CHECKOUT = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = 256 << 20
PROCESSES = 2
REPEATS = 3
SCRATCH_FILE_ROWS = 8192
FILE_ROWS = 10_000


def main() -> int:
    """Run both parts. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="Parquet file or folder with a column `text`; else the embedded sample")
    parser.add_argument("--rows", type=int, nargs=2, default=(20_000, 200_000), help="of the two memory runs")
    parser.add_argument("--tokenise-rows", type=int, default=60_000, help="of each timed run")
    arguments = parser.parse_args()
    pool = sentence_pool(arguments.texts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours, theirs = tokenise_times(folder, pool, arguments.tokenise_rows)
        peaks = [peak_memory(folder, pool, rows) for rows in arguments.rows]
    (small, small_seconds), (large, large_seconds) = peaks
    say(f"prepare: {arguments.rows[0]} rows in {small_seconds:.0f} s, {arguments.rows[1]} in {large_seconds:.0f} s")
    summary = {
        "ratio_vs_datasets_map": round(statistics.median(theirs) / statistics.median(ours), 2),
        "rows_per_s": round(arguments.tokenise_rows / statistics.median(ours)),
        "pss_20k_mb": round(small / 2**20),
        "pss_200k_mb": round(large / 2**20),
        "prepare_20k_s": round(small_seconds),
        "prepare_200k_s": round(large_seconds),
    }
    print(json.dumps(summary), flush=True)
    return 0


def sentence_pool(path: str | None) -> list[str]:
    """Sentences of real texts."""
    source = SourceConfig(kind="parquet", path=path) if path else SourceConfig(kind="sample")
    tables = [table for piece in list_pieces(source, unlabelled=True)[:4] for table in read_piece(piece)]
    texts = [normalise(text).text for table in tables for text in table["text"].to_pylist()[:2000]]
    return [text[start:end] for text in texts for start, end in sentences(text)]


def made_texts(pool: list[str], count: int, seed: int) -> Iterator[str]:
    """Distinct texts of 80 to 500 words: sentences drawn from the pool."""
    rng = random.Random(seed)
    for _ in range(count):
        wanted, drawn = rng.randint(80, 500), []
        words = 0
        while words < wanted:
            drawn.append(rng.choice(pool))
            words += drawn[-1].count(" ") + 1
        yield " ".join(drawn)


# Tokenising


def tokenise_times(folder: Path, pool: list[str], rows: int) -> tuple[list[float], list[float]]:
    """Seconds of our stage and of `datasets.map`, in alternating rounds."""
    import ray

    from detect_ai.core.ray_runtime import connect

    config = load_config()
    files = write_scratch(folder, pool, rows)
    connect()
    ours, theirs = [], []
    for number in range(REPEATS):
        ours.append(timed_shards(folder, files, rows, config, number))
        theirs.append(timed_map(folder, files, config, number))
        say(f"tokenise {rows} rows: ours {ours[-1]:.1f} s, datasets.map {theirs[-1]:.1f} s")
    ray.shutdown()
    return ours, theirs


def write_scratch(folder: Path, pool: list[str], rows: int) -> list[str]:
    """Scratch files as `prepare` writes them."""
    files = []
    texts = made_texts(pool, rows, seed=0)
    for start in range(0, rows, SCRATCH_FILE_ROWS):
        part = [text for _, text in zip(range(min(SCRATCH_FILE_ROWS, rows - start)), texts, strict=False)]
        names = ("source", "domain", "generator", "group", "language")
        columns: dict[str, Any] = {name: [""] * len(part) for name in names} | {"attack": [ORIGINAL] * len(part)}
        columns |= {"id": [f"r{start + i}" for i in range(len(part))], "text": part, "normalised": part}
        table = pa.table({**columns, "label": pa.array([i % 2 for i in range(len(part))], pa.int8())})
        files.append(f"scratch/{start:08d}.parquet")
        (folder / "scratch").mkdir(exist_ok=True)
        pq.write_table(table, folder / files[-1], row_group_size=128, compression="zstd", compression_level=1)
    return files


def timed_shards(folder: Path, files: list[str], rows: int, config: Config, number: int) -> float:
    """Seconds of our stage: rows in a random order, as a corpus has them."""
    order = np.random.default_rng(number).permutation(rows)
    size = SHARD_ROWS
    parts = [np.sort(order[start : start + size]) for start in range(0, rows, size)]
    decided = {"weight": 1.0, "copy": ""}
    plans = [
        ShardPlan("train", i, pd.DataFrame({"file": p // SCRATCH_FILE_ROWS, "row": p % SCRATCH_FILE_ROWS, **decided}))
        for i, p in enumerate(parts)
    ]
    tokenizer = load_tokenizer(config.model)
    started = time.perf_counter()
    write_shards(plans, files, tokenizer, PROCESSES, str(folder), f"shards-{number}")
    return time.perf_counter() - started


def timed_map(folder: Path, files: list[str], config: Config, number: int) -> float:
    """Seconds of `datasets.map` over the same texts, which writes them to a file too."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = hub_tokenizer(config)
    paths = [str(folder / name) for name in files]
    rows = datasets.Dataset.from_parquet(paths, columns=["normalised"], cache_dir=str(folder / f"cache-{number}"))

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = batch["normalised"]
        return {"input_ids": tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]}

    started = time.perf_counter()
    rows.map(encode, batched=True, num_proc=PROCESSES, load_from_cache_file=False)
    return time.perf_counter() - started


def hub_tokenizer(config: Config) -> Any:
    """The same tokenizer as transformers loads it, without truncation."""
    from transformers import AutoTokenizer

    from detect_ai.models.encoder import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve(config.model)[0], use_fast=True)
    tokenizer.model_max_length = 10**9
    return tokenizer


# Memory


def peak_memory(folder: Path, pool: list[str], rows: int) -> tuple[int, float]:
    """Bytes at the peak of the whole of `prepare`, and its seconds."""
    path = folder / f"rows-{rows}"
    path.mkdir()
    for number, text in enumerate(made_texts(pool, rows, seed=rows)):
        row = json.dumps({"text": text, "label": number % 2, "group": f"g{number // 2}"})
        with (path / f"{number // FILE_ROWS:03d}.jsonl").open("a", encoding="utf-8") as file:
            file.write(row + "\n")
    cluster = LocalCluster(f"--object-store-memory={OBJECT_STORE_BYTES}")
    try:
        started = time.perf_counter()
        job = subprocess.Popen(
            prepare_command(path, folder / f"store-{rows}"),
            cwd=CHECKOUT,
            env=cluster.environment,
            stdout=subprocess.DEVNULL,
        )
        with watched(cluster.pid, job.pid) as peak:
            job.wait()
        seconds = time.perf_counter() - started
    finally:
        cluster.stop()
    if job.returncode:
        raise SystemExit(f"prepare of {rows} rows ended with {job.returncode}")
    say(f"prepare {rows} rows: {seconds:.0f} s, peak PSS {peak[0] / 2**20:.0f} MB")
    shutil.rmtree(path)
    shutil.rmtree(folder / f"store-{rows}")
    return peak[0], seconds


def prepare_command(path: Path, root: Path) -> list[str]:
    """The job `prepare` on the generated rows."""
    source = ["corpus=csv", "corpus.sources.0.kind=jsonl", f"corpus.sources.0.path={path}"]
    overrides = [*source, "corpus.sources.0.group=group", f"storage.root={root}"]
    return [sys.executable, "jobs/prepare.py", *overrides]


@contextmanager
def watched(*pids: int) -> Iterator[list[int]]:
    """The largest total PSS of some process trees, in bytes, sampled twice a second."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], sum(map(tree_pss, pids)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def tree_pss(pid: int) -> int:
    """PSS of a process and its descendants."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended
            continue
    return total


def say(line: str) -> None:
    """Print a progress line."""
    print(f"==> {line}", flush=True)


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    sys.exit(main())
