"""The stage `train`: run Ray Train's TorchTrainer on a prepared corpus and return the best checkpoint.

The training loop is in `detect_ai.training.worker`. An interrupted training run resumes when the stage runs again under
the same run name with the same model, training settings, seed and corpus; settings that do not affect the result, such
as the number of workers, may differ.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect_ai.core import ray_runtime, resume
from detect_ai.core.config import Config
from detect_ai.core.errors import CorpusError, TrainingError
from detect_ai.core.job import read_result
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.models import encoder
from detect_ai.models.tokenizer import Tokenizer
from detect_ai.training import checkpoint, search_space

if TYPE_CHECKING:
    from ray.train import UserCallback

logger = logging.getLogger(__name__)

# With several workers, Ray Data needs a CPU that they do not reserve; otherwise it hangs without an error.
DATA_CPUS = 1
KEEP_CHECKPOINTS = 2  # the best by AUROC; Ray keeps the last one in addition
RESIZE_SECONDS = 60.0  # between checks for free resources in elastic training
# For workers on a CPU: glibc keeps freed memory. By default it returns large tensors to the system, which fills their
# memory with zeros again in every layer: a tenth of the time of a step (docs/TRAINING.md).
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


@dataclass(frozen=True)
class TrainingResult:
    """The best checkpoint of a run (its key in the storage), the metrics of its epoch, and those of all epochs."""

    checkpoint: str
    metrics: dict[str, Any]
    history: list[dict[str, Any]]


def train(config: Config, storage: Storage) -> dict[str, Any]:
    """Train on the prepared corpus, or resume an interrupted run. Returns the checkpoint of the best epoch."""
    values = read_result(storage, config.run, "sweep")["best"]["values"] if config.train.from_sweep else {}
    if values:
        config = search_space.apply(config, values)
    ray_runtime.connect(storage, dashboard=config.train.worker_range[1] > 1)
    corpus = Corpus.of_run(storage, config.run)
    checked_tokenizer(config, corpus)
    require_training_resources(config, "a training")  # before the attempt writes anything
    digest = resume.digest(config, corpus.manifest.fingerprint)
    with resume.attempted(storage, config.run, "train", digest) as (name, resumed):
        if resumed:
            logger.info("train: resuming the interrupted run %s from its last checkpoint", name)
        result = run_training(config, corpus, name)
    storage.prune(f"runs/{config.run}", "train-", config.storage.keep)
    return {
        "checkpoint": result.checkpoint,
        "lr": config.train.lr,
        "from_sweep": values,
        "validation": result.metrics,
        "history": result.history,
        "corpus": corpus.key,
    }


def run_training(
    config: Config,
    corpus: Corpus,
    name: str,
    callbacks: Sequence[UserCallback] = (),
    group: str | None = None,
    share: int = 1,
) -> TrainingResult:
    """Train on the `train` split and choose the epoch with the best AUROC on `validation`.

    `name` is the attempt: results and checkpoints are under `runs/<run>/<name>`. `callbacks` are Ray Train callbacks,
    such as the one that reports to Ray Tune; `group` groups runs in W&B; `share` training runs divide a machine.

    Raises CorpusError for a corpus of another tokenizer, ResourceError for workers that the cluster can never place,
    TrainingError for a loss that is not finite, and Ray's TrainingFailedError after `train.max_failures`.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from detect_ai.training.data import StreamDataConfig, WindowFormat, steps_per_epoch

    form = WindowFormat.of(checked_tokenizer(config, corpus), config.model)
    require_training_resources(config, f"run {name}")
    storage, folder = corpus.storage, f"runs/{config.run}/{name}"
    checkpoint.repair_snapshot(storage, folder)
    fewest, most = worker_range(config)
    streams = StreamDataConfig(corpus, form, config, folder)
    trainer = TorchTrainer(
        _train_loop,  # type: ignore[arg-type]  # typed for V1, as more below
        train_loop_config={
            "config": config,
            "streams": streams,
            "steps_per_epoch": steps_per_epoch(corpus, config.train.batch_size),
            "validation_labels": corpus.labels("validation"),
            "corpus": corpus.manifest.fingerprint,
            "name": name,
            "group": group,
            "share": share,
        },
        scaling_config=ScalingConfig(  # type: ignore[call-arg]
            num_workers=most if fewest == most else (fewest, most),  # type: ignore[arg-type]
            use_gpu=config.train.use_gpu,
            resources_per_worker={"CPU": config.train.cpus_per_worker} | ({"GPU": 1.0} if config.train.use_gpu else {}),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage.path(f"runs/{config.run}"),
            storage_filesystem=storage.filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=KEEP_CHECKPOINTS, checkpoint_score_attribute="score"),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            callbacks=list(callbacks),  # type: ignore[arg-type]
            worker_runtime_env={} if config.train.use_gpu else {"env_vars": KEEP_MEMORY},  # type: ignore[call-arg]
        ),
        # `streams` builds them. A single worker reads in its own process; these would start Ray Data processes.
        datasets=dict.fromkeys(("train", "validation") if most > 1 else (), lambda: None),  # type: ignore[arg-type, return-value]
        dataset_config=streams,
    )
    if most == 1 and not callbacks:
        _omit_actors(trainer)
    result: Any = trainer.fit()
    if error := result.return_value["error"]:
        raise TrainingError(error)
    # On an easy corpus many epochs have the same AUROC: choose the lowest loss, not the first.
    evaluated = [pair for pair in result.best_checkpoints if pair[1]["auroc"] != checkpoint.NOT_EVALUATED]
    best, best_metrics = max(evaluated, key=lambda pair: (pair[1]["auroc"], -pair[1]["val_loss"]))
    return TrainingResult(
        checkpoint=f"{folder}/{Path(best.path).name}",
        metrics={key: value for key, value in best_metrics.items() if key != "score"},
        history=result.return_value["history"],
    )


def _omit_actors(trainer: Any) -> None:
    """Let a single worker train without two actors of Ray Train 2.60 that do nothing for it but take time from it.

    One distributes data sets, here none. The other removes the placement group if the controller dies; outside a sweep,
    the job dies with it.
    """
    omitted = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    default = getattr(trainer, "_create_default_callbacks", list)  # private: another Ray may not have it
    trainer._create_default_callbacks = lambda: [one for one in default() if type(one).__name__ not in omitted]


def _train_loop(arguments: dict[str, Any]) -> dict[str, Any]:
    """The training loop, imported where it runs: Ray Train's controller and sweep trials need no torch."""
    from detect_ai.training.worker import train_loop

    return train_loop(arguments)


def worker_range(config: Config) -> tuple[int, int]:
    """Minimum and maximum number of workers; the maximum of a range leaves CPUs for Ray Data."""
    fewest, most = config.train.worker_range
    if fewest == most or ray_runtime.can_grow():
        return fewest, most
    import ray

    fit = int((ray.cluster_resources().get("CPU", 0) - DATA_CPUS) // config.train.cpus_per_worker)
    return fewest, max(fewest, min(most, fit))


def checked_tokenizer(config: Config, corpus: Corpus) -> Tokenizer:
    """The model's tokenizer. Raises CorpusError if the corpus was tokenised by another one."""
    tokenizer = encoder.load_tokenizer(config.model)
    if tokenizer.fingerprint != corpus.manifest.tokenizer:
        raise CorpusError(
            f"corpus {corpus.key} was tokenised by {corpus.manifest.tokenizer[:12]}, model={config.model.name} has "
            f"{tokenizer.fingerprint[:12]}: run jobs/prepare.py with this model"
        )
    return tokenizer


def require_training_resources(config: Config, what: str, other_cpus: float = 0.0) -> None:
    """Raise ResourceError if the minimum workers, Ray Data and `other_cpus` cannot be placed together."""
    workers, cpus = config.train.worker_range[0], config.train.cpus_per_worker
    gpus, other_cpus = workers if config.train.use_gpu else 0, other_cpus + data_cpus(workers)
    needs = f"{what} ({workers} workers x {cpus:g} CPUs + {other_cpus:g} for Ray)"
    ray_runtime.require_resources(needs, workers * cpus + other_cpus, gpus)


def data_cpus(workers: int) -> float:
    """CPUs for Ray Data with this number of workers: none for a single worker, which reads its corpus itself."""
    return DATA_CPUS if workers > 1 else 0.0
