"""Corpora and models of the training benchmarks."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))
WINDOW, STRIDE, BATCH, MICROBATCH, LR = 512, 384, 16, 4, 1e-4
MODELS = ("minilm", "distilbert")


def prepared(
    scratch: Path, name: str, path: str | None, documents: int, gpu: bool = False, words: int | None = None
) -> dict[str, Any]:
    """A tokenised corpus with this number of training documents, and a model; the arms' settings as plain values.

    A GPU processes a batch of 64 at once, two cores one of 16 in four parts. `words` truncates texts: short ones are
    enough where only losses are compared.
    """
    batch, microbatch = (64, 64) if gpu else (BATCH, MICROBATCH)
    validation = 0.2 if words else 0.05  # fraction of the documents
    folder = scratch / (f"{name}-{words}" if words else name)
    folder.mkdir()
    encoder = ["model=minilm"]
    if name == "distilbert":
        encoder = [f"model.path={random_distilbert(folder / 'weights')}", "model.sha256="]
    rows = texts(path, round(documents / 0.7))
    rows["text"] = [" ".join(text.split()[:words]) if words else text for text in rows["text"]]
    rows.to_csv(folder / "texts.csv", index=False)
    # More epochs if there are few texts, such as the sample's on a GPU.
    epochs = 2 if words else max(2, math.ceil(documents / (0.7 * len(rows))))
    overrides = [
        *encoder,
        *("model.pooling=encoder", "train.shortest_span=0"),  # as in transformers
        *(f"model.window={WINDOW}", f"model.stride={STRIDE}", f"storage.root={folder / 'store'}"),
        *("corpus=csv", f"corpus.sources.0.path={folder / 'texts.csv'}", "corpus.min_words=1"),
        f"corpus.split={{train: 0.7, validation: {validation}, calibration: 0.05, test: {0.25 - validation:.2f}}}",
        *(
            f"train.batch_size={batch}",
            f"train.microbatch_size={microbatch}",
            f"train.lr={LR}",
            f"train.epochs={epochs}",
        ),
        *("tracking.mode=disabled", f"train.use_gpu={str(gpu).lower()}"),
    ]
    subprocess.run([sys.executable, "jobs/prepare.py", *overrides], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    return {"name": name, "overrides": overrides, "gpu": gpu}


def texts(path: str | None, count: int) -> Any:
    """Labelled texts, both classes alike, in an order drawn from a seed."""
    import pandas as pd

    if path:
        rows = pd.read_parquet(path, columns=["text", "label"])
    else:
        from detect_ai.core.config import SourceConfig
        from detect_ai.corpus.sources import list_pieces, read_piece

        source = SourceConfig(kind="sample", name="sample")
        tables = [table for piece in list_pieces(source) for table in read_piece(piece)]
        rows = pd.concat([table.select(["text", "label"]).to_pandas() for table in tables])
    parts = [part.sample(min(len(part), count // 2), random_state=0) for _, part in rows.groupby("label")]
    return pd.concat(parts).sample(frac=1, random_state=0)


def random_distilbert(folder: Path) -> Path:
    """DistilBERT of full size (66M parameters) with random weights and the tokenizer of `minilm`."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    from detect_ai.core.config import ModelConfig
    from detect_ai.models import encoder

    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig()).save_pretrained(folder)
    source, _ = encoder.resolve(ModelConfig())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(source) / name, folder)
    return folder


def settings(job: dict[str, Any], *more: str) -> Any:
    """The configuration of a run."""
    from detect_ai.core.compose import load_config

    return load_config([*job["overrides"], *more])


def corpus_of(config: Any) -> Any:
    """The prepared corpus."""
    from detect_ai.core.job import read_result
    from detect_ai.core.storage import Storage
    from detect_ai.corpus.manifest import Corpus

    storage = Storage(config.storage.root)
    config.storage.root = storage.root
    return Corpus.open(storage, read_result(storage, config.run, "prepare")["corpus"])


def token_ids(config: Any, corpus: Any, split: str) -> list[Any]:
    """Token ids of the documents of a split with their special tokens, truncated to a window."""
    from detect_ai.models.encoder import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    content = WINDOW - tokenizer.num_special
    rows = corpus.read(split, ["input_ids"])["input_ids"].to_pylist()
    return [np.concatenate((tokenizer.prefix, row[:content], tokenizer.suffix)).astype(int) for row in rows]


def our_steps(config: Any, corpus: Any) -> list[Any]:
    """The steps that our training makes on one rank, each a list of microbatches, read without Ray."""
    from detect_ai.training import data
    from detect_ai.training.train import checked_tokenizer
    from detect_ai.training.worker import group_steps

    form = data.WindowFormat.of(checked_tokenizer(config, corpus), config.model)
    microbatches = data.training_plan(corpus, form, config, 1).microbatches()
    return list(islice(group_steps(microbatches, 0, 1), config.train.max_steps or None))


def quartiles(values: ArrayLike) -> list[float]:
    """Lower quartile, median and upper quartile, in three significant digits."""
    return [float(f"{value:.3g}") for value in np.quantile(values, [0.25, 0.5, 0.75])]
