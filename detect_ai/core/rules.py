"""What a configuration may not be: impossible values stop a job before any work."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from detect_ai.core.config import SPLITS, Config, CorpusConfig, SourceConfig
from detect_ai.core.errors import ConfigError
from detect_ai.corpus.presets import PRESETS
from detect_ai.models.backends import BACKENDS
from detect_ai.text.attacks import ATTACKS
from detect_ai.training import search_space

_NAME = "letters, digits, '.', '_' and '-', at most 64"
Rule = tuple[str, Any, bool, str]  # key, value found, whether it holds, what is allowed


def check(config: Config) -> None:
    """Refuse impossible values. Raises ConfigError for the first one found."""
    for key, value, ok, allowed in _rules(config):
        if not ok:
            raise ConfigError(f"config: {key}={value}: expected {allowed}")
    alone = replace(config, sweep=replace(config.sweep, space={}))
    for name in config.sweep.space:
        for value in search_space.ends(config, name):
            check(search_space.apply(alone, {name: value}))


def _rules(c: Config) -> list[Rule]:
    """Every rule as (key, value found, whether it holds, what is allowed)."""
    precisions = ("auto", "bf16", "fp32")
    rules = [
        _one_of("score.precision", c.score.precision, precisions),
        _one_of("serve.precision", c.serve.precision, precisions),
        _one_of("tracking.mode", c.tracking.mode, ("auto", "online", "offline", "disabled")),
        ("storage.root", c.storage.root, bool(c.storage.root.strip()), "a path or a URI such as gs://bucket/folder"),
        ("run", c.run, _is_name(c.run), _NAME),
        ("corpus.name", c.corpus.name, _is_name(c.corpus.name), _NAME),
        _one_of("model.pooling", c.model.pooling, ("encoder", "mean")),
        ("model.window", c.model.window, c.model.window >= 16, "at least 16 tokens"),
        ("model.stride", c.model.stride, 1 <= c.model.stride <= c.model.window - 2, "1 to model.window - 2"),
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
        ("serve.host", c.serve.host, bool(c.serve.host.strip()), "127.0.0.1, or 0.0.0.0 behind a firewall"),
        ("serve.port", c.serve.port, 1 <= c.serve.port <= 65535, "1 to 65535"),
        (
            "calibration.target_fprs",
            c.calibration.target_fprs,
            bool(c.calibration.target_fprs) and all(0 < f < 1 for f in c.calibration.target_fprs),
            "shares between 0 and 1, such as 0.05",
        ),
        (
            "calibration.default_target_fpr",
            c.calibration.default_target_fpr,
            c.calibration.default_target_fpr in c.calibration.target_fprs,
            f"one of calibration.target_fprs ({c.calibration.target_fprs})",
        ),
    ]
    rules += _train_rules(c) + _sweep_rules(c) + _corpus_rules(c.corpus) + _calibration_rules(c)
    return rules + _judging_rules(c) + _export_rules(c) + _range_rules(c)


def _train_rules(c: Config) -> list[Rule]:
    t = c.train
    return [
        _one_of("train.decay", t.decay, ("linear", "cosine")),
        _one_of("train.precision", t.precision, ("auto", "bf16", "fp16", "fp32")),
        ("train.precision", t.precision, t.precision != "fp16" or t.use_gpu, "bf16 or fp32 without train.use_gpu"),
        _one_of("train.frozen", t.frozen, ("nothing", "embeddings", "encoder")),
        _one_of("train.stop_on", t.stop_on, ("auroc", "val_loss")),
        ("train.num_workers", t.num_workers, _are_workers(t.num_workers), "a number, or [fewest, most], at least 1"),
        (
            "train.class_weights",
            t.class_weights,
            len(t.class_weights) == 2 and all(0 < weight < math.inf for weight in t.class_weights),
            "two finite numbers above 0: of human and of AI texts",
        ),
        ("train.batch_size", t.batch_size, t.batch_size >= 1, "at least 1"),
        (
            "train.shortest_span",
            t.shortest_span,
            t.shortest_span <= c.model.window - 2,
            "at most model.window - 2",
        ),
        (
            "train.adversarial",
            t.adversarial,
            not t.adversarial or t.frozen == "nothing",
            "0 unless train.frozen=nothing: it moves the embeddings",
        ),
        (
            "train.compiled_lengths",
            t.compiled_lengths,
            t.compiled_lengths == 0 or (t.compile and 1 <= t.compiled_lengths <= 64),
            "0, or with train.compile=true 1 to 64",
        ),
        (
            "train.microbatch_size",
            t.microbatch_size,
            1 <= t.microbatch_size <= t.batch_size,
            f"1 to train.batch_size ({t.batch_size})",
        ),
    ]


def _are_workers(value: Any) -> bool:
    counts = value if isinstance(value, list) else [value, value]
    return len(counts) == 2 and all(type(n) is int for n in counts) and 1 <= counts[0] <= counts[1]


def _are_ascending(numbers: list[int]) -> bool:
    return all(number > 0 for number in numbers) and numbers == sorted(set(numbers))


def _calibration_rules(c: Config) -> list[Rule]:
    edges, lengths, registers = c.calibration.length_edges, c.calibration.verdict_lengths, c.calibration.registers
    sources = [source for names in registers.values() for source in names]
    return [
        _one_of("calibration.method", c.calibration.method, ("platt", "isotonic")),
        (
            "calibration.length_edges",
            edges,
            _are_ascending(edges),
            "ascending numbers of tokens",
        ),
        (
            "calibration.verdict_lengths",
            lengths,
            _are_ascending(lengths) and (not lengths or set(edges) <= set(lengths)),
            "ascending numbers of tokens, those of calibration.length_edges among them",
        ),
        (
            "calibration.registers",
            registers,
            len(registers) != 1 and all(registers.values()) and len(sources) == len(set(sources)),
            "none, or two or more with sources of their own",
        ),
        ("calibration.min_tpr", c.calibration.min_tpr, 0 < c.calibration.min_tpr < 1, "a share between 0 and 1"),
        (
            "calibration.prevalence",
            c.calibration.prevalence,
            0 < c.calibration.prevalence < 1,
            "a share between 0 and 1",
        ),
    ]


def _judging_rules(c: Config) -> list[Rule]:
    return [
        _one_of("score.format", c.score.format, ("parquet", "jsonl", "csv")),
        _one_of("score.spans", c.score.spans, ("none", "windows", "occlusion")),
        ("score.labels", c.score.labels, set(c.score.labels.values()) <= {0, 1}, "0 (human) or 1 (ai) for each value"),
        ("score.target_fpr", c.score.target_fpr, 0 <= c.score.target_fpr < 1, "a share below 1; 0 for the default"),
        ("evaluation.name", c.evaluation.name, not c.evaluation.name or _is_name(c.evaluation.name), _NAME),
        *(_one_of("evaluation.attacks", attack, tuple(ATTACKS)) for attack in c.evaluation.attacks),
        (
            "evaluation.paraphraser",
            c.evaluation.paraphraser,
            not c.evaluation.paraphraser or Path(c.evaluation.paraphraser).expanduser().is_dir(),
            "a local folder with a sequence-to-sequence model",
        ),
        (
            "evaluation.paraphrase_template",
            c.evaluation.paraphrase_template,
            "{text}" in c.evaluation.paraphrase_template,
            "{text} in it, where the passage goes",
        ),
    ]


def _export_rules(c: Config) -> list[Rule]:
    known = "|".join(BACKENDS)
    form = re.compile(rf"({known})(\+(layers|ffn)-[1-9]\d?)*")
    allowed = f"{', '.join(BACKENDS)}, each also with +layers-N or +ffn-P such as torch+layers-4"
    return [
        *(("export.candidates", each, bool(form.fullmatch(each)), allowed) for each in c.export.candidates),
        ("export.candidates", c.export.candidates, bool(c.export.candidates), "at least one"),
        _one_of("export.split", c.export.split, ("validation", "test")),
    ]


def _sweep_rules(c: Config) -> list[Rule]:
    sweep = c.sweep
    rules = [
        _one_of("sweep.search", sweep.search, ("random", "grid", "optuna")),
        _one_of("sweep.stop", sweep.stop, ("none", "asha", "median")),
        ("sweep.grace", sweep.grace, 1 <= sweep.grace <= max(1, sweep.epochs), f"1 to sweep.epochs ({sweep.epochs})"),
    ]
    for name, given in sweep.space.items():
        key, found = f"sweep.space.{name}", search_space.Dimension.of(given)
        rules += [
            _one_of("sweep.space", name, tuple(search_space.PLACES)),
            (key, given, found is not None, "a list of values, or a range {low: …, high: …, log: …}"),
        ]
        if found and not found.values:
            rules += [
                (key, given, sweep.search != "grid", "a list of values for sweep.search=grid"),
                (key, given, found.low < found.high, "low < high"),
                (key, given, not found.log or found.low > 0, "low above 0, or log: false"),
            ]
    return rules


def _corpus_rules(c: CorpusConfig) -> list[Rule]:
    shares = list(c.split.values())
    rules: list[Rule] = [
        ("corpus.split", sorted(c.split), set(c.split) == set(SPLITS), f"the four splits {', '.join(SPLITS)}"),
        ("corpus.split", c.split, all(0 < s < 1 for s in shares), "shares between 0 and 1"),
        ("corpus.split", c.split, abs(sum(shares) - 1) < 1e-6, "shares that add up to 1"),
        ("corpus.sources", c.sources, bool(c.sources), "at least one source, see configs/corpus/csv.yaml"),
        _one_of("corpus.boilerplate", c.boilerplate, ("keep", "remove", "drop")),
        _one_of("corpus.near_duplicates", c.near_duplicates, ("keep", "group", "drop")),
        _one_of("corpus.contamination", c.contamination, ("keep", "drop")),
        _one_of("corpus.balance", c.balance, ("none", "weight", "drop")),
        ("corpus.language", c.language, bool(re.fullmatch("([a-z]{2,3})?", c.language)), "a code such as en, or empty"),
        ("corpus.similarity", c.similarity, 0.5 <= c.similarity <= 1, "0.5 to 1"),
        _one_of("corpus.holdout.column", c.holdout.column, ("", "domain", "generator", "group")),
        (
            "corpus.holdout.values",
            c.holdout.values,
            bool(c.holdout.column) == bool(c.holdout.values),
            "values of corpus.holdout.column, and none without a column",
        ),
    ]
    rules += [_one_of("corpus.augment", attack, tuple(ATTACKS)) for attack in c.augment]
    for name, sources in (("sources", c.sources), ("against", c.against)):
        for i, source in enumerate(sources):
            rules += _source_rules(f"corpus.{name}[{i}]", source)
    return rules


def _source_rules(key: str, source: SourceConfig) -> list[Rule]:
    has_path = bool(source.path) or source.kind == "sample"
    places = {name for names in source.splits.values() for name in names}
    return [
        _one_of(f"{key}.kind", source.kind, ("csv", "jsonl", "parquet", "folder", "hub", "sample")),
        _one_of(f"{key}.preset", source.preset, ("", *PRESETS)),
        (f"{key}.path", source.path, has_path, "a file or a folder"),
        (f"{key}.labels", source.labels, set(source.labels.values()) <= {0, 1}, "0 (human) or 1 (ai) for each value"),
        (f"{key}.splits", source.splits, places <= set(SPLITS), f"lists of {', '.join(SPLITS)}"),
        (f"{key}.splits", source.splits, all(source.splits.values()), "at least one split for each value"),
        (f"{key}.weight", source.weight, 0 < source.weight < math.inf, "a finite number above 0"),
        (f"{key}.limit", source.limit, source.limit >= 0, "at least 0"),
    ]


def _range_rules(c: Config) -> list[Rule]:
    at_least_one = {
        "storage.keep": c.storage.keep,
        "corpus.shard_rows": c.corpus.shard_rows,
        "corpus.workers": c.corpus.workers,
        "corpus.max_chars": c.corpus.max_chars,
        "train.epochs": c.train.epochs,
        "train.threads_per_worker": c.train.threads_per_worker,
        "train.log_every": c.train.log_every,
        "train.keep_checkpoints": c.train.keep_checkpoints,
        "sweep.trials": c.sweep.trials,
        "sweep.epochs": c.sweep.epochs,
        "score.workers": c.score.workers,
        "score.threads_per_worker": c.score.threads_per_worker,
        "score.batch_size": c.score.batch_size,
        "evaluation.attack_texts": c.evaluation.attack_texts,
        "export.texts": c.export.texts,
        "export.rounds": c.export.rounds,
        "serve.target_ongoing_requests": c.serve.target_ongoing_requests,
        "serve.max_queued_requests": c.serve.max_queued_requests,
        "serve.batch_tokens": c.serve.batch_tokens,
        "serve.max_texts": c.serve.max_texts,
        "serve.max_chars": c.serve.max_chars,
        "serve.max_tokens": c.serve.max_tokens,
        "serve.max_explain_tokens": c.serve.max_explain_tokens,
        "serve.max_body_bytes": c.serve.max_body_bytes,
        "serve.stream_lines": c.serve.stream_lines,
        "serve.stream_backlog_bytes": c.serve.stream_backlog_bytes,
        "serve.max_files": c.serve.max_files,
        "serve.max_file_bytes": c.serve.max_file_bytes,
        "serve.max_upload_bytes": c.serve.max_upload_bytes,
        "serve.max_pages": c.serve.max_pages,
    }
    above_zero = {
        "train.lr": c.train.lr,
        "train.max_grad_norm": c.train.max_grad_norm,
        "train.cpus_per_worker": c.train.cpus_per_worker,
        "train.attack_weight": c.train.attack_weight,
        "train.resize_every_s": c.train.resize_every_s,
        "score.cpus_per_worker": c.score.cpus_per_worker,
        "serve.cpus_per_replica": c.serve.cpus_per_replica,
        "serve.request_timeout_s": c.serve.request_timeout_s,
        "serve.keys_refresh_s": c.serve.keys_refresh_s,
        "serve.max_wait_s": c.serve.max_wait_s,
        "serve.file_timeout_s": c.serve.file_timeout_s,
        "export.min_speedup": c.export.min_speedup,
    }
    at_least_zero = {
        "seed": c.seed,
        "corpus.min_words": c.corpus.min_words,
        "train.weight_decay": c.train.weight_decay,
        "train.max_steps": c.train.max_steps,
        "train.patience": c.train.patience,
        "train.checkpoint_every": c.train.checkpoint_every,
        "train.max_failures": c.train.max_failures,
        "sweep.max_concurrent": c.sweep.max_concurrent,
        "serve.min_replicas": c.serve.min_replicas,
        "serve.rate_per_minute": c.serve.rate_per_minute,
        "serve.threads_per_replica": c.serve.threads_per_replica,
        "serve.cache_texts": c.serve.cache_texts,
        "serve.upscale_delay_s": c.serve.upscale_delay_s,
        "serve.downscale_delay_s": c.serve.downscale_delay_s,
        "calibration.min_tokens": c.calibration.min_tokens,
        "train.shortest_span": c.train.shortest_span,
        "train.adversarial": c.train.adversarial,
        "model.layers": c.model.layers,
        "evaluation.mixed_documents": c.evaluation.mixed_documents,
        "evaluation.bootstrap": c.evaluation.bootstrap,
        "evaluation.worst": c.evaluation.worst,
    }
    shares = {
        "train.warmup": c.train.warmup,
        "train.label_smoothing": c.train.label_smoothing,
        "corpus.augment_share": c.corpus.augment_share,
        "model.dropout": c.model.dropout,
        "model.attention_dropout": c.model.attention_dropout,
    }
    closed = {
        "serve.canary_share": c.serve.canary_share,
        "gate.min_auroc": c.gate.min_auroc,
        "gate.max_auroc_drop": c.gate.max_auroc_drop,
        "export.max_auroc_change": c.export.max_auroc_change,
        "export.max_tpr_drop": c.export.max_tpr_drop,
    }
    return [
        *((k, v, v >= 1, "at least 1") for k, v in at_least_one.items()),
        *((k, v, 0 < v < math.inf, "a finite number above 0") for k, v in above_zero.items()),
        *((k, v, 0 <= v < math.inf, "a finite number, at least 0") for k, v in at_least_zero.items()),
        *((k, v, 0 <= v < 1, "at least 0 and below 1") for k, v in shares.items()),
        *((k, v, 0 <= v <= 1, "0 to 1") for k, v in closed.items()),
    ]


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> Rule:
    return key, value, value in allowed, "one of " + ", ".join(allowed)


def _is_name(value: str) -> bool:
    return 0 < len(value) <= 64 and all(ch.isalnum() or ch in "._-" for ch in value) and value[0].isalnum()
