"""An evaluation task: a bundle, the texts that it is evaluated on, and texts that the evaluation generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from detect_ai.core.config import Config, ScoreConfig
from detect_ai.core.storage import Storage, parquet
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.dataset import require_labels
from detect_ai.detector.score import score_texts
from detect_ai.detector.verdict_table import Verdicts

# Metrics of probabilities assume the prevalence in the calibration.
FOR_METRICS: dict[str, Any] = {"format": "parquet", "prevalence": None}
# For files that we write; `score.columns` and `score.labels` describe a user's file.
OUR_COLUMNS: dict[str, Any] = {"columns": {}, "labels": {}}


def score_labelled(
    data: str, bundle: tuple[Storage, str], config: ScoreConfig, out: tuple[Storage, str]
) -> tuple[Verdicts, dict[str, int]]:
    """Verdicts on the labelled texts of a file or folder, and the numbers of skipped rows by reason."""
    require_labels(data, config)
    counts = score_texts(data, bundle, config.model_copy(update=FOR_METRICS), out)
    verdicts = Verdicts.read(*out)
    skipped = {"no_text": int(counts["skipped"]), "no_label": int((~verdicts.labelled).sum())}
    return verdicts[verdicts.labelled], {reason: count for reason, count in skipped.items() if count}


@dataclass(frozen=True)
class EvalTask:
    """A bundle and the texts that it is evaluated on."""

    config: Config
    bundle: tuple[Storage, str]  # storage and key
    spec: DetectorSpec
    data: str  # path or URI: `config.data`, else the test split of the corpus
    name: str  # of the data, for results
    corpus: Corpus | None  # the corpus that the bundle was trained on, if storage has it
    out: tuple[Storage, str]  # storage and key of the folder for results

    def score_generated(self, rows: list[tuple[str, str, str]], spans: str = "none") -> Verdicts:
        """Score generated texts, given as (id, text, attack). They are not kept. `spans` is as in `score.spans`."""
        storage, key = self.out[0], f"{self.out[1]}/generated"
        try:
            ids, texts, attacks = map(list, zip(*rows, strict=True))
            table = pa.table({"id": ids, "text": texts, "attack": attacks})
            storage.write_bytes(f"{key}/texts/texts.parquet", parquet(table))
            scoring = self.config.score.model_copy(update={"spans": spans, **OUR_COLUMNS, **FOR_METRICS})
            score_texts(storage.uri(f"{key}/texts"), self.bundle, scoring, (storage, f"{key}/verdicts"))
            return Verdicts.read(storage, f"{key}/verdicts")
        finally:
            storage.delete(key)
