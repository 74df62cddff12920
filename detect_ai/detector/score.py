"""The stage `score`: judge any texts with Ray Data, detectors in actors, and write the verdicts out."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config, ScoreConfig
from detect_ai.core.errors import ConfigError, CorpusError, InputError
from detect_ai.core.job import attempt
from detect_ai.core.storage import Storage
from detect_ai.corpus.shards import parquet, reraise_own_errors
from detect_ai.detector.dataset import SLICES, Part, Text, parts, read
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.scoring import device_of

logger = logging.getLogger(__name__)

TELL_EVERY_S = 10
VERDICT_SCHEMA = pa.schema(
    [
        ("row", pa.string()),  # number of the file and of its row
        ("id", pa.string()),
        ("digest", pa.string()),  # of the text
        ("label", pa.int8()),  # given with the text; null where none is
        *((name, pa.string()) for name in (*SLICES, "group")),
        ("verdict", pa.string()),
        ("probability", pa.float64()),
        ("prevalence", pa.float64()),
        ("score", pa.float64()),  # log-odds
        ("p_value", pa.float64()),
        ("target_fpr", pa.float64()),
        ("threshold", pa.float64()),
        ("reasons", pa.list_(pa.string())),
        ("compared_with", pa.string()),
        ("num_compared", pa.int32()),
        ("fpr_upper_bound", pa.float64()),
        ("tampering", pa.string()),  # JSON
        ("num_tokens", pa.int32()),
        ("num_windows", pa.int32()),
        ("verdicts", pa.string()),  # JSON: by target FPR
        ("spans", pa.string()),  # JSON
        ("ai_fraction", pa.float64()),
        ("text", pa.string()),
        ("model_version", pa.string()),
    ]
)
FILE_ROWS, FILE_CHARS = 4096, 32 << 20  # of a file of verdicts: rows, characters of their texts
UNFINISHED = "_unfinished"  # a file beside those of verdicts, as long as more of them are written
_JSON = ("tampering", "verdicts", "spans")


@dataclass(frozen=True)
class Destination:
    """A folder of files of verdicts."""

    storage: Storage
    key: str
    format: str

    def begin(self) -> None:
        """Mark the folder as unfinished. Raises ConfigError when it holds something."""
        where = self.storage.uri(self.key)
        if self.storage.filesystem.get_file_info(self.storage.path(self.key)).is_file:
            raise ConfigError(f"score.out={where}: expected a folder, found a file")
        if self.storage.list(self.key):
            raise ConfigError(f"score.out={where}: it holds files already: name another folder, or delete it")
        self.storage.write_bytes(f"{self.key}/{UNFINISHED}", b"")

    def write(self, name: str, rows: list[dict[str, Any]]) -> bool:
        """Write a file whole or not at all. False where the folder is given up: nothing is written then."""
        table = pa.Table.from_pylist(rows, schema=VERDICT_SCHEMA)
        data = _encoded(table, self.format)
        if not self.storage.exists(f"{self.key}/{UNFINISHED}"):
            return False
        self.storage.write_bytes(f"{self.key}/{name}.{self.format}", data)
        return True

    def finish(self) -> None:
        """The folder is whole."""
        self.storage.delete(f"{self.key}/{UNFINISHED}")


def _encoded(table: pa.Table, kind: str) -> bytes:
    if kind == "parquet":
        return parquet(table, table.schema)
    if kind == "jsonl":
        return "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()
    reasons = pa.array([";".join(found) for found in table["reasons"].to_pylist()], pa.string())
    table = table.set_column(table.column_names.index("reasons"), "reasons", reasons)
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    return bytes(sink.getvalue())


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what is null, nothing in it JSON within JSON."""
    return {name: json.loads(v) if name in _JSON else v for name, v in row.items() if v is not None}


class JudgePart:
    """An actor that holds a detector, judges the texts of a part and writes their verdicts.

    Args:
        root: the storage root of the bundle.
        key: of its folder there.
        config: how to score.
        out: (storage root, key) of the folder for the verdicts.
    """

    def __init__(self, root: str, key: str, config: ScoreConfig, out: tuple[str, str]) -> None:
        import torch

        torch.set_num_threads(config.threads_per_worker)
        with Storage(root).local_folder(key) as folder:
            self._detector = Detector.load(folder, device=device_of(config), precision=config.precision)
        self._config = config
        self._out = Destination(Storage(out[0]), out[1], config.format)

    def __call__(self, item: pa.Table) -> Iterator[pa.Table]:
        """Rows `judged` and `skipped` for each batch of texts."""
        part: Part = pickle.loads(item["part"][0].as_py())  # noqa: S301 - made by the driver
        rows: list[dict[str, Any]] = []
        written = chars = 0
        for texts, skipped in read(part):
            rows += self.judge(texts)
            chars += sum(len(text.text) for text in texts)
            if len(rows) >= FILE_ROWS or chars >= FILE_CHARS:
                if not self._write(part, written, rows):
                    return
                written, rows, chars = written + 1, [], 0
            yield pa.table({"judged": [len(texts)], "skipped": [skipped]})
        if rows:
            self._write(part, written, rows)

    def _write(self, part: Part, number: int, rows: list[dict[str, Any]]) -> bool:
        return self._out.write(f"{part.number:05d}-{part.share:03d}-{number:05d}", rows)

    def judge(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """Rows of `VERDICT_SCHEMA`."""
        detector, config = self._detector, self._config
        target = detector.check_target(config.target_fpr or None)
        documents = detector.read([text.text for text in texts])
        scores = detector.score([document.input_ids for document in documents])
        if not np.isfinite(scores).all():
            odd = np.flatnonzero(~np.isfinite(scores))
            raise InputError(
                f"bundle {detector.version}: the score of {len(odd)} of {len(texts)} texts is not finite, first of row "
                f"{texts[odd[0]].row}: its weights are damaged, or score.precision={config.precision} overflows: try "
                f"score.precision=fp32"
            )
        rows = []
        for text, document, score in zip(texts, documents, scores, strict=True):
            found = detector.spans(document, config.spans) if config.spans != "none" else None
            verdicts = dict(
                zip(detector.targets, detector.verdicts(document, score, found, detector.targets), strict=True)
            )
            verdict = verdicts[target]
            rows.append(
                {
                    **verdict.model_dump(mode="json", exclude={"label", "spans", "tampering"}),
                    **text.values,
                    "row": text.row,
                    "id": text.id,
                    "digest": text.digest,
                    "label": text.label,
                    "verdict": verdict.label.value,
                    "score": float(score),
                    "tampering": json.dumps(verdict.tampering),
                    "verdicts": json.dumps({repr(t): v.label.value for t, v in verdicts.items()}),
                    "spans": None if found is None else json.dumps([span.model_dump() for span in found]),
                    "text": text.text if config.keep_text else None,
                }
            )
        return rows


@dataclass(frozen=True)
class Judged:
    """Where verdicts lie, and how many there are."""

    out: Destination
    judged: int
    skipped: int
    seconds: float


def judge(data: str, where: tuple[Storage, str], config: ScoreConfig, out: tuple[Storage, str]) -> Judged:
    """Judge every text of a file or folder, and write the verdicts as files of a folder.

    Memory does not grow with the data: an actor reads, judges and writes a few hundred texts at a time.

    Args:
        data: a path or a URI.
        where: storage and key of the bundle.
        config: workers, precision, columns, form of the output.
        out: storage and key of a folder that does not exist yet, or is empty.

    Raises:
        CorpusError: the data cannot be read.
        ConfigError: the folder for the verdicts holds files.
    """
    _check_bundle(where, config)
    work = parts(data, config, shares=config.workers)
    place = Destination(*out, config.format)
    place.begin()
    with place.storage.whole(place.key):
        ray_runtime.connect()
        gpus = config.workers if config.use_gpu else 0
        needed = config.workers * config.cpus_per_worker
        ray_runtime.require_resources(
            f"scoring ({config.workers} workers x {config.cpus_per_worker:g} CPUs)", needed, gpus
        )
        started = time.perf_counter()
        judged, skipped = _counted(work, where, config, place)
        if not judged:
            raise CorpusError(f"data={data}: {skipped} rows, none with a text")
        place.finish()
    return Judged(place, judged, skipped, time.perf_counter() - started)


def _counted(work: list[Part], where: tuple[Storage, str], config: ScoreConfig, out: Destination) -> tuple[int, int]:
    """Judge the parts; how many texts were judged, and how many rows had none."""
    import ray

    items = ray.data.from_items([{"part": pickle.dumps(part)} for part in work], override_num_blocks=len(work))
    rows = items.map_batches(
        JudgePart,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(config.workers, len(work))),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
        fn_constructor_kwargs={
            "root": where[0].root,
            "key": where[1],
            "config": config,
            "out": (out.storage.root, out.key),
        },
    )
    rows.context.target_max_block_size = 1  # each batch's count comes out when it is judged
    rows.context.enable_progress_bars = False
    judged = skipped = 0
    started = told = time.perf_counter()
    with reraise_own_errors():
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            judged += int(pc.sum(batch["judged"]).as_py() or 0)
            skipped += int(pc.sum(batch["skipped"]).as_py() or 0)
            if time.perf_counter() - told > TELL_EVERY_S:
                told = time.perf_counter()
                logger.info("%d texts judged, %.0f a second", judged, judged / (told - started))
    return judged, skipped


def _check_bundle(where: tuple[Storage, str], config: ScoreConfig) -> None:
    """Raise InputError when the bundle has no threshold for the target, BundleError when it is damaged."""
    targets = sorted(spec_of(*where).calibration.thresholds)
    if config.target_fpr and config.target_fpr not in targets:
        allowed = ", ".join(f"{target:g}" for target in targets)
        raise ConfigError(f"score.target_fpr={config.target_fpr:g}: this bundle has thresholds for {allowed}")


def score(config: Config, storage: Storage) -> dict[str, Any]:
    """Judge every text of `data` by `bundle` (the champion when none is named), and write the verdicts."""
    if not config.data:
        raise ConfigError("data=: expected a file or folder of Parquet, CSV or JSON lines with a column of texts")
    where = Registry(storage).locate(config.bundle)
    own = storage, f"runs/{config.run}/{attempt('scores')}"
    out = Storage.around(config.score.out) if config.score.out else own
    judged = judge(config.data, where, config.score, out)
    if not config.score.out:
        storage.prune(f"runs/{config.run}", "scores-", config.storage.keep)
    return {
        "out": judged.out.storage.uri(judged.out.key),
        "texts": judged.judged,
        "skipped": judged.skipped,
        "texts_per_second": round(judged.judged / judged.seconds, 1),
        "bundle": where[0].uri(where[1]),
    }
