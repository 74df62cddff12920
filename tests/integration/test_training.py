"""Training on a real cluster: every document once, equal steps, one process's gradients, one curve for one seed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.numpy import load_file

from detect_ai import metrics, streaming
from detect_ai.backends.torch import TorchBackend
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector import Scorer
from detect_ai.errors import CorpusError, ResourceError
from detect_ai.model import has_bf16, load, load_tokenizer
from detect_ai.scoring import checkpoint_loader, score_split
from detect_ai.streaming import Frame, TrainingPlan, microbatch
from detect_ai.training import run_training
from tests import tiny
from tests.integration.conftest import Run


def consume(run: Run, plan: TrainingPlan) -> list[list[Any]]:
    """What each rank reads, consumed by one actor a rank as Ray Train does."""
    frame = Frame.of(load_tokenizer(run.config.model), run.config.model)
    shards = streaming.training_stream(run.corpus, frame, plan).streaming_split(plan.num_workers, equal=True)

    @ray.remote(num_cpus=0)
    def read(shard: Any) -> list[Any]:
        rows = shard.iter_batches(batch_size=None, batch_format="pyarrow")
        parts = [microbatch(row) for row in rows]
        return [(part.epoch, part.last, part.documents.tolist(), part.step_weight) for part in parts]

    return ray.get([read.remote(shard) for shard in shards])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ranks_make_equal_steps_and_read_an_odd_number_of_rows_once_an_epoch(run: Run, workers: int) -> None:
    rows = run.corpus.num_rows("train")
    assert rows % 2 == 1
    ranks = consume(run, TrainingPlan(batch_size=8, microbatch_size=4, epochs=2, seed=0, num_workers=workers))
    assert len({tuple(last for _, last, _, _ in rank) for rank in ranks}) == 1
    for epoch in (0, 1):
        read = Counter(d for rank in ranks for e, _, documents, _ in rank if e == epoch for d in documents if d >= 0)
        assert read == Counter(range(rows))


def test_a_step_holds_the_same_documents_for_any_number_of_workers(run: Run) -> None:
    def steps(workers: int) -> list[set[int]]:
        found: list[set[int]] = []
        for rank in consume(run, TrainingPlan(8, 4, 1, 0, workers)):
            number, documents = 0, set()
            for _, last, read, _ in rank:
                documents |= {d for d in read if d >= 0}
                if last:
                    found += [set()] * (number + 1 - len(found))
                    found[number] = found[number] | documents
                    number, documents = number + 1, set()
        return found

    assert steps(1) == steps(2) == steps(3)


def parameters(run: Run, checkpoint: str) -> dict[str, np.ndarray]:
    return load_file(Path(run.storage.path(checkpoint)) / "model.safetensors")


def curve(history: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    return [(epoch["train_loss"], epoch["val_loss"], epoch["auroc"]) for epoch in history]


def test_two_workers_train_the_model_of_one_process(run: Run) -> None:
    found = {}
    for workers in (1, 2):
        config = replace(run.config, train=replace(run.config.train, num_workers=workers, epochs=1))
        result = run_training(config, run.corpus, f"parity-{workers}")
        found[workers] = (parameters(run, result.checkpoint), curve(result.history))
    (one, one_curve), (two, two_curve) = found[1], found[2]
    np.testing.assert_allclose(one_curve, two_curve, atol=1e-4)
    worst = max(float(np.abs(one[name] - two[name]).max()) for name in one)
    assert worst < 1e-3, f"parameters differ by {worst}"


def test_one_seed_gives_one_loss_curve_and_another_seed_another(run: Run) -> None:
    again = run_training(run.config, run.corpus, "again")
    other = run_training(replace(run.config, seed=1), run.corpus, "other")
    first = curve(run.trained["history"])
    np.testing.assert_allclose(curve(again.history), first, atol=1e-6)
    assert np.abs(np.subtract(curve(other.history), first)).max() > 1e-3


def test_training_learns_and_names_the_epoch_with_the_best_auroc(run: Run) -> None:
    history = run.trained["history"]
    assert len(history) == run.config.train.epochs
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert run.trained["validation"]["auroc"] == max(epoch["auroc"] for epoch in history) > 0.9


def test_checkpoints_are_bounded(run: Run) -> None:
    folder = run.trained["checkpoint"].rsplit("/", 1)[0]
    kept = [name for name in run.storage.list(folder) if name.startswith("checkpoint_")]
    assert len(kept) <= run.config.train.keep_checkpoints + 1


def test_training_time_evaluation_gives_the_figures_of_its_checkpoint(run: Run) -> None:
    loader = checkpoint_loader(run.config.score, run.config.model)
    scored = score_split(run.corpus, "validation", run.trained["checkpoint"], loader, run.config.score)
    probabilities = 1 / (1 + np.exp(-scored.scores))
    assert metrics.auroc(scored.labels, scored.scores) == pytest.approx(run.trained["validation"]["auroc"], abs=1e-6)
    loss = metrics.log_loss(scored.labels, probabilities)
    assert loss == pytest.approx(run.trained["validation"]["val_loss"], abs=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_a_text_gets_one_score_alone_and_in_a_corpus(run: Run, precision: str, tolerance: float) -> None:
    if precision == "bf16" and not has_bf16(torch.device("cpu")):
        tolerance = 0.1  # emulated, with the rounding of another library
    score = replace(run.config.score, precision=precision)
    loader = checkpoint_loader(score, run.config.model)
    scored = score_split(run.corpus, "test", run.trained["checkpoint"], loader, score)
    with run.storage.local_folder(run.trained["checkpoint"]) as folder:
        backend = TorchBackend(load(folder), torch.device("cpu"), precision)
    config = run.config.model
    scorer = Scorer(load_tokenizer(config), backend, config.window, config.stride)
    texts = run.corpus.read("test", ["text"])["text"].to_pylist()
    alone = [float(scorer.score([scorer.read([text])[0].input_ids])[0]) for text in texts]
    np.testing.assert_allclose(alone, scored.scores, atol=tolerance * max(1.0, float(np.abs(scored.scores).max()) / 4))


def test_a_corpus_of_another_tokenizer_is_refused(run: Run, tmp_path: Path) -> None:
    other = tiny.make_encoder(tmp_path / "other")
    text = (other / "tokenizer.json").read_text().replace('"delve"', '"delved"').replace('"council"', '"councils"')
    (other / "tokenizer.json").write_text(text)
    config = replace(run.config, model=replace(run.config.model, path=str(other)))
    if load_tokenizer(config.model).fingerprint == run.corpus.manifest.tokenizer:
        pytest.fail("the changed tokenizer has the same fingerprint")
    with pytest.raises(CorpusError, match=r"was tokenised by .*: run jobs/prepare.py with this model"):
        run_training(config, run.corpus, "other-tokenizer")


def test_too_few_cpus_are_named_at_once(run: Run) -> None:
    config = replace(run.config, train=replace(run.config.train, num_workers=50))
    started = time.monotonic()
    with pytest.raises(ResourceError) as error:
        run_training(config, run.corpus, "too-big")
    assert time.monotonic() - started < 20
    total = ray.cluster_resources()["CPU"]
    assert str(error.value) == (
        f"run too-big (50 workers x 1 CPUs + 1 for Ray Data) needs 51 CPUs, the cluster has {total:g}: "
        f"{51 - total:g} missing. Lower the number of workers, or start Ray with --num-cpus=51"
    )
    assert not run.storage.exists(f"runs/{config.run}/too-big")


def test_a_corpus_without_a_manifest_is_refused(run: Run) -> None:
    with pytest.raises(CorpusError, match=r"no manifest\.json, so it is no finished corpus"):
        Corpus.open(run.storage, "corpora/none")
