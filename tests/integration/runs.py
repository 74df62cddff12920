"""Configurations, processes and failures of small runs on a real cluster."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from detect_ai.core.config import Config, SourceConfig
from detect_ai.core.errors import InputError
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.prepare import prepare
from detect_ai.detector.bundle import METRICS_FILE, read_spec, write_spec
from detect_ai.detector.registry import Registry
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.models import encoder as model
from detect_ai.release.calibrate import calibrate_checkpoint
from detect_ai.release.promotion_gate import TEST
from detect_ai.release.publish import publish
from detect_ai.training import data, worker
from detect_ai.training.batch_plan import Microbatch
from detect_ai.training.data import WindowFormat
from detect_ai.training.telemetry import read_metrics
from detect_ai.training.train import train
from tests.fixtures import tiny_models

EPOCHS = 2
PATIENCE = 300  # seconds
Steps = list[list[Microbatch]]
OPEN_GATE = {"min_auroc": 0.0, "max_fpr": 1.0, "max_cleared": 1.0, "max_abstained": 1.0}
FRACTIONS = {"train": 0.4, "validation": 0.15, "calibration": 0.3, "test": 0.15}


LOOP = {
    "prepare": prepare,
    "train": train,
    "calibrate": calibrate_checkpoint,
    "evaluate": evaluate,
    "publish": publish,
}


def small_config(encoder: Path, root: Path, source: Path) -> Config:
    """A run that separates the synthetic texts in five epochs, with enough calibration texts for a target of 5%."""
    config = tiny_models.config(encoder, root, source)
    config.corpus.split = dict(FRACTIONS)
    config.train.lr, config.train.epochs = 5e-3, 5
    config.train.num_workers, config.train.threads_per_worker = 2, 1
    config.score.threads_per_worker = 1
    return config


def object_store_config(encoder: Path, folder: Path, root: str) -> Config:
    """A small run on an object store, which also has the source; `folder` must be otherwise unused."""
    where, _, query = root.partition("?")
    rows = tiny_models.write_jsonl(folder / "texts.jsonl", tiny_models.rows(80))
    Storage(root).write_bytes("in/texts.jsonl", rows.read_bytes())
    config = small_config(encoder, folder, rows)
    config.storage.root = root
    config.corpus.sources[0].path = f"{where}/in/texts.jsonl?{query}"
    config.train = config.train.model_copy(update={"num_workers": 1, "epochs": 2, "checkpoint_every": 3})
    config.storage.keep = 1
    return config


def hard_rows(pairs: int, own: float = 0.6) -> list[dict[str, object]]:
    """Labelled rows whose texts share most words: a word comes from the text's own kind with probability `own`."""
    rng = random.Random(0)
    kinds = (tiny_models.HUMAN_WORDS.split(), tiny_models.AI_WORDS.split())

    def word(label: int) -> str:
        return rng.choice(kinds[label if rng.random() < own else 1 - label])

    return [
        {"text": " ".join(word(label) for _ in range(rng.randint(10, 60))), "label": label, "group": f"g{i:03d}"}
        for i in range(pairs)
        for label in (0, 1)
    ]


def files_under(folder: Path) -> list[str]:
    """Relative paths of all files under a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def config_for(encoder: Path, root: Path, path: Path, kind: str) -> Config:
    """A configuration for a small corpus of one file."""
    config = tiny_models.config(encoder, root)
    config.corpus.sources = [SourceConfig(kind=kind, path=str(path), name="made", group="group", licence="CC0")]
    config.corpus.split = {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2}
    return config


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    """A configuration with other values in some sections."""
    update = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=update)


def store_with_champion(folder: Path, tiny_bundle: Path) -> Storage:
    """A storage root whose champion, the tiny bundle, was evaluated on texts that no other test uses."""
    storage, champion = Storage(str(folder / "store")), shutil.copytree(tiny_bundle, folder / "tiny")
    (champion / METRICS_FILE).write_text(json.dumps({TEST: {"test_fingerprint": "other"}}))
    write_spec(champion, read_spec(tiny_bundle))
    registry = Registry(storage)
    registry.set_champion(registry.add(champion))
    return storage


def token_ids(corpus: Corpus, split: str) -> list[NDArray[np.int32]]:
    return [np.asarray(row, np.int32) for row in corpus.read(split, ["input_ids"])["input_ids"].to_pylist()]


def window_format(config: Config) -> WindowFormat:
    return WindowFormat.of(model.load_tokenizer(config.model), config.model)


def consume(dataset: Any, workers: int) -> list[list[Microbatch]]:
    """Rows that each rank reads, all ranks at once as under Ray Train."""
    import ray

    read = ray.remote(num_cpus=0)(lambda shard: list(data.read_stream(shard)))
    return ray.get([read.remote(shard) for shard in dataset.streaming_split(workers, equal=True)])


def training_ranks(corpus: Corpus, config: Config, workers: int, seed: int = 0) -> list[Steps]:
    """The steps that each rank makes in `EPOCHS` epochs."""
    config = changed(config, train={"batch_size": 8, "microbatch_size": 3, "epochs": EPOCHS})
    config = config.model_copy(update={"seed": seed})
    parts = consume(data.training_plan(corpus, window_format(config), config, workers).dataset(), workers)
    return [list(worker.group_steps(part, rank, workers)) for rank, part in enumerate(parts)]


def registered(storage: Storage, folder: str) -> int:
    """Number of checkpoints of a run that Ray Train has completely written and registered."""
    try:
        return int(storage.read_json(f"{folder}/checkpoint_manager_snapshot.json")["current_report_index"])
    except (FileNotFoundError, InputError):  # not there yet, or being written
        return 0


def last_start(storage: Storage, folder: str) -> dict[str, Any]:
    """The step from which the last workers of a run started, and how many there are."""
    return [line for line in read_metrics(storage, folder) if line["kind"] == "start"][-1]


def until(condition: Callable[[], Any]) -> Any:
    """Wait until a condition returns something true, and return it."""
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)
    return result


def ray_processes(name: str) -> list[psutil.Process]:
    """Child processes of Ray whose command contains a name."""
    processes = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            if process.cmdline()[:1] and name in process.cmdline()[0]:
                processes.append(process)
    return processes


def train_workers() -> list[psutil.Process]:
    """The processes of Ray Train's workers."""
    return ray_processes("RayTrainWorker")


def attempts(storage: Storage, run: str, stage: str) -> list[str]:
    """The folders of the attempts at a stage of a run, oldest first."""
    return [name for name in storage.list(f"runs/{run}") if name.startswith(f"{stage}-")]


def own_copy(config: Config, storage: Storage, name: str, stages: Sequence[str] = ("prepare",)) -> Config:
    """A configuration with another run name and the results of some stages."""
    for stage in stages:
        storage.write_json(f"runs/{name}/{stage}.json", storage.read_json(f"runs/{config.run}/{stage}.json"))
    return config.model_copy(update={"run": name}, deep=True)


def kill_driver(stage: str, config: Config, folder: Path, is_time: Callable[[], bool]) -> None:
    """Run a stage (`module:function`) in a process on the same cluster, and send it SIGKILL when `is_time` holds."""
    import ray

    (folder / "config.json").write_text(json.dumps(config.model_dump()))
    module, _, function = stage.partition(":")
    code = (
        "import sys; from detect_ai.core.config import Config\n"
        f"from detect_ai.core.storage import Storage; from {module} import {function}\n"
        "config = Config.model_validate_json(open(sys.argv[1]).read())\n"
        f"{function}(config, Storage(config.storage.root))\n"
    )
    address = ray.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "config.json")],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"RAY_ADDRESS": address},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "driver.log").open("wb"),
    )
    until(lambda: is_time() or process.poll() is not None)
    assert process.poll() is None, (folder / "driver.log").read_text()
    process.kill()
    process.wait()
    until(lambda: not train_workers())  # no worker writes any more


@contextlib.contextmanager
def a_worker_killed(storage: Storage, folder: str, after: int) -> Iterator[None]:
    """Kill a worker with SIGKILL when a run has `after` checkpoints."""

    def wait_and_kill() -> None:
        until(lambda: registered(storage, folder) >= after)
        train_workers()[-1].kill()

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextlib.contextmanager
def unchanged(storage: Storage) -> Iterator[None]:
    """Asserts that nothing is left behind under the storage root."""
    before = sorted(Path(storage.root).rglob("*"))
    yield
    assert sorted(Path(storage.root).rglob("*")) == before


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
