"""The encoder with a classification head: find, build, save, load. Safetensors only; never runs remote code."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect_ai.core.config import ModelConfig
from detect_ai.core.errors import BundleError, ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from detect_ai.models.tokenizer import Tokenizer

ID2LABEL = {0: "human", 1: "ai"}
_SAFE: Any = {"use_safetensors": True, "trust_remote_code": False}
_DROPOUT = ("hidden_dropout_prob", "classifier_dropout", "dropout", "seq_classif_dropout", "embd_pdrop", "resid_pdrop")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def resolve(config: ModelConfig) -> tuple[str, str | None]:
    """Location of the weights: a local directory, or a hub id with its revision.

    Raises ConfigError for a missing package or directory, an unpinned hub id, or weights with another `model.sha256`.
    """
    path = config.path
    if path.startswith("package:"):
        package, _, inner = path.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(package)  # does not import the package
        except (ImportError, ValueError):  # a dotted name, an empty name
            spec = None
        if spec is None or spec.origin is None:
            raise ConfigError(f"model.path={path}: no package '{package}': pip install 'detect-ai[sample]'")
        path = str(Path(spec.origin).parent / inner)
    if not Path(path).expanduser().is_dir():
        if not re.fullmatch("[0-9a-f]{40}", config.revision) or path.count("/") > 1 or path.startswith((".", "/", "~")):
            raise ConfigError(
                f"model.path={config.path}: expected package:…, an existing directory, or a hub id with a commit of "
                "40 hex digits as model.revision"
            )
        return path, config.revision
    folder = Path(path).expanduser()
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"model.path={config.path}: expected model.safetensors in it; pickled weights are refused")
    if config.sha256:
        with weights.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != config.sha256:
            raise ConfigError(f"model.path={config.path}: the weights have sha256 {actual}, expected {config.sha256}")
    return str(folder), None


def build(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The pretrained encoder with a new two-class head, initialised from the seed.

    Raises ConfigError as `resolve`, and for an architecture unknown to transformers, or too few positions or layers.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    from detect_ai.models.pooling import MeanPooledClassifier, MeanPooledConfig

    path, revision = resolve(config)
    with _as_config_errors(config):
        hf_config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    dropout = dict.fromkeys(_DROPOUT, config.dropout) | dict.fromkeys(_ATTENTION_DROPOUT, 0.0)  # slow in attention
    hf_config.update({name: rate for name, rate in dropout.items() if hasattr(hf_config, name)})
    if config.layers:
        available = getattr(hf_config, "num_hidden_layers", 0)
        if config.layers > available:
            raise ConfigError(f"model.layers={config.layers}: expected at most {available}, those of {config.path}")
        hf_config.num_hidden_layers = config.layers
        if getattr(hf_config, "layer_types", None):  # for encoders whose layers differ
            hf_config.layer_types = hf_config.layer_types[: config.layers]
    labels: Any = {"id2label": ID2LABEL, "label2id": {label: i for i, label in ID2LABEL.items()}}
    mean = config.pooling == "mean"
    if not mean:
        hf_config.update({"num_labels": len(ID2LABEL), **labels})
    torch.manual_seed(seed)
    kind: Any = AutoModel if mean else AutoModelForSequenceClassification
    with _quiet(), _as_config_errors(config):
        options = _SAFE | {"revision": revision, "dtype": torch.float32}
        model: PreTrainedModel = kind.from_pretrained(path, config=hf_config, **options)
    if mean:
        hf_config.name_or_path = ""  # otherwise a local path would be saved
        model = MeanPooledClassifier(MeanPooledConfig(encoder=hf_config, **labels), model)
    if positions := getattr(model.base_model.config, "max_position_embeddings", None):
        tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
        # RoBERTa and similar models count positions from after the padding index: 514 positions hold 512 tokens.
        padding = [getattr(table, "padding_idx", None) for table in tables]
        positions -= max((index + 1 for index in padding if index is not None), default=0)
        if config.window > positions:
            raise ConfigError(f"model.window={config.window}: expected at most {positions}, as {config.path} has")
    _expand_masks(model)
    return model


def _expand_masks(model: PreTrainedModel) -> None:
    """Expand attention masks to 4-D before the encoder: transformers' own check of a mask forces a GPU sync.

    Only for BERT and DistilBERT, where every layer uses the same mask.
    """
    encoder: Any = model.base_model
    if encoder.config.model_type in ("bert", "distilbert") and encoder.config._attn_implementation == "sdpa":
        encoder.register_forward_pre_hook(_expand_mask, with_kwargs=True)


def _expand_mask(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    mask = kwargs.get("attention_mask")
    return args, kwargs if mask is None or mask.ndim != 2 else kwargs | {"attention_mask": mask[:, None, None].bool()}


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The tokenizer that belongs to the encoder. Raises ConfigError."""
    from detect_ai.models.tokenizer import Tokenizer

    path, revision = resolve(config)
    with _as_config_errors(config):
        return Tokenizer.from_pretrained(path, revision)


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into a folder."""
    with _quiet():
        model.save_pretrained(folder)


def load(folder: Path) -> PreTrainedModel:
    """Load a model written by `save`, strictly, in fp32 and evaluation mode.

    Raises BundleError if the weights lack a tensor, or contain one that the architecture does not have.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    import detect_ai.models.pooling  # noqa: F401  # registers its architecture

    try:
        with _quiet():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, **_SAFE
            )
    except Exception as error:
        raise BundleError(f"{folder}: expected a readable config.json and model.safetensors: {error}") from error
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if problems:
        raise BundleError(f"{folder}: the weights do not fit the architecture: {problems}")
    _expand_masks(model)
    loaded: PreTrainedModel = model.eval()
    return loaded


@contextmanager
def _as_config_errors(config: ModelConfig) -> Iterator[None]:
    """Convert transformers' errors about an encoder to ConfigError, without its advice to run remote code."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"model.path={config.path}: expected an encoder in the hub's format: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Prevent transformers from showing a progress bar and reporting the new head as a problem."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of a forward pass: None is fp32; `auto` uses bf16 if the hardware supports it."""
    import torch

    if precision == "bf16" or (precision == "auto" and has_bf16(device)):
        return torch.bfloat16
    return None


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 run in hardware."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
