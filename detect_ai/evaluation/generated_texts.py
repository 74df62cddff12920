"""Predictions for texts that an evaluation generates: attacked texts, mixed documents. Nothing of them is kept."""

from __future__ import annotations

import pyarrow as pa

from detect_ai.core.config import ScoreConfig
from detect_ai.core.storage import Storage
from detect_ai.corpus.shards import parquet
from detect_ai.detector.score import score_texts
from detect_ai.detector.verdict_table import Verdicts

Place = tuple[Storage, str]


def score_generated(
    config: ScoreConfig, bundle: Place, scratch: Place, rows: list[tuple[str, str, str]], spans: str = "none"
) -> Verdicts:
    """Score texts by a bundle; the folder is deleted again.

    Args:
        config: workers and precision.
        bundle: storage and key.
        scratch: storage and key of a folder that does not exist.
        rows: id, text and attack of each text.
        spans: scores of sentences, as `score.spans`.
    """
    storage, key = scratch
    try:
        columns = zip(*rows, strict=True)
        table = pa.table(dict(zip(("id", "text", "attack"), map(list, columns), strict=True)))
        storage.write_bytes(f"{key}/texts/texts.parquet", parquet(table, table.schema))
        plain = config.model_copy(
            update={"columns": {}, "labels": {}, "spans": spans, "keep_text": False, "format": "parquet"}
        )
        score_texts(storage.uri(f"{key}/texts"), bundle, plain, (storage, f"{key}/verdicts"))
        return Verdicts.read(storage, f"{key}/verdicts")
    finally:
        storage.delete(key)
