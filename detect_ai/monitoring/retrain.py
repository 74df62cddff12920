"""The stage `retrain`: collect texts to train on next, as sources of a corpus.

- *Hard negatives*: the texts of a large human corpus that the detector scores highest, found with Ray Data.
- *Mirrors*: for each hard negative, an AI text of the same topic, length and style. From human texts without AI
  counterparts a detector learns that their topics are human (docs/experiments/log/2026-11-essays.md).
- *Audited texts*: texts of the random audit that people have labelled, if the service kept their text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from detect_ai.core.config import Config, SourceConfig
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage, parquet
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.registry import Registry
from detect_ai.detector.score import score_in_memory
from detect_ai.monitoring import log_files
from detect_ai.monitoring.feedback import Feedback
from detect_ai.monitoring.mirrors import mirrors
from detect_ai.schemas import Label

COLUMNS = ("id", "text", "label", "group", "domain", "generator")
SCHEMA = pa.schema([(name, pa.int64() if name == "label" else pa.string()) for name in COLUMNS])
# The texts are chosen by score, so they would bias thresholds and error rates.
TRAINING_ONLY = {"splits": {"*": ["train", "validation"]}}


def collect(config: Config, storage: Storage) -> dict[str, Any]:
    """Write the new texts under `runs/<run>/retrain/`. Returns their numbers and the `sources` for a corpus.

    The detector is the champion. Raises ConfigError if no input is configured, InputError if nothing is found.
    """
    wanted = config.retrain
    if not (wanted.humans or wanted.audited):
        raise ConfigError("retrain.humans=: expected a file or folder of human texts, or retrain.audited=true")
    key = f"runs/{config.run}/retrain"  # always the same, so that the same texts give the same corpus
    rows = {"hard_negatives": hard_negatives(config, storage) if wanted.humans else []}
    if wanted.generator != "none":
        made = mirrors(rows["hard_negatives"], wanted, config.score, storage, f"runs/{config.run}/mirrors")
        rows["mirrors"] = [_row(label=1, **mirror) for mirror in made]
    if wanted.audited:
        rows["audited"] = audited(config, storage)
    sources = []
    for name, own in rows.items():
        if own:
            file = f"{key}/{name}.parquet"
            storage.write_bytes(file, parquet(pa.Table.from_pylist(own, SCHEMA)))
            columns = {column: column for column in ("id", "group", "domain", "generator")}
            splits = {} if name == "audited" else TRAINING_ONLY
            sources.append({"kind": "parquet", "path": storage.uri(file), "name": name, **columns, **splits})
    return {"numbers": {name: len(own) for name, own in rows.items()}, "sources": sources}


def with_sources(config: Config, sources: Sequence[dict[str, Any]]) -> Config:
    """A configuration whose corpus also has these sources."""
    added = [SourceConfig(**source) for source in sources]
    corpus = config.corpus.model_copy(update={"sources": [*config.corpus.sources, *added]})
    return config.model_copy(update={"corpus": corpus})


def hard_negatives(config: Config, storage: Storage) -> list[dict[str, Any]]:
    """The human texts with the highest scores, at most `retrain.hard_negatives`, in scope and long enough.

    Raises InputError if there are none.
    """
    wanted = config.retrain
    scored = score_in_memory(wanted.humans, Registry(storage).resolve(""), config.score)
    chosen = set(scored[scored["reason"] == ""].nlargest(wanted.hard_negatives, "score")["row"])
    if not chosen:
        raise InputError(
            f"retrain.humans={wanted.humans}: expected texts in scope and long enough for a verdict, found none"
        )
    rows = [
        _row(text.text, 0, text.values["group"], text.values["domain"] or wanted.domain)
        for text in texts_of(wanted.humans, config.score)
        if text.row in chosen
    ]
    return list({row["id"]: row for row in rows}.values())


def audited(config: Config, storage: Storage) -> list[dict[str, Any]]:
    """Audited texts with a label that no key contradicts. Raises InputError if there are no texts or no labels."""
    texts = log_files.read(storage, "texts", ("request_id", "index", "text")).to_pandas()
    if texts.empty:
        raise InputError("retrain.audited=true: the service kept no texts; serve with monitoring.text_days above 0")
    labels = Feedback(storage, config.monitoring).audited_texts().dropna(subset="truth")
    joined = labels.merge(texts, on=["request_id", "index"])
    if joined.empty:
        raise InputError(
            "retrain.audited=true: no audited text has a label that all keys agree on; jobs/feedback.py lists those "
            "to label, /v1/feedback takes labels"
        )
    found = [(text, int(truth == Label.AI.value)) for text, truth in zip(joined["text"], joined["truth"], strict=True)]
    return [_row(text, label, "", config.retrain.domain, "unknown" if label else "") for text, label in found]


def _row(text: str, label: int, group: str, domain: str, generator: str = "") -> dict[str, Any]:
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
    return dict(zip(COLUMNS, (digest, text, label, group or digest, domain, generator), strict=True))
