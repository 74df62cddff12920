"""Small real things for tests: an encoder in the hub's format, labelled texts, a sealed bundle. Made in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from detect_ai.calibration.calibration import calibrate
from detect_ai.core.config import Config, ModelConfig, SourceConfig
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.detector import Detector
from detect_ai.models import encoder as model
from detect_ai.text.normalize import NORMALISER_VERSION

HUMAN_WORDS = (
    "the",
    "council",
    "bridge",
    "rain",
    "train",
    "market",
    "boat",
    "farmer",
    "window",
    "Tuesday",
    "bread",
    "old",
    "quiet",
    "said",
    "went",
    "near",
)
AI_WORDS = (
    "moreover",
    "landscape",
    "tapestry",
    "delve",
    "robust",
    "ensure",
    "holistic",
    "pivotal",
    "realm",
    "journey",
    "seamless",
    "vital",
    "key",
)
COMMON_WORDS = ("a", "of", "and", "to", "in", "is", "it", "on", "with", "for", "was", "as", "by", "at")


def text(kind: str, rng: random.Random, words: int = 80) -> str:
    """A text of made-up sentences; `kind` is human or ai and shows in the choice of words."""
    pool = (HUMAN_WORDS if kind == "human" else AI_WORDS) + COMMON_WORDS
    drawn = [rng.choice(pool) for _ in range(words)]
    sentences = [" ".join(drawn[i : i + 10]).capitalize() + "." for i in range(0, words, 10)]
    return " ".join(sentences)


def rows(pairs: int, seed: int = 0, low: int = 20, high: int = 120) -> list[dict[str, object]]:
    """Labelled rows, a human and an AI text to a group, of varied length."""
    rng = random.Random(seed)
    return [
        {"text": text(kind, rng, rng.randint(low, high)), "label": label, "group": f"g{i:03d}"}
        for i in range(pairs)
        for label, kind in enumerate(("human", "ai"))
    ]


def write_jsonl(path: Path, data: list[dict[str, object]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return path


def make_encoder(folder: Path, **sizes: int) -> Path:
    """A BERT with random weights and a tokenizer of its own, saved in the hub's format: of 2 layers unless told."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    fast.train_from_iterator([str(row["text"]) for row in rows(50)] + ["abcdefghijklmnopqrstuvwxyz .,!?'\"-"], trainer)
    ends = [("[CLS]", fast.token_to_id("[CLS]")), ("[SEP]", fast.token_to_id("[SEP]"))]
    fast.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64} | sizes
    config = BertConfig(vocab_size=fast.get_vocab_size(), max_position_embeddings=128, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


def config(encoder: Path, root: Path, source: Path | None = None) -> Config:
    """A configuration that works on tiny things."""
    made = Config()
    made.storage.root = str(root)
    made.model = ModelConfig(name="tiny", path=str(encoder), window=64, stride=48)
    if source is not None:
        made.corpus.sources = [SourceConfig(kind="jsonl", path=str(source), name="made", group="group")]
    made.train.batch_size, made.train.microbatch_size, made.train.epochs, made.train.lr = 8, 4, 2, 2e-3
    made.train.precision = "fp32"
    made.calibration.min_tokens = 10
    made.calibration.target_fprs = [0.05, 0.1]
    made.tracking.mode = "disabled"
    return made


def _decided(network: Any) -> Any:
    """Larger weights: as drawn they give every text nearly the same score, and tests see nothing."""
    import torch

    with torch.no_grad():
        for weights in network.parameters():
            if weights.ndim >= 2:
                weights.mul_(8)
    return network


CARD = """# Model card: tiny

> **A demonstration.** It learnt from <b>nothing</b>.

| target | AI texts found |
|---|---|
| 5% | 3.0% |
"""


def make_bundle(folder: Path, encoder: Path, seed: int = 0) -> DetectorSpec:
    """A sealed bundle around an untrained tiny encoder, calibrated on made-up texts (40 human, 40 AI)."""
    made = config(encoder, folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = model.load_tokenizer(made.model)
    model.save(_decided(model.build(made.model, seed)), folder)
    tokenizer.save(folder)
    (folder / bundle.CARD_FILE).write_text(CARD)
    labels = np.tile([0, 1], 40)
    scores = np.random.default_rng(seed).normal(0, 0.1, 80) + labels * 0.1 - 0.05
    spec = DetectorSpec(
        base_model="tiny",
        normaliser_version=NORMALISER_VERSION,
        window=made.model.window,
        stride=made.model.stride,
        pad_id=tokenizer.pad_id,
        calibration=calibrate(labels, scores, [0.05, 0.1]),
        default_target_fpr=0.05,
        min_tokens=10,
        corpus={"name": "made", "fingerprint": "0" * 64, "licences": [], "language": "en"},
        provenance={"model_licence": "", "run": "tiny", "git_revision": "unknown"},
    )
    return bundle.seal(folder, spec)


def make_detector(folder: Path, encoder: Path) -> Detector:
    """A detector on a tiny bundle."""
    make_bundle(folder, encoder)
    return Detector.load(folder)
