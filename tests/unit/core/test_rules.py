"""What a configuration may not be."""

import re

import pytest

from detect_ai.core.config import Config, CorpusConfig, HoldoutConfig, SourceConfig
from detect_ai.core.errors import ConfigError
from detect_ai.core.rules import _rules, check
from detect_ai.corpus.presets import PRESETS
from detect_ai.text.attacks import ATTACKS
from detect_ai.training.search_space import PLACES

NAME = "letters, digits, '.', '_' and '-', at most 64"
INF, NAN = float("inf"), float("nan")
ABOVE_ZERO, AT_LEAST_ZERO, SHARE = "a finite number above 0", "a finite number, at least 0", "at least 0 and below 1"
AT_LEAST_ONE = [
    "storage.keep",
    "corpus.shard_rows",
    "corpus.workers",
    "corpus.max_chars",
    "train.epochs",
    "train.batch_size",
    "train.threads_per_worker",
    "train.log_every",
    "train.keep_checkpoints",
    "sweep.trials",
    "sweep.epochs",
    "score.workers",
    "score.threads_per_worker",
    "score.batch_size",
    "evaluation.attack_texts",
    "export.texts",
    "export.rounds",
    "serve.target_ongoing_requests",
    "serve.max_queued_requests",
    "serve.batch_tokens",
    "serve.max_texts",
    "serve.max_chars",
    "serve.max_tokens",
    "serve.max_explain_tokens",
    "serve.max_body_bytes",
    "serve.stream_lines",
    "serve.stream_backlog_bytes",
    "serve.max_files",
    "serve.max_file_bytes",
    "serve.max_upload_bytes",
    "serve.max_pages",
]
POSITIVE = [
    "train.lr",
    "train.max_grad_norm",
    "train.cpus_per_worker",
    "score.cpus_per_worker",
    "serve.cpus_per_replica",
    "serve.request_timeout_s",
    "serve.file_timeout_s",
    "serve.keys_refresh_s",
    "serve.max_wait_s",
    "export.min_speedup",
    "train.attack_weight",
    "train.resize_every_s",
]
NATURAL = [
    "seed",
    "corpus.min_words",
    "train.shortest_span",
    "train.adversarial",
    "model.layers",
    "train.max_steps",
    "train.patience",
    "train.checkpoint_every",
    "train.max_failures",
    "sweep.max_concurrent",
    "serve.rate_per_minute",
    "serve.threads_per_replica",
    "serve.cache_texts",
    "serve.upscale_delay_s",
    "serve.downscale_delay_s",
    "calibration.min_tokens",
    "evaluation.mixed_documents",
    "evaluation.bootstrap",
    "evaluation.worst",
    "serve.min_replicas",
]
PRECISIONS, NAMES = ("score.precision", "serve.precision"), ("run", "corpus.name")
TWO_WEIGHTS = "two finite numbers above 0: of human and of AI texts"
ODD_NAMES = ("../x", ".hidden", "a/b", "x" * 65)
DIMENSION = "a list of values, or a range {low: …, high: …, log: …}"
REGISTERS = "none, or two or more with sources of their own"
SPLIT = {"train": 0.6, "validation": 0.1, "calibration": 0.15, "test": 0.15}
SHARES = ["train.warmup", "train.label_smoothing", "model.dropout", "model.attention_dropout", "corpus.augment_share"]
CLOSED = [
    "serve.canary_share",
    "gate.min_auroc",
    "gate.max_auroc_drop",
    "export.max_auroc_change",
    "export.max_tpr_drop",
]
CANDIDATES = (
    "torch, torch-bf16, torch-compile, onnx, onnx-int8, each also with +layers-N or +ffn-P such as torch+layers-4"
)


def source(**fields):
    return {"corpus.sources": [SourceConfig(kind="sample", **fields)]}


IMPOSSIBLE = [
    *(({key: 0}, f"{key}=0", "at least 1") for key in AT_LEAST_ONE),
    *(({key: odd}, f"{key}={odd}", ABOVE_ZERO) for key in POSITIVE for odd in (0.0, -1.0, NAN, INF)),
    *(({key: -1}, f"{key}=-1", AT_LEAST_ZERO) for key in NATURAL),
    *(({"train.weight_decay": odd}, f"train.weight_decay={odd}", AT_LEAST_ZERO) for odd in (-0.1, NAN, INF)),
    *(({key: odd}, f"{key}={odd}", SHARE) for key in SHARES for odd in (1.0, -0.1, NAN)),
    *(({key: odd}, f"{key}={odd}", "0 to 1") for key in CLOSED for odd in (1.1, -0.1, NAN)),
    *(({key: "fp16"}, f"{key}=fp16", "one of auto, bf16, fp32") for key in PRECISIONS),
    *(({key: name}, f"{key}={name}", NAME) for key in NAMES for name in ("", *ODD_NAMES)),
    *(({"evaluation.name": name}, f"evaluation.name={name}", NAME) for name in ODD_NAMES),
    *(
        ({"train.num_workers": odd}, f"train.num_workers={odd}", "a number, or [fewest, most], at least 1")
        for odd in (0, 1.5, "2", True, [2, 1], [0, 2], [1], [1, 2, 3])
    ),
    *(
        ({"train.class_weights": odd}, f"train.class_weights={odd}", TWO_WEIGHTS)
        for odd in ([1.0], [1.0, 0.0], [1.0, INF], [1.0, 1.0, 1.0])
    ),
    ({"train.precision": "fp8"}, "train.precision=fp8", "one of auto, bf16, fp16, fp32"),
    ({"train.precision": "fp16"}, "train.precision=fp16", "bf16 or fp32 without train.use_gpu"),
    ({"train.frozen": "head"}, "train.frozen=head", "one of nothing, embeddings, encoder"),
    ({"train.stop_on": "loss"}, "train.stop_on=loss", "one of auroc, val_loss"),
    ({"model.pooling": "max"}, "model.pooling=max", "one of encoder, mean"),
    ({"train.decay": "step"}, "train.decay=step", "one of linear, cosine"),
    ({"sweep.search": "loguniform"}, "sweep.search=loguniform", "one of random, grid, optuna"),
    ({"sweep.stop": "early"}, "sweep.stop=early", "one of none, asha, median"),
    ({"sweep.grace": 3}, "sweep.grace=3", "1 to sweep.epochs (2)"),
    ({"tracking.mode": "on"}, "tracking.mode=on", "one of auto, online, offline, disabled"),
    ({"storage.root": " "}, "storage.root= ", "a path or a URI such as gs://bucket/folder"),
    ({"model.window": 15, "model.stride": 8}, "model.window=15", "at least 16 tokens"),
    ({"model.stride": 0}, "model.stride=0", "1 to model.window - 2"),
    ({"model.stride": 255}, "model.stride=255", "1 to model.window - 2"),
    ({"train.shortest_span": 255}, "train.shortest_span=255", "at most model.window - 2"),
    (
        {"train.adversarial": 1.0, "train.frozen": "embeddings"},
        "train.adversarial=1.0",
        "0 unless train.frozen=nothing: it moves the embeddings",
    ),
    ({"train.compiled_lengths": 8}, "train.compiled_lengths=8", "0, or with train.compile=true 1 to 64"),
    *(
        (
            {"train.compile": True, "train.compiled_lengths": odd},
            f"train.compiled_lengths={odd}",
            "0, or with train.compile=true 1 to 64",
        )
        for odd in (-1, 65)
    ),
    ({"train.microbatch_size": 17}, "train.microbatch_size=17", "1 to train.batch_size (16)"),
    ({"train.microbatch_size": 0}, "train.microbatch_size=0", "1 to train.batch_size (16)"),
    (
        {"serve.max_ongoing_requests": 16},
        "serve.max_ongoing_requests=16",
        "more than serve.target_ongoing_requests (16)",
    ),
    ({"serve.min_replicas": 3}, "serve.max_replicas=2", "at least 1 and serve.min_replicas (3)"),
    (
        {"serve.min_replicas": 0, "serve.max_replicas": 0},
        "serve.max_replicas=0",
        "at least 1 and serve.min_replicas (0)",
    ),
    ({"serve.host": ""}, "serve.host=", "127.0.0.1, or 0.0.0.0 behind a firewall"),
    ({"serve.port": 0}, "serve.port=0", "1 to 65535"),
    ({"serve.port": 65536}, "serve.port=65536", "1 to 65535"),
    (
        {"calibration.default_target_fpr": 0.01},
        "calibration.default_target_fpr=0.01",
        "one of calibration.target_fprs ([0.05])",
    ),
    ({"calibration.target_fprs": []}, "calibration.target_fprs=[]", "shares between 0 and 1, such as 0.05"),
    (
        {"calibration.target_fprs": [0.05, 5.0]},
        "calibration.target_fprs=[0.05, 5.0]",
        "shares between 0 and 1, such as 0.05",
    ),
    ({"calibration.method": "beta"}, "calibration.method=beta", "one of platt, isotonic"),
    *(
        ({"calibration.length_edges": edges}, f"calibration.length_edges={edges}", "ascending numbers of tokens")
        for edges in ([0, 64], [-1], [128, 64], [64, 64])
    ),
    *(
        (
            {"calibration.verdict_lengths": lengths, "calibration.length_edges": [128]},
            f"calibration.verdict_lengths={lengths}",
            "ascending numbers of tokens, those of calibration.length_edges among them",
        )
        for lengths in ([0, 128], [128, 64], [64, 256])
    ),
    *(
        ({"calibration.registers": odd}, f"calibration.registers={odd}", REGISTERS)
        for odd in ({"a": ["x"]}, {"a": ["x"], "b": []}, {"a": ["x"], "b": ["y", "x"]}, {"a": ["x", "x"], "b": ["y"]})
    ),
    *(
        ({f"calibration.{name}": odd}, f"calibration.{name}={odd}", "a share between 0 and 1")
        for name in ("min_tpr", "prevalence")
        for odd in (0.0, 1.0, NAN)
    ),
    (
        {"evaluation.paraphraser": "/no/such"},
        "evaluation.paraphraser=/no/such",
        "a local folder with a sequence-to-sequence model",
    ),
    (
        {"evaluation.paraphrase_template": "text"},
        "evaluation.paraphrase_template=text",
        "{text} in it, where the passage goes",
    ),
    ({"score.format": "xlsx"}, "score.format=xlsx", "one of parquet, jsonl, csv"),
    ({"score.spans": "all"}, "score.spans=all", "one of none, windows, occlusion"),
    ({"score.labels": {"x": 2}}, "score.labels={'x': 2}", "0 (human) or 1 (ai) for each value"),
    *(
        ({"score.target_fpr": odd}, f"score.target_fpr={odd}", "a share below 1; 0 for the default")
        for odd in (-0.1, 1.0, NAN)
    ),
    ({"evaluation.attacks": ["homoglyph", "paint"]}, "evaluation.attacks=paint", f"one of {', '.join(ATTACKS)}"),
    ({"sweep.space": {"learning_rate": [1]}}, "sweep.space=learning_rate", f"one of {', '.join(PLACES)}"),
    *(
        ({"sweep.space": {"lr": odd}}, f"sweep.space.lr={odd}", DIMENSION)
        for odd in (1e-4, [], {}, {"low": 1e-5}, {"low": 1e-5, "high": INF}, {"low": 1, "high": 2, "step": 1})
    ),
    ({"sweep.space": {"lr": {"low": 2, "high": 1}}}, "sweep.space.lr={'low': 2, 'high': 1}", "low < high"),
    (
        {"sweep.space": {"lr": {"low": 0.0, "high": 0.5}}},
        "sweep.space.lr={'low': 0.0, 'high': 0.5}",
        "low above 0, or log: false",
    ),
    (
        {"sweep.search": "grid", "sweep.space": {"lr": {"low": 1, "high": 2}}},
        "sweep.space.lr={'low': 1, 'high': 2}",
        "a list of values for sweep.search=grid",
    ),
    # What is tried must be what the key itself may be.
    ({"sweep.space": {"lr": [1e-4, 0.0]}}, "train.lr=0.0", ABOVE_ZERO),
    ({"sweep.space": {"dropout": {"low": 0.1, "high": 1.5}}}, "model.dropout=1.5", SHARE),
    ({"sweep.space": {"frozen": ["nothing", "head"]}}, "train.frozen=head", "one of nothing, embeddings, encoder"),
    (
        {"corpus.split": {"train": 1.0}},
        "corpus.split=['train']",
        "the four splits train, validation, calibration, test",
    ),
    (
        {"corpus.split": SPLIT | {"train": 0.75, "calibration": 0.0}},
        "corpus.split={'train': 0.75, 'validation': 0.1, 'calibration': 0.0, 'test': 0.15}",
        "shares between 0 and 1",
    ),
    (
        {"corpus.split": SPLIT | {"train": 0.5}},
        "corpus.split={'train': 0.5, 'validation': 0.1, 'calibration': 0.15, 'test': 0.15}",
        "shares that add up to 1",
    ),
    ({"corpus.sources": []}, "corpus.sources=[]", "at least one source, see configs/corpus/csv.yaml"),
    (
        {"corpus.sources": [SourceConfig(kind="xls", path="x")]},
        "corpus.sources[0].kind=xls",
        "one of csv, jsonl, parquet, folder, hub, sample",
    ),
    ({"corpus.sources": [SourceConfig()]}, "corpus.sources[0].path=", "a file or a folder"),
    ({"corpus.against": [SourceConfig()]}, "corpus.against[0].path=", "a file or a folder"),
    (source(preset="imdb"), "corpus.sources[0].preset=imdb", f"one of {', '.join(['', *PRESETS])}"),
    (source(labels={"x": 2}), "corpus.sources[0].labels={'x': 2}", "0 (human) or 1 (ai) for each value"),
    (
        source(splits={"dev": ["val"]}),
        "corpus.sources[0].splits={'dev': ['val']}",
        "lists of train, validation, calibration, test",
    ),
    (source(splits={"dev": []}), "corpus.sources[0].splits={'dev': []}", "at least one split for each value"),
    (source(weight=0.0), "corpus.sources[0].weight=0.0", "a finite number above 0"),
    (source(limit=-1), "corpus.sources[0].limit=-1", "at least 0"),
    ({"corpus.boilerplate": "cut"}, "corpus.boilerplate=cut", "one of keep, remove, drop"),
    ({"corpus.near_duplicates": "cut"}, "corpus.near_duplicates=cut", "one of keep, group, drop"),
    ({"corpus.contamination": "cut"}, "corpus.contamination=cut", "one of keep, drop"),
    ({"corpus.balance": "cut"}, "corpus.balance=cut", "one of none, weight, drop"),
    ({"corpus.language": "English"}, "corpus.language=English", "a code such as en, or empty"),
    ({"corpus.similarity": 0.4}, "corpus.similarity=0.4", "0.5 to 1"),
    (
        {"corpus.holdout": HoldoutConfig("label", ["1"])},
        "corpus.holdout.column=label",
        "one of , domain, generator, group",
    ),
    (
        {"corpus.holdout": HoldoutConfig("domain", [])},
        "corpus.holdout.values=[]",
        "values of corpus.holdout.column, and none without a column",
    ),
    *(
        ({"export.candidates": ["onnx-int8", odd]}, f"export.candidates={odd}", CANDIDATES)
        for odd in ("", "tensorrt", "torch+layers", "torch+layers-0", "torch+heads-4", "+ffn-50", "torch+ffn-100")
    ),
    ({"export.candidates": []}, "export.candidates=[]", "at least one"),
    ({"export.split": "calibration"}, "export.split=calibration", "one of validation, test"),
    ({"corpus.augment": ["paint"]}, "corpus.augment=paint", f"one of {', '.join(ATTACKS)}"),
]


def changed(changes):
    """A configuration that was right, with some values changed."""
    config = Config(corpus=CorpusConfig(sources=[SourceConfig(kind="sample")]))
    for key, value in changes.items():
        *groups, name = key.split(".")
        setattr(getattr(config, groups[0]) if groups else config, name, value)
    return config


@pytest.mark.parametrize(("changes", "found", "allowed"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_with_what_is_allowed(changes, found, allowed):
    with pytest.raises(ConfigError) as refused:
        check(changed(changes))
    assert str(refused.value) == f"config: {found}: expected {allowed}"


@pytest.mark.parametrize(
    "changes",
    [
        {"train.shortest_span": 254},
        {"calibration.length_edges": [1, 64]},
        {"calibration.registers": {"a": ["x", "z"], "b": ["y"]}},
        {"score.target_fpr": 0.01},
        {"evaluation.name": "mine-2.csv"},
        {"evaluation.attacks": list(ATTACKS)},
    ],
)
def test_a_value_at_the_edge_of_the_possible_is_taken(changes):
    check(changed(changes))


def test_every_rule_is_broken_once_above():
    given = changed({})
    given.corpus.against, given.corpus.augment = [SourceConfig(kind="sample")], ["homoglyph"]
    given.evaluation.attacks = ["homoglyph"]
    given.sweep.space = {"lr": {"low": 1e-5, "high": 1e-4}}
    rules = [rule for rule in _rules(given) if not rule[0].startswith("corpus.against") or rule[0].endswith(".path")]
    shown = {(found.partition("=")[0], allowed) for _, found, allowed in IMPOSSIBLE}
    # Both lists of sources have the same rules.
    without_figures = {(key, re.sub(r" \(.*\)$", "", allowed)) for key, allowed in shown}
    assert {(key, re.sub(r" \(.*\)$", "", allowed)) for key, _, _, allowed in rules} == without_figures
