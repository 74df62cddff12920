"""Does a part of the training recipe pay? One short training in this process, judged on texts of other kinds.

    python benchmarks/ablation.py --data FOLDER [--prose FOLDER] [--spans 32] [--window 128 --stride 96] …

FOLDER holds `essays`, `mixed` and `dev_ood` as docs/experiments/essays.md names them. The loop is bare PyTorch over the
project's own tokeniser, normaliser, windows and batch plan, so that a run takes minutes; thresholds come from
validation texts alone. The last line printed is JSON. What was found stands in docs/experiments/essays.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from detect_ai import metrics, model
from detect_ai.backends.torch import autocast, log_odds, model_inputs
from detect_ai.batches import collate, plan_scoring, plan_steps
from detect_ai.config import load_config
from detect_ai.conformal import conformal_threshold
from detect_ai.learner import lr_share
from detect_ai.text import normalise
from detect_ai.tokenizer import Tokenizer
from detect_ai.windows import cut, document_scores, one_each, span_each

OUT_OF_DOMAIN = {
    "detectrl_clean": "dev_ood/detectrl_clean.parquet",
    "detectrl_attacks": "dev_ood/detectrl_attacks.parquet",
    "m4": "dev_ood/m4*.parquet",
    "nonnative": "dev_ood/nonnative*.parquet",
}


def main() -> None:
    """Train, judge, print."""
    options = arguments()
    torch.manual_seed(options.seed)
    sizes = [f"model.window={options.window}", f"model.stride={options.stride}", f"model.pooling={options.pooling}"]
    config = load_config(sizes)
    tokenizer = model.load_tokenizer(config.model)
    texts = training_texts(options, tokenizer)
    network = model.build(config.model, options.seed)
    model.freeze(network, options.frozen)
    started = time.perf_counter()
    tokens = train(network, texts, tokenizer, options)
    seconds = time.perf_counter() - started
    figures = judge(network, tokenizer, options)
    print(json.dumps({"options": vars(options), "seconds": round(seconds), "tokens": tokens, **figures}))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--prose", default="", help="folder of examples/human_prose.py: human texts alone")
    parser.add_argument("--documents", type=int, default=8000, help="half essays, half mixed")
    parser.add_argument("--prose-documents", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--spans", type=int, default=0, help="shortest random span in tokens; 0: whole windows")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--stride", type=int, default=192)
    parser.add_argument("--pooling", default="mean", choices=("mean", "encoder"))
    parser.add_argument("--frozen", default="nothing", choices=("nothing", "embeddings", "encoder"))
    parser.add_argument("--balance", action="store_true", help="classes within domains, and sources, weigh alike")
    parser.add_argument("--judged", type=int, default=800, help="texts of each set")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read(options: argparse.Namespace, pattern: str, most: int, tokenizer: Tokenizer) -> pd.DataFrame:
    """At most so many texts of some files, both classes alike where there are both, with their token ids."""
    rows = pd.concat([pd.read_parquet(path) for path in sorted(Path(options.data).glob(pattern))], ignore_index=True)
    each = most // rows["label"].nunique()
    rows = pd.concat(
        [part.sample(min(each, len(part)), random_state=options.seed) for _, part in rows.groupby("label")]
    )
    return rows.assign(ids=tokenizer.encode([normalise(text).text for text in rows["text"]])).reset_index(drop=True)


def training_texts(options: argparse.Namespace, tokenizer: Tokenizer) -> pd.DataFrame:
    """Token ids, labels and weights."""
    half = options.documents // 2
    essays = read(options, "essays/train/*.parquet", half, tokenizer).assign(domain="essays")
    mixed = read(options, "mixed/train/*.parquet", half, tokenizer)
    parts = [essays.assign(weight=1.0), mixed.assign(weight=1.0)]
    if options.balance:
        for part in parts:
            domain, cell = (part.groupby(keys)["label"].transform("size") for keys in (["domain"], ["domain", "label"]))
            part["weight"] = domain / (2 * cell)
        parts[1]["weight"] *= parts[0]["weight"].sum() / parts[1]["weight"].sum()
    if options.prose:
        prose = argparse.Namespace(**{**vars(options), "data": options.prose})
        parts.append(read(prose, "*.parquet", options.prose_documents, tokenizer).assign(weight=1.0))
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(weight=rows["weight"] / rows["weight"].mean())


def train(network: Any, texts: pd.DataFrame, tokenizer: Tokenizer, options: argparse.Namespace) -> int:
    """AdamW with warm-up and linear decay. Returns the tokens that were read."""
    rng = np.random.default_rng(options.seed)
    device, dtype = torch.device("cpu"), model.autocast_dtype("auto", torch.device("cpu"))
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], lr=options.lr, weight_decay=0.01, fused=True
    )
    documents = texts["ids"].tolist()
    labels, weights = texts["label"].to_numpy(np.int64), texts["weight"].to_numpy(np.float32)
    total = options.epochs * math.ceil(len(texts) / options.batch)
    content = options.window - tokenizer.num_special
    done = tokens = 0
    network.train()
    for _ in range(options.epochs):
        if options.spans:
            rows = span_each(documents, content, options.spans, rng)
        else:
            rows = one_each(documents, content, options.stride, rng)
        lengths = np.asarray([len(row) + tokenizer.num_special for row in rows])
        for (chosen,) in plan_steps(lengths, labels, options.batch, options.batch, rng):
            for group in optimizer.param_groups:
                group["lr"] = options.lr * lr_share(done, total, 0.1, "linear")
            batch = collate([rows[i] for i in chosen], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id)
            with autocast(device, dtype):
                logits = network(**model_inputs(batch, device)).logits
            truth, weight = torch.from_numpy(labels[chosen]), torch.from_numpy(weights[chosen])
            losses = torch.nn.functional.cross_entropy(logits.float(), truth, reduction="none")
            ((losses * weight).sum() / weight.sum()).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done, tokens = done + 1, tokens + int(batch.lengths.sum())
    return tokens


def judge(network: Any, tokenizer: Tokenizer, options: argparse.Namespace) -> dict[str, Any]:
    """Figures by set. `fpr` and `tpr` are at a threshold for 1% of the human texts of mixed/val, the harder ones."""
    network.eval()
    device, dtype = torch.device("cpu"), model.autocast_dtype("auto", torch.device("cpu"))

    def scores(rows: pd.DataFrame) -> NDArray[np.float64]:
        windows, owners = cut(rows["ids"].tolist(), options.window - tokenizer.num_special, options.stride)
        found = np.empty(len(windows))
        lengths = np.asarray([len(window) for window in windows])
        for chosen in plan_scoring(lengths, 8192):
            batch = collate([windows[i] for i in chosen], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id)
            with torch.inference_mode(), autocast(device, dtype):
                found[chosen] = log_odds(network(**model_inputs(batch, device)).logits).numpy()
        return document_scores(found, owners, len(rows))

    validation = read(options, "mixed/val/*.parquet", 10**6, tokenizer)
    human = scores(validation)[validation["label"].to_numpy() == 0]
    threshold = conformal_threshold(human, 0.01)
    figures: dict[str, Any] = {}
    for name, pattern in {"essays_val": "essays/val/*.parquet", **OUT_OF_DOMAIN}.items():
        rows = read(options, pattern, options.judged, tokenizer)
        labels, found = rows["label"].to_numpy(), scores(rows)
        figures[name] = {"fpr": round(float((found[labels == 0] >= threshold).mean()), 4)}
        if labels.max() > 0:
            figures[name] |= {
                "auroc": round(metrics.auroc(labels, found), 4),
                "tpr": round(float((found[labels == 1] >= threshold).mean()), 4),
                "tpr_at_fpr_1": round(metrics.tpr_at_fpr(labels, found, 0.01), 4),
            }
    return figures


if __name__ == "__main__":
    main()
