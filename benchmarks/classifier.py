"""Model of `benchmarks/serve.py`: `minilm` with a linear head, as a bundle for us and as a folder for its peers.

The head is fitted on one half of the texts and calibrated on the other: this takes seconds, and gives the shapes,
weights and spread of scores on which speed depends. Its quality as a detector is irrelevant.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from material import texts

from detect_ai.calibration.domains import calibrate, whole_documents
from detect_ai.core.compose import load_config
from detect_ai.core.config import CalibrationConfig
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.registry import Registry
from detect_ai.models import backends, encoder
from detect_ai.models.batch import collate, plan_scoring
from detect_ai.release.export import make
from detect_ai.text.normalize import NORMALISER_VERSION, normalise

WINDOW, STRIDE = 512, 384  # the peers, too, read one window of a text; they would truncate more
WORDS = (30, 600)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def prepared(scratch: Path, path: str | None, count: int, precision: str, backend: str) -> dict[str, str]:
    """Texts, a registry whose champion is the classifier, its bundle, and the folder of the peers.

    Args:
        scratch: where all of it is written.
        path: Parquet with columns `text` and `label`; None: the sample.
        count: number of texts, half of each class.
        precision: precision of the bundle, `fp32` or `bf16`.
        backend: backend to which the champion is exported, one of `backends.BACKENDS`; `torch`: the bundle itself.
    """
    import torch

    torch.manual_seed(0)
    config = load_config([f"model.window={WINDOW}", f"model.stride={STRIDE}", "model.pooling=encoder"]).model
    tokenizer = encoder.load_tokenizer(config)
    rows = texts(path, 2 * count)
    rows = rows[rows["text"].str.split().str.len().between(*WORDS)]
    rows = rows.groupby("label").head(count // 2).reset_index(drop=True)
    chosen = [fitting(text, tokenizer) for text in rows["text"]]
    (scratch / "texts.json").write_text(json.dumps(chosen), encoding="utf-8")
    network = encoder.build(config, seed=0).eval()
    scores = fit_head(network, tokenizer, chosen, rows["label"].to_numpy())
    folder = scratch / "bundle"
    folder.mkdir()
    encoder.save(network, folder)
    tokenizer.save(folder, WINDOW)
    half = len(rows) // 2
    scored = whole_documents(rows["label"][half:], scores[half:], WINDOW, "")
    settings = CalibrationConfig(target_fprs=[0.05])
    spec = bundle.DetectorSpec(
        base_model=config.name,
        normaliser_version=NORMALISER_VERSION,
        window=WINDOW,
        stride=STRIDE,
        pad_id=tokenizer.pad_id,
        precision=precision,
        calibration=calibrate(scored, settings, WINDOW),
        default_target_fpr=0.05,
        min_tokens=10,
        corpus={"name": "benchmark", "fingerprint": "", "licences": [], "language": "en"},
        provenance={"run": "benchmark", "config": {"calibration": settings.model_dump()}},
    )
    bundle.write_spec(folder, spec)
    registry = Registry(Storage(str(scratch / "store")))
    champion = registry.add(folder)
    peers = for_peers(scratch / "classifier", folder, Path(encoder.resolve(config)[0]))
    if backend != backends.DEFAULT:
        exported = scratch / backend
        make(backend, folder, exported)
        folder, champion = exported, registry.add(exported)
    registry.set_champion(champion)
    return {
        "texts": str(scratch / "texts.json"),
        "store": str(scratch / "store"),
        "bundle": str(folder),
        "folder": str(peers),
    }


def fitting(text: str, tokenizer: Any) -> str:
    """A text as every arm reads it: normalised and truncated after the last word that fits a window."""
    words = normalise(text).text.split(" ")
    lengths = np.cumsum([len(ids) for ids in tokenizer.encode(words)])
    return " ".join(words[: np.searchsorted(lengths, WINDOW - tokenizer.num_special, side="right")])


def fit_head(network: Any, tokenizer: Any, chosen: list[str], labels: Any) -> Any:
    """Fit the head on the first half of the texts. Returns the log-odds of all."""
    import torch
    from sklearn.linear_model import LogisticRegression

    states = features(network, tokenizer, chosen)
    half = len(chosen) // 2
    head = LogisticRegression(C=100, max_iter=1000).fit(states[:half], labels[:half])
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.zero_()
        network.classifier.weight[1] = torch.tensor(head.coef_[0])
        network.classifier.bias[1] = float(head.intercept_[0])
    return head.decision_function(states)


def features(network: Any, tokenizer: Any, chosen: list[str]) -> Any:
    """Input of the head for each text, shape (texts, width)."""
    import torch

    from detect_ai.models.backends.torch import model_inputs

    rows = tokenizer.encode(chosen)
    states = np.empty((len(rows), network.config.hidden_size))
    with torch.inference_mode():
        for positions in plan_scoring(np.asarray([len(row) + tokenizer.num_special for row in rows]), 4096):
            batch = collate([rows[i] for i in positions], tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id)
            inputs = model_inputs(batch, torch.device("cpu"))
            states[positions] = network.base_model(**inputs).pooler_output.numpy()
    return states


def for_peers(folder: Path, sealed: Path, source: Path) -> Path:
    """The same weights with the tokenizer's own files, as transformers reads them."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(sealed / name, folder)
    for name in TOKENIZER_FILES:
        shutil.copy(source / name, folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "model_max_length": WINDOW}), encoding="utf-8")
    return folder
