"""How fast training is against the Hugging Face Trainer and a bare loop: `make bench-train`.

Arms, each in a process of its own, in turn and in reversed turn, on the same documents:

    ours_1           the project's training (Ray Data, Ray Train), one worker with two threads
    ours_2           the same, two workers with one thread each
    trainer          transformers.Trainer as its text-classification guide has it: fp32, dropout 0.1, dynamic padding
    trainer_tuned    the same, grouped by length, bf16 autocast, fused AdamW
    trainer_matched  tuned, and with our dropout of 0
    bare             a bare PyTorch loop over our batches held in memory, two threads

for `minilm` and for a DistilBERT of full size with random weights. Real tokens a second (padding not counted, start-up
neither), medians over the rounds with their spread; and for `minilm` the validation loss after the same examples over
three seeds, ours minus the Trainer's, paired. The last line is JSON; its ratios are those of the model where they are
worse.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))
ARMS = ("ours_1", "ours_2", "trainer", "trainer_tuned", "trainer_matched", "bare")
WINDOW, STRIDE, BATCH, MICROBATCH, LR = 512, 384, 16, 8, 1e-4
DOCUMENTS = {"minilm": 320, "distilbert": 64}  # of training, for the two models
THREADS = 2
SEEDS = (0, 1, 2)
NLL_EPOCHS = 2


def main() -> int:
    """Run all arms. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="Parquet file or folder with columns `text` and `label`; else the sample")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="times the documents, for faster hardware")
    parser.add_argument("--gpu", action="store_true", help="on one GPU; only ours_1, the Trainer's and the bare loop")
    parser.add_argument("--models", nargs="+", default=list(DOCUMENTS), choices=list(DOCUMENTS))
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(run_arm(options.arm, json.loads(options.job))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        jobs = {name: prepared(Path(scratch), name, options) for name in options.models}
        arms = [arm for arm in ARMS if not (options.gpu and arm == "ours_2")]
        found = {name: measured(job, arms, options.rounds) for name, job in jobs.items()}
        gap = nll_gap(jobs["minilm"]) if "minilm" in jobs else None
    print(json.dumps({**ratios(found), "nll_gap": gap, "models": found}))
    return 0


def prepared(scratch: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A corpus of so many training documents, tokenised, and the model; what an arm must know, as plain values."""
    folder = scratch / name
    folder.mkdir()
    model = ["model=minilm"]
    if name == "distilbert":
        model = [f"model.path={random_distilbert(folder / 'weights')}", "model.sha256="]
    train = round(DOCUMENTS[name] * options.scale)
    rows = texts(options.texts, round(train / 0.7))
    rows.to_csv(folder / "texts.csv", index=False)
    overrides = [
        *model,
        *(f"model.window={WINDOW}", f"model.stride={STRIDE}", f"storage.root={folder / 'store'}"),
        *("corpus=csv", f"corpus.sources.0.path={folder / 'texts.csv'}", "corpus.min_words=1"),
        "corpus.split={train: 0.7, validation: 0.2, calibration: 0.05, test: 0.05}",
        *(f"train.batch_size={BATCH}", f"train.microbatch_size={MICROBATCH}", f"train.lr={LR}", "train.epochs=1"),
        *("tracking.mode=disabled", f"train.use_gpu={str(options.gpu).lower()}"),
    ]
    subprocess.run([sys.executable, "jobs/prepare.py", *overrides], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    return {"name": name, "overrides": overrides, "gpu": options.gpu}


def texts(path: str | None, count: int) -> Any:
    """Labelled texts, both classes alike, in an order drawn from a seed."""
    import pandas as pd

    if path:
        rows = pd.read_parquet(path, columns=["text", "label"])
    else:
        from detect_ai.config import SourceConfig
        from detect_ai.corpus.read import pieces, read_piece

        source = SourceConfig(kind="sample", name="sample")
        tables = [table for piece in pieces(source) for table in read_piece(piece)]
        rows = pd.concat([table.select(["text", "label"]).to_pandas() for table in tables])
    each = [part.sample(min(len(part), count // 2), random_state=0) for _, part in rows.groupby("label")]
    return pd.concat(each).sample(frac=1, random_state=0)


def random_distilbert(folder: Path) -> Path:
    """DistilBERT of full size (66M parameters) with random weights and the tokenizer of `minilm`."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    from detect_ai import model
    from detect_ai.config import ModelConfig

    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig()).save_pretrained(folder)
    source, _ = model.resolve(ModelConfig())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(source) / name, folder)
    return folder


def measured(job: dict[str, Any], arms: list[str], rounds: int) -> dict[str, Any]:
    """Medians over rounds of tokens a second, padding and start-up of every arm."""
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            found[arm].append(call(arm, job))
            print(f"{job['name']} {arm}: {found[arm][-1]}", file=sys.stderr, flush=True)
    return {arm: summary(runs) for arm, runs in found.items()}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, and the lowest and highest speed."""
    speeds = [run["tokens_per_second"] for run in runs]
    figures = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**{name: round(value, 4) for name, value in figures.items()}, "spread": [min(speeds), max(speeds)]}


def call(arm: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run an arm in a process of its own."""
    command = [sys.executable, __file__, "--arm", arm, "--job", json.dumps(job)]
    done = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run_arm(arm: str, job: dict[str, Any]) -> dict[str, Any]:
    """What an arm's process does."""
    import torch

    torch.set_num_threads(THREADS)
    kind: Callable[..., dict[str, Any]] = ours if arm.startswith("ours") else bare if arm == "bare" else trainer
    return kind(arm, job)


def settings(job: dict[str, Any], *more: str) -> Any:
    """The configuration of a run."""
    from detect_ai.config import load_config

    return load_config([*job["overrides"], *more])


def corpus_of(config: Any) -> Any:
    """The prepared corpus."""
    from detect_ai.corpus.manifest import Corpus
    from detect_ai.stage import read_result
    from detect_ai.storage import Storage

    storage = Storage(config.storage.root)
    config.storage.root = storage.root
    return Corpus.open(storage, read_result(storage, config.run, "prepare")["corpus"])


def ours(arm: str, job: dict[str, Any]) -> dict[str, Any]:
    """The project's own training."""
    from detect_ai import cluster
    from detect_ai.stage import attempt
    from detect_ai.training import run_training

    workers = 2 if arm == "ours_2" else 1
    more = (f"train.num_workers={workers}", f"train.threads_per_worker={THREADS // workers}", *job.get("more", ()))
    config = settings(job, *more)
    cluster.connect()
    corpus = corpus_of(config)
    started = time.perf_counter()
    result = run_training(config, corpus, attempt("bench"))
    seconds = time.perf_counter() - started
    last = result.history[-1]
    tokens = float(sum(len(row) for row in token_ids(config, corpus, "train")))
    return {
        "tokens_per_second": last["tokens_per_second"],
        "padding": last["padding"],
        "start_up": seconds - config.train.epochs * tokens / last["tokens_per_second"],
        "val_loss": last["val_loss"],
        **({"mfu": last["mfu"]} if "mfu" in last else {}),
    }


def token_ids(config: Any, corpus: Any, split: str) -> list[Any]:
    """Token ids of the documents of a split with their special tokens, cut to a window."""
    from detect_ai.model import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    content = WINDOW - tokenizer.num_special
    rows = corpus.read(split, ["input_ids"])["input_ids"].to_pylist()
    return [np.concatenate((tokenizer.prefix, row[:content], tokenizer.suffix)).astype(int) for row in rows]


def trainer(arm: str, job: dict[str, Any]) -> dict[str, Any]:
    """transformers.Trainer over the same token ids."""
    from dataclasses import replace

    import transformers

    from detect_ai import model

    config = settings(job, *job.get("more", ()))
    corpus = corpus_of(config)
    if arm != "trainer_matched":
        config.model = replace(config.model, dropout=0.1, attention_dropout=0.1)
    network = model.build(config.model, config.seed)
    source, _ = model.resolve(config.model)
    pad = transformers.AutoTokenizer.from_pretrained(source)
    train, validation = (rows_of(config, corpus, split) for split in ("train", "validation"))
    tuned = arm != "trainer"
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            learning_rate=config.train.lr,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            num_train_epochs=config.train.epochs,
            weight_decay=0.01,
            warmup_steps=config.train.warmup,  # below 1 a share of the steps
            seed=config.seed,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not job["gpu"],
            bf16=tuned,
            optim="adamw_torch_fused" if tuned else "adamw_torch",
            train_sampling_strategy="group_by_length" if tuned else "random",
        )
        started = time.perf_counter()
        loop = transformers.Trainer(
            model=network,
            args=arguments,
            train_dataset=train,
            data_collator=(counted := Counted(transformers.DataCollatorWithPadding(pad))),
        )
        runtime = loop.train().metrics["train_runtime"]
        seconds = time.perf_counter() - started
        tokens, padded = counted.tokens, counted.padded
        loss = loop.evaluate(validation)["eval_loss"]
    return {
        "tokens_per_second": round(tokens / runtime),
        "padding": 1 - tokens / padded,
        "start_up": seconds - runtime,
        "val_loss": loss,
    }


class Counted:
    """A collator that counts what it hands out."""

    def __init__(self, collator: Any) -> None:
        self._collator, self.tokens, self.padded = collator, 0, 0

    def __call__(self, rows: Any) -> Any:
        """Collate and count."""
        batch = self._collator(rows)
        self.tokens += int(batch["attention_mask"].sum())
        self.padded += int(batch["attention_mask"].numel())
        return batch


def rows_of(config: Any, corpus: Any, split: str) -> Any:
    """A split as the Trainer takes it."""
    import datasets

    labels = [int(label) for label in corpus.labels(split)]
    ids = [row.tolist() for row in token_ids(config, corpus, split)]
    mask = [[1] * len(row) for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": labels})


def bare(arm: str, job: dict[str, Any]) -> dict[str, Any]:
    """A bare loop: our batches, made beforehand."""
    import torch

    from detect_ai import batches, model
    from detect_ai.backends.torch import autocast, model_inputs

    config = settings(job)
    corpus = corpus_of(config)
    device = torch.device("cuda" if job["gpu"] else "cpu")
    dtype = model.autocast_dtype("auto", device)
    network = model.build(config.model, config.seed).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01, fused=True)
    ids, labels = token_ids(config, corpus, "train"), corpus.labels("train")
    lengths, nothing = np.asarray([len(row) for row in ids]), np.empty(0, np.int32)
    plan = batches.plan_steps(lengths, labels, BATCH, MICROBATCH, np.random.default_rng(0))
    made = [
        [(batches.collate([ids[i] for i in part], nothing, nothing, 0), labels[part]) for part in step] for step in plan
    ]
    started = time.perf_counter()
    for step in made:
        count = sum(len(truth) for _, truth in step)
        for batch, truth in step:
            with autocast(device, dtype):
                logits = network(**model_inputs(batch, device)).logits
            target = torch.from_numpy(np.asarray(truth)).to(device)
            (torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum") / count).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if job["gpu"]:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    padded = sum(batch.input_ids.size for step in made for batch, _ in step)
    return {"tokens_per_second": round(lengths.sum() / seconds), "padding": 1 - lengths.sum() / padded}


def nll_gap(job: dict[str, Any]) -> dict[str, Any]:
    """Validation loss after the same examples, ours minus that of the Trainer with our dropout, over seeds."""
    gaps = []
    for seed in SEEDS:
        same = {**job, "more": [f"seed={seed}", f"train.epochs={NLL_EPOCHS}"]}
        ours_, theirs = (call(arm, same)["val_loss"] for arm in ("ours_1", "trainer_matched"))
        gaps.append(ours_ - theirs)
        print(f"seed {seed}: ours {ours_:.4f}, Trainer {theirs:.4f}", file=sys.stderr, flush=True)
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    return {"mean": round(statistics.mean(gaps), 4), "standard_error": round(error, 4)}


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ours against each peer, of the model where it is worse; and the highest share of padding."""

    def worst(over: str, under: str) -> float | None:
        pairs = [(arms[over], arms[under]) for arms in found.values() if over in arms and under in arms]
        shares = [top["tokens_per_second"] / bottom["tokens_per_second"] for top, bottom in pairs]
        return round(min(shares), 3) if shares else None

    return {
        "vs_trainer": worst("ours_1", "trainer"),
        "vs_trainer_tuned": worst("ours_1", "trainer_tuned"),
        "vs_trainer_matched": worst("ours_1", "trainer_matched"),
        "vs_bare_loop": worst("ours_1", "bare"),
        "ddp_efficiency": worst("ours_2", "ours_1"),
        "padding": max(arms["ours_1"]["padding"] for arms in found.values()),
    }


if __name__ == "__main__":
    raise SystemExit(main())
