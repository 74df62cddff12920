"""Training on a real cluster: one process's gradients, one curve for any workers, one score for a text."""

from __future__ import annotations

import json
import time
from dataclasses import replace
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
from detect_ai.core.errors import CorpusError, ResourceError
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.detector import Scorer
from detect_ai.detector.score import checkpoint_loader, score_split
from detect_ai.models import encoder
from detect_ai.models.backends.torch import TorchBackend
from detect_ai.training import data, worker
from detect_ai.training.data import TrainingPlan
from detect_ai.training.train import run_training, train
from detect_ai.training.trainer import Trainer
from tests.fixtures import tiny_models
from tests.integration.conftest import Run
from tests.integration.runs import Steps, window_format

# --- gradients -------------------------------------------------------------------------------------------------------

GRADIENT_STEPS = 4


def watch(trainer: Trainer) -> list[dict[str, NDArray[np.float32]]]:
    """Fills with the gradients that each of the next steps applies."""
    seen: list[dict[str, NDArray[np.float32]]] = []

    def keep(*_: object) -> None:
        gradients = {name: p.grad for name, p in trainer.module.named_parameters() if p.grad is not None}
        seen.append({name: gradient.numpy().copy() for name, gradient in gradients.items()})

    trainer.optimizer.register_step_pre_hook(keep)
    return seen


def gradients_of_a_rank(arguments: dict[str, Any]) -> None:
    """A training loop that writes down what DDP made of the gradients, of those against the loss as well."""
    import ray.train.torch

    torch.set_num_threads(1)
    config: Config = arguments["config"]
    network = ray.train.torch.prepare_model(encoder.build(config.model, config.seed))
    assert isinstance(network, DistributedDataParallel)
    context = ray.train.get_context()
    trainer = Trainer(
        config.train.model_copy(update={"adversarial": 0.5}), network, torch.device("cpu"), context.get_world_size(), 20
    )
    seen = watch(trainer)
    stream = worker.read(ray.train.get_dataset_shard("train"))
    steps = list(worker.group_steps(stream, context.get_world_rank(), context.get_world_size()))
    for step in steps[:GRADIENT_STEPS]:
        worker.train_step(trainer, step)
    torch.save(seen, Path(arguments["folder"]) / f"{context.get_world_rank()}.pt")


@pytest.fixture(scope="module")
def gradients(many: tuple[Config, Corpus], tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """Of each of two ranks, by step."""
    from ray.data import ExecutionOptions
    from ray.train import DataConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config, corpus = many
    folder = tmp_path_factory.mktemp("gradients")
    plan = replace(TrainingPlan.from_config(config), epochs=1, microbatch_size=3)
    TorchTrainer(
        gradients_of_a_rank,
        train_loop_config={"config": config, "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="gradients", storage_path=str(folder)),
        datasets={"train": data.training_stream(corpus, window_format(config), plan)},
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
    ).fit()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_ddp_with_two_workers_gives_the_gradients_of_one_process(
    many: tuple[Config, Corpus], streamed: dict[Any, list[Steps]], gradients: list[list[dict[str, Any]]]
) -> None:
    config = many[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train = config.train.model_copy(update={"adversarial": 0.5})
    trainer = Trainer(train, encoder.build(config.model, config.seed), torch.device("cpu"), 1, 20)
    expected = watch(trainer)
    for step in streamed["many", 1][0][:GRADIENT_STEPS]:
        worker.train_step(trainer, step)
    torch.set_num_threads(threads)
    for rank in gradients:
        for found, single in zip(rank, expected, strict=True):
            assert found.keys() == single.keys()
            for name, gradient in single.items():
                np.testing.assert_allclose(found[name], gradient, atol=1e-6, rtol=1e-4, err_msg=name)


# --- whole runs ------------------------------------------------------------------------------------------------------


def curve(history: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    return [tuple(epoch[name] for name in ("train_loss", "val_loss", "auroc", "accuracy")) for epoch in history]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_one_worker_and_three_have_the_loss_curve_of_two(run: Run, workers: int) -> None:
    """Without dropout, which differs between the ranks."""
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update={"num_workers": workers})})
    found = run_training(config, run.corpus, f"workers-{workers}")
    np.testing.assert_allclose(curve(found.history), curve(run.trained["history"]), atol=1e-4)


def test_training_learns(run: Run) -> None:
    history = run.trained["history"]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4, 5]
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert run.trained["validation"]["auroc"] > 0.9


def test_of_epochs_with_one_auroc_the_surest_is_chosen(run: Run) -> None:
    assert [epoch["auroc"] for epoch in run.trained["history"][-2:]] == [1.0, 1.0]
    assert run.trained["validation"]["val_loss"] == min(epoch["val_loss"] for epoch in run.trained["history"])


def test_the_head_is_trained_without_dropout(run: Run) -> None:
    config = json.loads((Path(run.storage.path(run.trained["checkpoint"])) / "config.json").read_text())
    dropouts = {name: value for name, value in config.items() if "dropout" in name}
    assert dropouts
    assert set(dropouts.values()) == {0.0}


# --- parity ----------------------------------------------------------------------------------------------------------


def scorer_of(run: Run, precision: str = "fp32") -> Scorer:
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        return Scorer.from_checkpoint(folder, run.config.model, precision)


def token_ids(run: Run, split: str) -> list[NDArray[np.int32]]:
    return [np.asarray(row, np.int32) for row in run.corpus.read(split, ["input_ids"])["input_ids"].to_pylist()]


def test_the_figures_of_training_are_those_of_one_process_with_its_checkpoint(run: Run) -> None:
    labels, scores = run.corpus.labels("validation"), scorer_of(run).score(token_ids(run, "validation"))
    probabilities = 1 / (1 + np.exp(-scores))
    found = run.trained["validation"]
    assert found["auroc"] == pytest.approx(metrics.auroc(labels, scores), abs=1e-9)
    assert found["accuracy"] == pytest.approx(metrics.accuracy(labels, probabilities >= 0.5), abs=1e-9)
    assert found["val_loss"] == pytest.approx(metrics.log_loss(labels, probabilities), abs=1e-5)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-4), pytest.param("bf16", 0.05, marks=pytest.mark.slow)]
)
def test_a_text_alone_gets_the_score_that_it_gets_in_a_corpus(run: Run, precision: str, tolerance: float) -> None:
    config = run.config.score
    loader = checkpoint_loader(config, run.config.model, precision)
    scored = score_split(run.corpus, "test", run.trained["checkpoint"], loader, config)
    scorer = scorer_of(run, precision)
    texts = run.corpus.read("test", ["text"])["text"].to_pylist()
    alone = [scorer.score([scorer.read([text])[0].input_ids])[0] for text in texts]
    np.testing.assert_allclose(alone, scored.scores, atol=tolerance)


def test_scores_in_bf16_are_those_in_fp32_within_its_rounding(run: Run) -> None:
    ids = token_ids(run, "test")
    exact = scorer_of(run).score(ids)
    rough = scorer_of(run, "bf16").score(ids)
    assert isinstance(scorer_of(run, "bf16").backend, TorchBackend)
    assert 0 < np.abs(rough - exact).max() < 0.2


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_corpus_of_another_tokenizer_is_refused(run: Run, tmp_path: Path) -> None:
    other = tiny_models.make_encoder(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    changed = text.replace('"[UNK]"', '"[unknown]"')
    assert changed != text
    (other / "tokenizer.json").write_text(changed)
    settings = (other / "tokenizer_config.json").read_text()
    (other / "tokenizer_config.json").write_text(settings.replace('"[UNK]"', '"[unknown]"'))
    config = run.config.model_copy(update={"model": run.config.model.model_copy(update={"path": str(other)})})
    with pytest.raises(CorpusError, match=r"was tokenised by \w{12}, model=tiny has \w{12}: run jobs/prepare\.py with"):
        run_training(config, run.corpus, "other-tokenizer")
    assert not run.storage.exists(f"runs/{config.run}/other-tokenizer")


def test_too_few_cpus_are_named_at_once(run: Run) -> None:
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update={"num_workers": 50})})
    started = time.monotonic()
    with pytest.raises(ResourceError) as caught:
        run_training(config, run.corpus, "too-big")
    assert time.monotonic() - started < 5
    total = ray.cluster_resources()["CPU"]
    assert str(caught.value) == (
        f"run too-big (50 workers x 1 CPUs + 1 beside them) needs 51 CPUs, the cluster has {total:g}: "
        f"{51 - total:g} missing. Lower the number of workers, or start Ray with --num-cpus=51"
    )
    assert not run.storage.exists(f"runs/{config.run}/too-big")


def test_a_stage_that_cannot_run_leaves_no_attempt_behind(run: Run) -> None:
    before = run.storage.list(f"runs/{run.config.run}")
    with pytest.raises(ResourceError, match=r"needs 51 CPUs"):
        train(
            run.config.model_copy(update={"train": run.config.train.model_copy(update={"num_workers": 50})}),
            run.storage,
        )
    assert run.storage.list(f"runs/{run.config.run}") == before
