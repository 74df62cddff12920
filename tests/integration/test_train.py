"""Training on a real cluster: gradients, loss curve and scores do not depend on the number of workers."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel

from detect_ai import metrics
from detect_ai.core.config import Config
from detect_ai.core.errors import CorpusError, ResourceError, TrainingError
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.detector import Scorer
from detect_ai.detector.score import score_split
from detect_ai.models import encoder
from detect_ai.training import data, worker
from detect_ai.training import train as module
from detect_ai.training.train import run_training, train
from detect_ai.training.trainer import Trainer
from tests.fixtures import tiny_models
from tests.integration.conftest import Run
from tests.integration.runs import Steps, changed, token_ids, window_format

GRADIENT_STEPS = 4


def watch(trainer: Trainer) -> list[dict[str, NDArray[np.float32]]]:
    """The gradients that each of the next steps applies; each step appends its own."""
    seen: list[dict[str, NDArray[np.float32]]] = []

    def keep(*_: object) -> None:
        gradients = {name: p.grad for name, p in trainer.module.named_parameters() if p.grad is not None}
        seen.append({name: gradient.numpy().copy() for name, gradient in gradients.items()})

    trainer.optimizer.register_step_pre_hook(keep)
    return seen


def gradients_of_a_rank(arguments: dict[str, Any]) -> None:
    """A training loop that saves the gradients after DDP."""
    import ray.train.torch

    torch.set_num_threads(1)
    config: Config = arguments["config"]
    network = ray.train.torch.prepare_model(encoder.build(config.model, config.seed))
    assert isinstance(network, DistributedDataParallel)
    context = ray.train.get_context()
    trainer = Trainer(config.train, network, torch.device("cpu"), context.get_world_size(), 20)
    seen = watch(trainer)
    stream = data.read_stream(ray.train.get_dataset_shard("train"))
    steps = list(worker.group_steps(stream, context.get_world_rank(), context.get_world_size()))
    for step in steps[:GRADIENT_STEPS]:
        worker.train_step(trainer, step)
    torch.save(seen, Path(arguments["folder"]) / f"{context.get_world_rank()}.pt")


@pytest.fixture(scope="module")
def gradients(many: tuple[Config, Corpus], tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The gradients of two ranks, by rank and step."""
    from ray.data import ExecutionOptions
    from ray.train import DataConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config, corpus = many
    plan = changed(config, train={"epochs": 1, "microbatch_size": 3})  # the schedule is that of all epochs
    folder = tmp_path_factory.mktemp("gradients")
    TorchTrainer(
        gradients_of_a_rank,
        train_loop_config={"config": config, "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="gradients", storage_path=str(folder)),
        datasets={"train": data.training_plan(corpus, window_format(config), plan, 2).dataset()},
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    ).fit()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_ddp_gradients_equal_those_of_one_process(
    many: tuple[Config, Corpus], streamed: dict[Any, list[Steps]], gradients: list[list[dict[str, Any]]]
) -> None:
    config = many[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trainer = Trainer(config.train, encoder.build(config.model, config.seed), torch.device("cpu"), 1, 20)
    expected = watch(trainer)
    for step in streamed["many", 1][0][:GRADIENT_STEPS]:
        worker.train_step(trainer, step)
    torch.set_num_threads(threads)
    for rank in gradients:
        for applied, single in zip(rank, expected, strict=True):
            assert applied.keys() == single.keys()
            for name, gradient in single.items():
                np.testing.assert_allclose(applied[name], gradient, atol=1e-6, rtol=1e-4, err_msg=name)


def curve(history: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    return [tuple(epoch[name] for name in ("train_loss", "val_loss", "auroc", "accuracy")) for epoch in history]


@pytest.mark.slow
def test_workers_have_the_settings_of_memory_and_priority(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def loop(_: object) -> dict[str, Any]:
        return {"error": f"{os.environ['MALLOC_MMAP_MAX_']} {os.environ['RAY_ADDRESS']} {os.nice(0)}", "history": []}

    monkeypatch.setattr(module, "_train_loop", loop)
    with pytest.raises(TrainingError, match=rf"^0 {ray.get_runtime_context().gcs_address} 0$"):
        run_training(run.config, run.corpus, "settings")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_loss_curve_does_not_depend_on_the_number_of_workers(run: Run, workers: int) -> None:
    """Without dropout, which differs between the ranks."""
    result = run_training(changed(run.config, train={"num_workers": workers}), run.corpus, f"workers-{workers}")
    np.testing.assert_allclose(curve(result.history), curve(run.trained["history"]), atol=1e-4)


def test_training_lowers_the_loss(run: Run) -> None:
    history = run.trained["history"]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4, 5]
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert run.trained["validation"]["auroc"] > 0.9


def test_best_checkpoint_breaks_auroc_ties_by_val_loss(run: Run) -> None:
    best = max(run.trained["history"], key=lambda epoch: (epoch["auroc"], -epoch["val_loss"]))
    assert run.trained["validation"] == best


def scorer_of(run: Run, precision: str = "fp32") -> Scorer:
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        return Scorer.from_checkpoint(folder, run.config.model, precision)


def test_validation_metrics_equal_those_of_the_loaded_checkpoint(run: Run) -> None:
    labels, scores = run.corpus.labels("validation"), scorer_of(run).score(token_ids(run.corpus, "validation"))
    probabilities = 1 / (1 + np.exp(-scores))
    logged = run.trained["validation"]
    assert logged["auroc"] == pytest.approx(metrics.auroc(labels, scores), abs=1e-9)
    assert logged["accuracy"] == pytest.approx((labels == (probabilities >= 0.5)).mean(), abs=1e-9)
    assert logged["val_loss"] == pytest.approx(metrics.log_losses(labels, probabilities).mean(), abs=1e-5)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), pytest.param("bf16", 0.05, marks=pytest.mark.slow)]
)
def test_score_is_the_same_alone_and_in_a_corpus(run: Run, precision: str, tolerance: float) -> None:
    config = run.config.score
    loader = partial(Scorer.from_checkpoint, config=run.config.model, precision=precision)
    scored = score_split(run.corpus, "test", run.trained["checkpoint"], loader, config)
    scorer = scorer_of(run, precision)
    texts = run.corpus.read("test", ["text"])["text"].to_pylist()
    alone = [scorer.score([scorer.read([text])[0].input_ids])[0] for text in texts]
    np.testing.assert_allclose(alone, scored["score"], atol=tolerance)


def test_bf16_scores_match_fp32_within_rounding(run: Run) -> None:
    exact, rounded = (scorer_of(run, precision).score(token_ids(run.corpus, "test")) for precision in ("fp32", "bf16"))
    assert 0 < np.abs(rounded - exact).max() < 0.2


def test_corpus_of_another_tokenizer_is_refused(run: Run, tmp_path: Path) -> None:
    other = tiny_models.make_encoder(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_text((other / name).read_text().replace('"[UNK]"', '"[unknown]"'))
    config = run.config.model_copy(deep=True)
    config.model.path = str(other)
    with pytest.raises(CorpusError, match=r"was tokenised by \w{12}, model=tiny has \w{12}: run jobs/prepare\.py"):
        run_training(config, run.corpus, "other-tokenizer")
    assert not run.storage.exists(f"runs/{config.run}/other-tokenizer")


def test_stage_without_enough_cpus_leaves_nothing_behind(run: Run) -> None:
    before = run.storage.list(f"runs/{run.config.run}")
    with pytest.raises(ResourceError, match=r"50 workers x 1 CPUs .* needs 51 CPUs"):
        train(changed(run.config, train={"num_workers": 50}), run.storage)
    assert run.storage.list(f"runs/{run.config.run}") == before
