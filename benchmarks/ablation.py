"""Does a part of the training recipe pay? Short trainings in this process, judged on texts of other kinds.

    python benchmarks/ablation.py --data FOLDER [epochs=8 lr=2e-4 …]           one recipe: what differs from the default
    python benchmarks/ablation.py --data FOLDER --gpu --recipes recipes.jsonl  many, one JSON object a line

FOLDER holds `essays`, `mixed` and `dev_ood` as docs/experiments/essays.md names them. The loop is bare PyTorch over the
project's own tokeniser, normaliser, windows and batch plan, so that a run takes minutes, on a GPU seconds; thresholds
come from validation texts alone. Prints one line of JSON for each recipe. What was found stands in
docs/experiments/essays.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detect_ai import metrics
from detect_ai.calibration.conformal import conformal_threshold
from detect_ai.core.config import ModelConfig, load_config
from detect_ai.corpus import balance
from detect_ai.models import encoder
from detect_ai.models.backends.torch import autocast, log_odds, model_inputs, upload
from detect_ai.models.batch import Batch, collate, plan_scoring, plan_steps
from detect_ai.models.tokenizer import Tokenizer
from detect_ai.text.attacks import ATTACKS
from detect_ai.text.normalize import normalise
from detect_ai.text.windows import aggregate_windows, sample_span, sample_window, split_windows
from detect_ai.training.trainer import lr_share

SETS = {
    "essays_train": "essays/train/*.parquet",
    "mixed_train": "mixed/train/*.parquet",
    "essays_val": "essays/val/*.parquet",
    "mixed_val": "mixed/val/*.parquet",
    "detectrl_clean": "dev_ood/detectrl_clean.parquet",
    "detectrl_attacks": "dev_ood/detectrl_attacks.parquet",
    "m4": "dev_ood/m4*.parquet",
    "nonnative": "dev_ood/nonnative*.parquet",
}
JUDGED = [name for name in SETS if not name.endswith("_train")]
SHOWN = [name for name in JUDGED if name != "mixed_val"]


@dataclass(frozen=True)
class Recipe:
    """What a training does. A set that is smaller than asked for is taken whole."""

    essays: int = 4000  # documents
    mixed: int = 4000
    balance: str = "domain"  # none | classes within each domain | and length | generators, too | weigh alike
    attacked: float = 0.0  # share of the spans that are cut from a copy under an attack
    attacks: tuple[str, ...] = tuple(ATTACKS)  # one of them for each document
    hard: float = 0.0  # weight of a human span whose score is that of an AI text for sure, above the usual 1
    trim: float = 0.0  # share of a batch, that with the highest losses, not learnt from: its labels may be wrong
    encoder: str = "minilm"
    path: str = ""  # folder of the model's weights; empty: where its configuration says
    spans: int = 32  # shortest random span in tokens; 0: whole windows
    window: int = 128  # tokens; three quarters of it are the stride
    judged_windows: tuple[int, ...] = (128,)
    pooling: str = "mean"
    layers: int = 0  # the first so many of the encoder; 0: all
    frozen: str = "nothing"
    dropout: float = 0.0
    epochs: int = 4
    batch: int = 32
    lr: float = 1e-4
    layer_decay: float = 1.0  # the learning rate of a layer over that of the one above it
    weight_decay: float = 0.01
    smoothing: float = 0.0  # of labels
    pairs: float = 0.0  # weight of a loss on differences of AI and human scores within a topic
    adversarial: float = 0.0  # length of a step of the embeddings against the loss, learnt from as well
    average: float = 0.0  # decay of a moving average of the weights, which is judged
    soup: int = 1  # trainings whose weights are averaged
    seed: int = 0


def main() -> None:
    """Train, judge, print."""
    options = arguments()
    device = torch.device("cuda" if options.gpu else "cpu")
    asked = list(recipes(options))
    if len({(recipe.model, recipe.path) for recipe in asked}) > 1:
        raise SystemExit("expected recipes with one model: texts are tokenised once")
    tokenizer = encoder.load_tokenizer(model_config(asked[0]))
    texts = {name: read(options, name, tokenizer) for name in SETS}
    judged = list(JUDGED)
    for attack in options.attack:
        judged.append(f"essays_val/{attack}")
        changed = under_attacks(texts["essays_val"]["text"], (attack,), tokenizer)
        texts[judged[-1]] = texts["essays_val"].assign(ids=changed)
    kept: dict[str, NDArray[np.float16]] = {}
    for number, recipe in enumerate(asked):
        started = time.perf_counter()
        network = trained(recipe, texts, tokenizer, device)
        seconds = time.perf_counter() - started
        scores = {
            window: {name: score(network, texts[name], tokenizer, window, device) for name in judged}
            for window in recipe.judged_windows
        }
        for window, found in scores.items():
            kept |= {f"{number}/{window}/{name}": values.astype(np.float16) for name, values in found.items()}
            figures = judge({name: texts[name]["label"].to_numpy() for name in judged}, found)
            line = {"recipe": different(recipe), "judged": window, "seconds": round(seconds, 1), **figures}
            print(json.dumps(line), flush=True)
        if options.scores:
            whole = Path(options.scores).with_suffix(".part.npz")  # a run that is cut off leaves the last whole file
            np.savez_compressed(whole, **kept)
            whole.replace(options.scores)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", help="folder where token ids are kept from run to run, one for each model")
    parser.add_argument("--judged", type=int, default=10**6, help="texts of each set, at most")
    parser.add_argument(
        "--attack", action="append", default=[], choices=list(ATTACKS), help="judge essays_val under it"
    )
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--recipes", help="file with a JSON object in each line")
    parser.add_argument("--scores", help="file (.npz) for the scores of all texts")
    parser.add_argument("changes", nargs="*", metavar="NAME=VALUE", help=", ".join(f.name for f in fields(Recipe)))
    return parser.parse_args()


def recipes(options: argparse.Namespace) -> Iterator[Recipe]:
    """The recipes that the command line asks for."""
    lines = Path(options.recipes).read_text().splitlines() if options.recipes else ["{}"]
    kinds = {field.name: type(field.default) for field in fields(Recipe)}
    changes: dict[str, Any] = {}
    for name, value in (change.split("=") for change in options.changes):
        changes[name] = value if kinds[name] is str else json.loads(value)
    for line in lines:
        told = json.loads(line) | changes
        yield Recipe(**{name: tuple(value) if kinds[name] is tuple else value for name, value in told.items()})


def different(recipe: Recipe) -> dict[str, Any]:
    """What differs from the default."""
    default = asdict(Recipe())
    return {name: value for name, value in asdict(recipe).items() if value != default[name]}


def read(options: argparse.Namespace, name: str, tokenizer: Tokenizer) -> pd.DataFrame:
    """A set with the token ids of its texts; of a set to judge at most so many, drawn from all."""
    cached = Path(options.cache or "", f"{name}.parquet")
    if options.cache and cached.is_file():
        rows = pd.read_parquet(cached)
    else:
        rows = pd.concat([pd.read_parquet(path) for path in sorted(Path(options.data).glob(SETS[name]))])
        rows["ids"] = [ids.astype(np.uint16) for ids in tokenizer.encode(in_parallel(plain, rows["text"]))]
        kept = ["label", "domain", "topic", "generator", "ids", "text"]
        rows = rows.assign(topic=rows.get("topic", rows["domain"]))[kept]
        if options.cache:
            cached.parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(cached, compression="zstd")
    rows["ids"] = [np.asarray(ids, np.int32) for ids in rows["ids"]]
    most = options.judged if name in SHOWN else len(rows)
    return rows.sample(min(most, len(rows)), random_state=0).reset_index(drop=True)


def training_texts(recipe: Recipe, texts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The documents of a training with their weights, drawn by the seed."""
    parts = []
    for name, count in (("essays_train", recipe.essays), ("mixed_train", recipe.mixed)):
        rows = texts[name].sample(min(count, len(texts[name])), random_state=recipe.seed)
        rows = rows.assign(domain="essays" if name == "essays_train" else rows["domain"])
        rows["weight"] = balanced(rows, recipe.balance)
        parts.append(rows)
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(weight=rows["weight"] / rows["weight"].mean(), topic=rows["topic"].astype("category").cat.codes)


def balanced(rows: pd.DataFrame, how: str) -> Any:
    """Weights of the documents of a corpus, whose sum is 1 unless nothing is balanced."""
    if how == "none":
        return 1.0
    if how == "length":
        cells = balance.cells(rows["domain"].astype("category").cat.codes.to_numpy(np.int64), rows["ids"].map(len))
        weights = balance.weights(cells, rows["label"].to_numpy(np.int8))
        return weights / weights.sum()
    size = {keys: rows.groupby(list(keys))["label"].transform("size") for keys in (("domain",), ("domain", "label"))}
    weights = size["domain",] / size["domain", "label"]
    if how == "generator":  # no generator of a domain counts for more than four times its texts
        own = rows.groupby(["domain", "label", "generator"])["label"].transform("size")
        kinds = rows.groupby(["domain", "label"])["generator"].transform("nunique")
        weights *= (size["domain", "label"] / (kinds * own)).clip(balance.LEAST, balance.MOST)
    return weights / weights.sum()


def under_attacks(
    texts: Iterable[str], attacks: tuple[str, ...], tokenizer: Tokenizer, seed: int = 0
) -> list[NDArray[np.int32]]:
    """Token ids of each text under one of the attacks."""

    def attacked(numbered: tuple[int, str]) -> str:
        rng = np.random.default_rng([seed, numbered[0]])
        return plain(ATTACKS[attacks[rng.integers(len(attacks))]](plain(numbered[1]), rng))

    return tokenizer.encode(in_parallel(attacked, enumerate(texts)))


def plain(text: str) -> str:
    """As the detector reads it."""
    return normalise(text).text


def in_parallel(change: Callable[[Any], str], texts: Iterable[Any]) -> list[str]:
    """Changed texts, by all processors."""
    changed: list[str] = Parallel(n_jobs=-1)(delayed(change)(text) for text in texts)
    return changed


def trained(recipe: Recipe, texts: dict[str, pd.DataFrame], tokenizer: Tokenizer, device: torch.device) -> Any:
    """The network of a recipe."""
    rows, soup = training_texts(recipe, texts), []
    for number in range(recipe.soup):
        network = built(recipe).to(device)
        soup.append(train(network, rows, tokenizer, recipe, recipe.seed + 1000 * number))
    mean = {name: torch.stack([weights[name] for weights in soup]).mean(0) for name in soup[0]}
    network.load_state_dict(mean, strict=False)
    return network.eval()


def built(recipe: Recipe) -> Any:
    """The encoder with a new head."""
    keys = [f"model.{name}={getattr(recipe, name)}" for name in ("window", "pooling", "dropout", "layers")]
    config = model_config(recipe, *keys, f"model.stride={stride(recipe.window)}")
    network: Any = encoder.build(config, recipe.seed)
    encoder.freeze(network, recipe.frozen)
    return network


def model_config(recipe: Recipe, *changes: str) -> ModelConfig:
    """The configuration of the encoder of a recipe."""
    place = [f"model.path={recipe.path}", "model.sha256=''"] if recipe.path else []
    return load_config([f"model={recipe.model}", *place, *changes]).model


def stride(window: int) -> int:
    """Tokens between the starts of neighbouring windows."""
    return window * 3 // 4


def train(
    network: Any, texts: pd.DataFrame, tokenizer: Tokenizer, recipe: Recipe, seed: int
) -> dict[str, torch.Tensor]:
    """AdamW with warm-up and linear decay. Returns the weights, or their moving average."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    step = Step(network, recipe)
    originals = texts["ids"].tolist()
    copies = originals
    if recipe.attacked:
        copies = under_attacks(texts["text"], recipe.attacks, tokenizer, recipe.seed)
    labels, topics = texts["label"].to_numpy(np.int64), texts["topic"].to_numpy(np.int64)
    weights = texts["weight"].to_numpy(np.float32)
    total = recipe.epochs * math.ceil(len(texts) / recipe.batch)
    content = recipe.window - tokenizer.num_special
    done = 0
    network.train()
    for _ in range(recipe.epochs):
        changed = rng.random(len(texts)) < recipe.attacked
        documents = [
            copy if is_changed else own for copy, own, is_changed in zip(copies, originals, changed, strict=True)
        ]
        if recipe.spans:
            rows = sample_span(documents, content, recipe.spans, rng)
        else:
            rows = sample_window(documents, content, stride(recipe.window), rng)
        lengths = np.asarray([len(row) + tokenizer.num_special for row in rows])
        for (chosen,) in plan_steps(lengths, labels, recipe.batch, recipe.batch, rng):
            batch = collate([rows[i] for i in chosen], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id)
            step(batch, labels[chosen], weights[chosen], topics[chosen], lr_share(done, total, 0.1, "linear"))
            done += 1
    return step.weights()


class Step:
    """One update after another."""

    def __init__(self, network: Any, recipe: Recipe) -> None:
        self.network, self.recipe = network, recipe
        self.device: torch.device = next(network.parameters()).device
        self.dtype = encoder.autocast_dtype("auto", self.device)
        groups: dict[float, list[torch.nn.Parameter]] = {}
        count = network.config.num_hidden_layers
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(recipe.layer_decay ** layers_above(name, count), []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": held, "share": share} for share, held in groups.items()],
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.averaged = {name: p.detach().clone() for name, p in network.named_parameters()}

    def __call__(self, batch: Batch, labels: Any, weights: Any, topics: Any, lr_share: float) -> None:
        """Learn from a batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * lr_share * group["share"]
        inputs = model_inputs(batch, self.device)
        told = [upload(array, self.device) for array in (labels, weights, topics)]
        self.loss(inputs, *told).backward()
        if self.recipe.adversarial:
            self.against(inputs, told)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.recipe.average:
            parameters = [p.detach() for p in self.network.parameters()]
            torch._foreach_lerp_(list(self.averaged.values()), parameters, 1 - self.recipe.average)

    def loss(self, inputs: Any, labels: Any, weights: Any, topics: Any) -> torch.Tensor:
        """The weighted mean over documents, and over pairs of a human and an AI text of one topic."""
        with autocast(self.device, self.dtype):
            logits = self.network(**inputs).logits.float()
        losses = torch.nn.functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.recipe.smoothing
        )
        weights = self.weighed(weights, labels, logits.detach(), losses.detach())
        loss: torch.Tensor = (losses * weights).sum() / weights.sum()
        if self.recipe.pairs:
            margin = logits[:, 1] - logits[:, 0]
            paired = (labels[:, None] > labels[None, :]) & (topics[:, None] == topics[None, :])
            each = torch.nn.functional.softplus(margin[None, :] - margin[:, None])
            loss = loss + self.recipe.pairs * (each * paired).sum() / paired.sum().clamp(min=1)
        return loss

    def weighed(
        self, weights: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, losses: torch.Tensor
    ) -> torch.Tensor:
        """The weights of the spans of a batch once their scores are known."""
        if self.recipe.hard:
            weights = weights * (1 + self.recipe.hard * (labels == 0) * logits.softmax(-1)[:, 1])
        if self.recipe.trim:
            weights = weights * (losses <= losses.quantile(1 - self.recipe.trim))
        return weights

    def against(self, inputs: Any, told: list[torch.Tensor]) -> None:
        """Add the gradient at embeddings that are moved against the loss."""
        embeddings = self.network.base_model.get_input_embeddings().weight
        moved = embeddings.grad * (self.recipe.adversarial / embeddings.grad.norm().clamp(min=1e-12))
        with torch.no_grad():
            embeddings.add_(moved)
        self.loss(inputs, *told).backward()
        with torch.no_grad():
            embeddings.sub_(moved)

    def weights(self) -> dict[str, torch.Tensor]:
        """What was learnt."""
        if self.recipe.average:
            return self.averaged
        return {name: p.detach().clone() for name, p in self.network.named_parameters()}


def layers_above(name: str, count: int) -> int:
    """How many layers lie between a weight and the head."""
    found = re.search(r"\.layer\.(\d+)\.", name)
    if found:
        return count - int(found[1])
    return count + 1 if "embeddings" in name else 0


def score(
    network: Any, texts: pd.DataFrame, tokenizer: Tokenizer, window: int, device: torch.device
) -> NDArray[np.float64]:
    """Log-odds of each document."""
    rows, owners = split_windows(texts["ids"].tolist(), window - tokenizer.num_special, stride(window))
    order, found = [], []
    dtype = encoder.autocast_dtype("auto", device)
    for chosen in plan_scoring(np.asarray([len(row) for row in rows]), 65536 if device.type == "cuda" else 8192):
        batch = collate([rows[i] for i in chosen], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id)
        with torch.inference_mode(), autocast(device, dtype):
            found.append(log_odds(network(**model_inputs(batch, device)).logits))
        order.append(chosen)
    scores = np.empty(len(rows))
    scores[np.concatenate(order)] = torch.cat(found).cpu().numpy()
    return aggregate_windows(scores, owners, len(texts))


def judge(labels: dict[str, Any], scores: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Figures by set. `fpr` and `tpr` are at a threshold for 1% of the human texts of mixed_val, the harder ones.

    Of essays under an attack, at one for 1% of the human essays of essays_val.
    """
    thresholds = {
        name: conformal_threshold(scores[name][labels[name] == 0], 0.01) for name in ("mixed_val", "essays_val")
    }
    figures: dict[str, Any] = {}
    for name in scores:
        if name == "mixed_val":
            continue
        threshold = thresholds["essays_val" if "/" in name else "mixed_val"]
        human, ai = (scores[name][labels[name] == label] for label in (0, 1))
        figures[name] = {"fpr": round(float((human >= threshold).mean()), 4)}
        if len(ai):
            figures[name] |= {
                "auroc": round(metrics.auroc(labels[name], scores[name]), 4),
                "tpr": round(float((ai >= threshold).mean()), 4),
                "tpr_at_fpr_1": round(metrics.tpr_at_fpr(labels[name], scores[name], 0.01), 4),
            }
    return figures


if __name__ == "__main__":
    main()
