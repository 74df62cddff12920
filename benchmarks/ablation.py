"""Does a change to training help? Short training runs, evaluated on held-out domains: `docs/experiments/log`.

    python benchmarks/ablation.py run=base experiment=base --recipes "" vrex=0.3 "average=0.5"
    python benchmarks/ablation.py run=base experiment=base --documents 8000 --seeds 0 1 --recipes ""

Needs the corpus of the run (`jobs/prepare.py`). Each recipe is a comma-separated list of changes (`Recipe`; "": none)
to training on the first documents in a random order, with the project's own trainer and batch plan, in one process on
one device. The first windows of calibration texts are then scored and calibrated; each domain is evaluated with the
thresholds of the others. `auroc` covers all evaluated texts, with equal weights for domains within a class. Prints a
JSON line for each recipe and seed; the last line is JSON with all of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy, softplus
from transformers import PreTrainedModel

from detect_ai.calibration.domains import calibrate
from detect_ai.calibration.leave_one_out import leave_one_domain_out
from detect_ai.core.compose import load_config
from detect_ai.core.config import Config
from detect_ai.core.errors import DetectAIError
from detect_ai.core.ray_runtime import cores
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.models import encoder
from detect_ai.models.backends.torch import autocast, log_odds, model_inputs, upload
from detect_ai.models.batch import collate, plan_scoring
from detect_ai.models.style import Style
from detect_ai.models.tokenizer import Tokenizer
from detect_ai.text.windows import aggregate_windows, split_windows
from detect_ai.training.batch_plan import Microbatch, num_steps
from detect_ai.training.data import WindowFormat, training_microbatches
from detect_ai.training.train import checked_tokenizer
from detect_ai.training.trainer import Trainer
from detect_ai.training.worker import group_steps, train_step

COLUMNS = ["input_ids", "label", "weight", "attack", "domain", "generator"]
HEAD_TEXTS = 2_000  # texts to which a head is fitted, on frozen features
BATCH_TOKENS = 8192
DECAY = 0.9  # of running means over steps
QUEUE = 512  # human scores that the tail is estimated from


@dataclass(frozen=True)
class Recipe:
    """Changes to the training of the run; 0 disables a term."""

    epochs: int = 1
    batch: int = 0  # documents per step
    lr: float = 0.0
    sam: float = 0.0  # sharpness-aware minimisation of all weights: the length of the ascent step
    vrex: float = 0.0  # weight of the variance over domains of the mean human score
    dro: float = 0.0  # GroupDRO: exponent of the running loss of each domain and class in its weight
    tail: float = 0.0  # weight of a loss on the highest 10% of human scores of any domain against AI
    heads: float = 0.0  # weight of auxiliary heads for generator family and domain
    head_first: int = 0  # 1: fit the head to the pretrained encoder first (LP-FT)
    average: float = 1.0  # fraction of the trained encoder in its mean with the pretrained one (WiSE-FT)

    @classmethod
    def of(cls, text: str) -> Recipe:
        """Parse "name=value,…"."""
        kinds = {field.name: int if field.type == "int" else float for field in fields(cls)}
        pairs = [part.split("=") for part in text.split(",") if part]
        return cls(**{name: kinds[name](value) for name, value in pairs})


def main() -> int:
    """Train and evaluate every recipe. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="run=…, experiment=…, train.…")
    parser.add_argument("--recipes", nargs="+", default=[""])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--judged", type=int, default=100, help="calibration texts of each class in a domain")
    parser.add_argument("--windows", type=int, default=3, help="first windows of each judged text")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        config = load_config(options.overrides)
        torch.set_num_threads(config.train.threads_per_worker or cores())
        bench = Bench(config, options.documents, options.judged, options.windows)
        rows = []
        for seed in options.seeds:
            for recipe in options.recipes:
                rows.append({"recipe": recipe, "seed": seed, **bench.run(Recipe.of(recipe), seed)})
                print(json.dumps(rows[-1]), flush=True)
    except DetectAIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"documents": options.documents, "torch": torch.__version__, "recipes": rows}))
    return 0


class Bench:
    """The documents on which all recipes are trained and evaluated."""

    def __init__(self, config: Config, documents: int, judged: int, num_windows: int) -> None:
        corpus = Corpus.of_run(Storage(config.storage.root), config.run)
        tokenizer: Tokenizer = checked_tokenizer(config, corpus)
        self.config, self.form = config, WindowFormat.of(tokenizer, config.model)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        table = corpus.read("train", COLUMNS)
        order = np.random.default_rng(0).permutation(table.num_rows)[:documents]
        self.train: pa.Table = table.take(np.sort(order))
        rows = corpus.read("calibration", ["input_ids", "label"]).to_pandas()
        rows["domain"] = corpus.domains("calibration")
        self.judged = rows.groupby(["domain", "label"]).head(judged).reset_index(drop=True)
        most = self.form.window - self.form.num_special + (num_windows - 1) * self.form.stride
        self.texts = [ids[:most] for ids in self.judged["input_ids"]]
        embeddings: Any = encoder.build(config.model, 0).get_input_embeddings()
        style = Style.fit(embeddings.weight.detach().numpy(), self.texts, self.judged["domain"])
        self.styles = list(style.vectors(self.texts))
        self._trained: dict[tuple[Recipe, int], dict[str, torch.Tensor]] = {}

    def run(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Train and evaluate. A recipe that differs from an earlier one only in `average` is not trained again."""
        started, key = time.perf_counter(), (replace(recipe, average=1.0), seed)
        model = encoder.build(self.config.model, seed).to(self.device)
        pretrained = {name: value.clone() for name, value in model.state_dict().items()}
        if key not in self._trained:
            if recipe.head_first:
                self._fit_head(model, seed)
            self._train(model, recipe, seed)
            self._trained = {key: {name: value.clone() for name, value in model.state_dict().items()}}
        trained, share = self._trained[key], recipe.average
        model.load_state_dict({name: share * trained[name] + (1 - share) * value for name, value in pretrained.items()})
        if share < 1:
            self._fit_head(model, seed)
        seconds = round(time.perf_counter() - started)
        return {**self._judge(model), "train_seconds": seconds}

    def _train(self, model: PreTrainedModel, recipe: Recipe, seed: int) -> None:
        changed = {"epochs": recipe.epochs, "batch_size": recipe.batch, "lr": recipe.lr}
        changed = {name: value for name, value in changed.items() if value}
        train = self.config.train.model_copy(update=changed)
        config = self.config.model_copy(update={"train": train, "seed": seed})
        steps = num_steps(self.train.num_rows, train.batch_size)
        trainer = AblationTrainer(recipe, self.train, config, model, self.device, steps)
        for epoch in range(train.epochs):
            pool = {"epoch": epoch, "number": 0, "first": 0, "skip": 0}
            for parts in group_steps(training_microbatches(self.train, pool, self.form, config, 1), 0, 1):
                trainer.step(parts)
        trainer.synchronize()

    def _judge(self, model: PreTrainedModel) -> dict[str, Any]:
        scores, _ = self._scored(model, self.texts)
        columns = {"score": scores, "num_tokens": [len(ids) for ids in self.texts], "style": self.styles}
        frame = self.judged[["label", "domain"]].assign(**columns, is_whole=True).rename_axis("document").reset_index()
        calibration = calibrate(frame, self.config.calibration, self.form.window - self.form.num_special)
        rates = leave_one_domain_out(calibration, self.config.calibration, self.config.calibration.default_target_fpr)
        assert rates is not None, "too few domains"
        weights = 1 / frame.groupby(["label", "domain"])["score"].transform("size")
        auroc = roc_auc_score(frame["label"], frame["score"], sample_weight=weights)
        return {"auroc": auroc, **{name: value for name, value in rates.items() if name != "domains"}}

    def _fit_head(self, model: PreTrainedModel, seed: int) -> None:
        """Logistic regression on frozen features of training texts, cut to a window."""
        chosen = np.random.default_rng(seed).permutation(self.train.num_rows)[:HEAD_TEXTS]
        rows = self.train.take(np.sort(chosen)).to_pandas()
        content = self.form.window - self.form.num_special
        _, features = self._scored(model, [ids[:content] for ids in rows["input_ids"]])
        fitted = LogisticRegression(max_iter=1000).fit(features, rows["label"], rows["weight"])
        head: Any = model.classifier
        with torch.no_grad():
            for parameter, values in ((head.weight, fitted.coef_[0]), (head.bias, fitted.intercept_[0])):
                half = torch.as_tensor(values / 2, dtype=parameter.dtype)
                parameter.copy_(torch.stack([-half, half]))

    def _scored(self, model: PreTrainedModel, texts: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Mean log-odds of the windows of texts, shape (texts,), and features of their windows, (windows, width)."""
        content = self.form.window - self.form.num_special
        rows, owners = split_windows(texts, content, self.form.stride)
        odds, features = np.empty(len(rows)), np.empty((len(rows), model.classifier.in_features), np.float32)
        model.eval()
        dtype = encoder.autocast_dtype(self.config.train.precision, self.device)
        lengths = np.asarray([len(row) + self.form.num_special for row in rows])
        with torch.inference_mode(), autocast(self.device, dtype), captured_features(model) as seen:
            for positions in plan_scoring(lengths, BATCH_TOKENS):
                batch = collate([rows[i] for i in positions], self.form.prefix, self.form.suffix, self.form.pad_id)
                odds[positions] = log_odds(model(**model_inputs(batch, self.device)).logits).cpu().numpy()
                features[positions] = seen[0].float().cpu().numpy()
        return aggregate_windows(odds, owners, len(texts)), features


class AblationTrainer(Trainer):
    """The project's trainer with the terms of a recipe."""

    def __init__(
        self, recipe: Recipe, table: pa.Table, config: Config, model: PreTrainedModel, device: torch.device, steps: int
    ) -> None:
        super().__init__(config.train, model, device, 1, steps, config.seed)
        self.recipe = recipe
        rows = table.select(["domain", "generator"]).to_pandas().astype(str)
        family = rows["generator"].str.extract(r"^([a-zA-Z]*)", expand=False).str.lower()
        (self.domains, domain_names), (self.families, family_names) = pd.factorize(rows["domain"]), pd.factorize(family)
        self.num_domains = len(domain_names)
        # Running estimates over steps; nan until a domain was seen.
        self.means = np.full(self.num_domains, np.nan)  # of human scores
        self.losses = np.full((2, self.num_domains), np.nan)  # of each class
        self.human_scores, self.ai_scores = np.zeros(0), np.zeros(0)
        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(model.classifier.in_features, n) for n in (self.num_domains, len(family_names))
        ).to(device)
        if recipe.heads:
            self.optimizer.add_param_group({"params": list(self.heads.parameters()), "weight_decay": 0.0})

    def step(self, parts: list[Microbatch]) -> None:
        """One optimizer step."""
        if not self.recipe.sam:
            train_step(self, parts)
            return
        self.begin_step()
        for part in parts:
            self.backward(part, sync=True)
        with ascended(self.module, self.recipe.sam):
            losses = [self.backward(part, sync=True) for part in parts]
        self.update(parts, losses)

    def backward(self, part: Microbatch, sync: bool) -> torch.Tensor:
        """As `Trainer.backward` on one rank, with the terms of the recipe."""
        recipe, domains = self.recipe, self.domains[part.documents]
        labels, weights = (upload(array, self.device) for array in (part.labels, part.weights))
        with autocast(self.device, self.dtype), captured_features(self.module) as seen:
            logits = self._forward(**model_inputs(part.batch, self.device)).logits.float()
        losses, odds = cross_entropy(logits, labels, reduction="none"), logits[:, 1] - logits[:, 0]
        self._observe(part.labels, domains, losses.detach().cpu().numpy(), odds.detach().cpu().numpy())
        total = (losses * weights * self._group_weights(part.labels, domains)).sum()
        rows, human = len(labels), labels == 0  # a term is a mean over the rows of this pass
        if recipe.vrex:
            gap = np.nan_to_num(self.means - np.nanmean(self.means))[domains]
            total = total + recipe.vrex * rows * (2 * self._tensor(gap) * odds)[human].mean().nan_to_num()
        if recipe.tail and len(self.human_scores):
            threshold, typical = np.quantile(self.human_scores, 0.9), np.median(self.ai_scores)
            hard = human & (odds.detach() >= threshold)
            for term in (softplus(odds[hard] - typical), softplus(threshold - odds[~human])):
                total = total + recipe.tail * rows * term.mean().nan_to_num()
        if recipe.heads:
            codes = (domains, self.families[part.documents])
            for head, target in zip(self.heads, codes, strict=True):
                aim = torch.as_tensor(target, device=self.device)
                total = total + recipe.heads * rows * cross_entropy(head(seen[0].float()), aim)
        (total / part.step_weight).backward()
        return (losses * weights).sum().detach()

    def _observe(self, labels: np.ndarray, domains: np.ndarray, losses: np.ndarray, odds: np.ndarray) -> None:
        for domain in np.unique(domains):
            for label in (0, 1):
                own = (domains == domain) & (labels == label)
                if own.any():
                    self.losses[label, domain] = running(self.losses[label, domain], losses[own].mean())
                    if not label:
                        self.means[domain] = running(self.means[domain], odds[own].mean())
        self.human_scores = np.concatenate([self.human_scores, odds[labels == 0]])[-QUEUE:]
        self.ai_scores = np.concatenate([self.ai_scores, odds[labels == 1]])[-QUEUE:]

    def _group_weights(self, labels: np.ndarray, domains: np.ndarray) -> torch.Tensor | float:
        if not self.recipe.dro:
            return 1.0
        weights = np.exp(self.recipe.dro * self.losses)
        return self._tensor((weights / np.nanmean(weights))[labels, domains])

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def running(before: float, value: float) -> float:
    """A running mean."""
    return value if math.isnan(before) else DECAY * before + (1 - DECAY) * value


@contextmanager
def captured_features(model: Any) -> Any:
    """The features that enter the head, in a list that the forward pass fills."""
    seen: list[torch.Tensor] = []

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[:] = inputs[:1]

    handle = model.classifier.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def ascended(model: torch.nn.Module, length: float) -> Any:
    """Move all weights by `length` along their gradient, which is reset, and restore them (Foret et al., 2021)."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in parameters]).norm() + 1e-12
    moves = [p.grad * (length / norm) for p in parameters]
    with torch.no_grad():
        torch._foreach_add_(parameters, moves)
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)


if __name__ == "__main__":
    sys.exit(main())
