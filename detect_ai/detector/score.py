"""Scoring with Ray Data: verdicts of a bundle on any texts (the stage `score`), and raw scores of a corpus split."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detect_ai.core import ray_runtime
from detect_ai.core.config import Config, ScoreConfig
from detect_ai.core.errors import ConfigError, CorpusError, InputError
from detect_ai.core.job import attempt
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.corpus.shards import reraise_own_errors
from detect_ai.corpus.splits import shuffle_key
from detect_ai.detector.bundle import require_device
from detect_ai.detector.dataset import Part, Text, parts, read
from detect_ai.detector.detector import Detector, Document, Scorer, Scores
from detect_ai.detector.list_report import list_report
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.verdict_table import Verdicts, verdict_folder, write_verdicts
from detect_ai.models.style import Style
from detect_ai.reports.render import render
from detect_ai.text.windows import sample_spans_by_length

if TYPE_CHECKING:
    import pandas as pd
    from ray.data import Dataset

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10
BATCH_DOCUMENTS = 64  # of a corpus split, scored together
MAX_SPANNED = 4000  # approximate number of documents of a split whose spans are scored
FILE_ROWS, FILE_CHARS = 4096, 32 << 20  # of a file of verdicts: rows, characters of their texts

Load = Callable[..., Scorer]  # takes a folder with weights and `device`; `Detector.load` for a bundle


def score(config: Config, storage: Storage) -> dict[str, Any]:
    """Score every text of `data` with `bundle` (default: the champion), and write the verdicts and their report."""
    if not config.data:
        raise ConfigError("data=: expected a file or folder of Parquet, CSV or JSON lines with a column of texts")
    bundle = Registry(storage).resolve(config.bundle)
    if config.score.report and config.score.format != "parquet":
        raise ConfigError(f"score.report=true: expected score.format=parquet, found {config.score.format}")
    own = storage, f"runs/{config.run}/{attempt('scores')}"
    out = Storage.around(config.score.out) if config.score.out else own
    counts = score_texts(config.data, bundle, config.score, out)
    if not config.score.out:
        storage.prune(f"runs/{config.run}", "scores-", config.storage.keep)
    result = {"out": out[0].uri(out[1]), "bundle": bundle[0].uri(bundle[1]), **counts}
    if config.score.report:
        report = list_report(Verdicts.read(*out), spec_of(*bundle), config.score.max_false_discoveries)
        key = f"runs/{config.run}/{attempt('list')}"
        storage.write_json(f"{key}/report.json", report)
        storage.write_bytes(f"{key}/report.html", render("list.html.jinja", report=report).encode())
        storage.prune(f"runs/{config.run}", "list-", config.storage.keep)
        result |= {"report": f"{key}/report.html", "flagged": report["flagged"], "prevalence": report["prevalence"]}
    return result


class ScoringActor:
    """A Ray Data actor that loads a scorer from a key under a storage root, and applies `work` to each batch."""

    def __init__(
        self, root: str, key: str, load: Load, work: Callable[..., Iterator[pa.Table]], config: ScoreConfig
    ) -> None:
        import torch

        torch.set_num_threads(config.threads_per_worker)
        self._work = work
        with Storage(root).local_folder(key) as folder:
            self._scorer = load(folder, device="cuda" if config.use_gpu else "cpu")

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """The output tables for a batch."""
        yield from self._work(self._scorer, batch)


def _map(
    rows: Dataset,
    where: tuple[Storage, str],
    load: Load,
    work: Callable[..., Iterator[pa.Table]],
    config: ScoreConfig,
    batch_size: int,
    actors: int,
) -> Dataset:
    """Map a dataset with a pool of `ScoringActor`s."""
    import ray

    storage, key = where
    return rows.map_batches(
        ScoringActor,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if config.use_gpu else 0,
        fn_constructor_args=(storage.root, key, load, work, config),
    )


def _require_workers(config: ScoreConfig, storage: Storage, for_reading: int) -> None:
    """Connect to Ray and require resources for the actors and `for_reading` CPUs. Raises ResourceError."""
    ray_runtime.connect(storage)
    extra = f" + {for_reading}" if for_reading else ""
    ray_runtime.require_resources(
        f"scoring ({config.workers} workers x 1 CPU{extra})",
        config.workers + for_reading,
        config.workers if config.use_gpu else 0,
    )


def score_split(
    corpus: Corpus,
    split: str,
    key: str,
    load: Load,
    config: ScoreConfig,
    lengths: Sequence[int] = (),
    style: Style | None = None,
) -> pd.DataFrame:
    """Score every document of a split of a corpus that was tokenised by the scorer's tokenizer.

    `key` is the folder with the checkpoint or bundle in the corpus's storage; `load` loads a scorer from it. For some
    documents (`MAX_SPANNED`), a span in each range between `lengths` is scored too (`windows.sample_spans_by_length`).
    Returns the columns of `calibration.domains` in the corpus's order, with styles if `style` is given; the spans of a
    document precede it.
    """
    import ray

    storage = corpus.storage
    if config.use_gpu and load == Detector.load:  # on a CPU there is nothing to check that loading does not
        require_device(spec_of(storage, key), "score.use_gpu", config.use_gpu)
    _require_workers(config, storage, for_reading=1)
    paths = [storage.path(corpus.shard_key(shard)) for shard in corpus.shards(split)]
    columns = ["id", "label", "domain", "source", "input_ids"]
    rows = ray.data.read_parquet(paths, filesystem=storage.filesystem).select_columns(columns)
    spanned = MAX_SPANNED / max(1, corpus.num_rows(split))
    work = partial(score_documents, lengths=tuple(lengths), spanned=spanned, style=style)
    scored = _map(rows, (storage, key), load, work, config, BATCH_DOCUMENTS, config.workers)
    ids = corpus.read(split, ["id"])["id"].to_pylist()
    frame: Any = scored.to_pandas().set_index("id").loc[ids].reset_index(drop=True)
    is_whole = frame["is_whole"].to_numpy().astype(np.bool_)
    assert is_whole.sum() == len(ids), f"{len(ids)} documents went in, {is_whole.sum()} came out"
    return frame.assign(is_whole=is_whole, document=np.cumsum(is_whole) - is_whole)


def score_documents(
    scorer: Scorer, batch: pa.Table, lengths: Sequence[int], spanned: float, style: Style | None
) -> Iterator[pa.Table]:
    """Scores of documents; for a fraction `spanned` of them also of a span in every length range.

    The source replaces a missing domain.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "label", "domain", "num_tokens", "is_whole")}
    ids = []
    names, labels, domains, sources = (batch[name].to_pylist() for name in ("id", "label", "domain", "source"))
    rows = zip(names, labels, domains, sources, batch["input_ids"].to_numpy(), strict=True)
    for name, label, domain, source, tokens in rows:
        tokens = np.asarray(tokens, dtype=np.int32)
        # Seed with the id, so that a document has the same spans on every machine.
        key = shuffle_key(0, name)
        ranges = lengths if key < spanned * 2**64 else ()
        spans = sample_spans_by_length(len(tokens), ranges, np.random.default_rng(key))
        ids += [tokens[start:stop] for start, stop in spans]
        columns["id"] += [name] * len(spans)
        columns["label"] += [label] * len(spans)
        columns["domain"] += [domain or source] * len(spans)
        columns["num_tokens"] += [stop - start for start, stop in spans]
        columns["is_whole"] += [False] * (len(spans) - 1) + [True]
    if style:
        columns["style"] = style.vectors(ids).tolist()
    yield pa.table({**columns, "score": pa.array(scorer.score(ids), pa.float64())})


def score_texts(
    data: str, bundle: tuple[Storage, str], config: ScoreConfig, out: tuple[Storage, str]
) -> dict[str, float]:
    """Score every text of a file or folder with a bundle, and write the verdicts to files in a folder.

    Memory does not grow with the data: an actor reads, scores and writes a few hundred texts at a time. Bundle and
    output (a new or empty folder) are given as (storage, key).

    Returns the numbers of scored `texts` and of rows `skipped` without a text, and `texts_per_second`. Raises
    CorpusError for unreadable data, BundleError for a damaged bundle, ConfigError for a folder with files.
    """
    require_device(spec_of(*bundle), "score.use_gpu", config.use_gpu)  # before anything is written
    work = parts(data, config, step=config.workers)
    with verdict_folder(*out):
        _require_workers(config, out[0], for_reading=0)
        started = logged = time.perf_counter()
        rows = _map_parts(work, bundle, partial(score_part, config=config, root=out[0].root, key=out[1]), config)
        rows.context.target_max_block_size = 1  # return the counts of a batch as soon as it is scored
        texts = skipped = 0
        with reraise_own_errors():
            for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                texts += int(pc.sum(batch["texts"]).as_py() or 0)
                skipped += int(pc.sum(batch["skipped"]).as_py() or 0)
                if time.perf_counter() - logged > LOG_EVERY_S:
                    logged = time.perf_counter()
                    logger.info("%d texts scored, %.0f per second", texts, texts / (logged - started))
        if not texts:
            raise CorpusError(f"data={data}: {skipped} rows, none with a text")
    speed = round(texts / (time.perf_counter() - started), 1)
    return {"texts": texts, "skipped": skipped, "texts_per_second": speed}


def _map_parts(
    work: Sequence[Part], bundle: tuple[Storage, str], score: Callable[..., Iterator[pa.Table]], config: ScoreConfig
) -> Dataset:
    """Map parts of the data with a pool of actors."""
    import ray

    items = ray.data.from_items([{"part": pickle.dumps(part)} for part in work], override_num_blocks=len(work))
    rows = _map(items, bundle, Detector.load, score, config, 1, min(config.workers, len(work)))
    rows.context.enable_progress_bars = False
    return rows


def score_in_memory(data: str, bundle: tuple[Storage, str], config: ScoreConfig) -> pd.DataFrame:
    """Score every text of a file or folder with a bundle, without computing verdicts.

    Returns the columns of `score_part_in_memory`, sorted by text. Raises CorpusError for unreadable data, BundleError
    for a damaged bundle.
    """
    require_device(spec_of(*bundle), "score.use_gpu", config.use_gpu)
    work = parts(data, config, step=config.workers)
    _require_workers(config, bundle[0], for_reading=0)
    with reraise_own_errors():
        scored: Any = _map_parts(work, bundle, score_part_in_memory, config).to_pandas()
    if scored.empty:
        raise CorpusError(f"data={data}: no row with a text")
    return scored.sort_values(["digest", "row"], ignore_index=True)


def score_part_in_memory(detector: Detector, item: pa.Table) -> Iterator[pa.Table]:
    """Scores of the texts of a part, and the other columns that a calibration needs.

    `digest` is the digest of the normalised text, `reason` why it is out of scope or too short for the default target.
    """
    least = detector.spec.min_tokens_at(detector.spec.default_target_fpr)
    for texts, _ in read(pickle.loads(item["part"][0].as_py())):  # noqa: S301 - made by the driver
        documents, scores = read_and_score(detector, texts)
        styles = detector.styles([document.input_ids for document in documents])
        rows = [
            {
                "row": text.row,
                "key": text.key,
                "group": text.values["group"],
                "label": -1 if text.label is None else text.label,
                "digest": hashlib.sha256(document.normalised.text.encode()).hexdigest(),
                "score": score,
                "num_tokens": len(document.input_ids),
                "style": style,
                "reason": next(iter(document.content.reasons), "too_short" if len(document.input_ids) < least else ""),
            }
            for text, document, score, style in zip(texts, documents, scores.tolist(), styles.tolist(), strict=True)
        ]
        if rows:
            yield pa.Table.from_pylist(rows)


def score_part(detector: Detector, item: pa.Table, config: ScoreConfig, root: str, key: str) -> Iterator[pa.Table]:
    """Score the texts of a part and write their verdicts; yield the numbers `texts` and `skipped` of each batch."""
    part: Part = pickle.loads(item["part"][0].as_py())  # noqa: S301 - made by the driver
    storage, name = Storage(root), f"{key}/{part.number:05d}-{part.offset:03d}"
    rows: list[dict[str, Any]] = []
    files = chars = 0
    for texts, skipped in read(part):
        rows += verdict_rows(detector, texts, config)
        chars += sum(len(text.text) for text in texts)
        if len(rows) >= FILE_ROWS or chars >= FILE_CHARS:
            if not write_verdicts(storage, f"{name}-{files:05d}", rows, config.format):
                return
            files, rows, chars = files + 1, [], 0
        yield pa.table({"texts": [len(texts)], "skipped": [skipped]})
    if rows:
        write_verdicts(storage, f"{name}-{files:05d}", rows, config.format)


def verdict_rows(detector: Detector, texts: Sequence[Text], config: ScoreConfig) -> list[dict[str, Any]]:
    """Rows of `verdict_table.VERDICT_SCHEMA`."""
    documents, scores = read_and_score(detector, texts)
    rows, prevalence = [], config.prevalence
    for text, document, score in zip(texts, documents, scores, strict=True):
        spans = None if config.spans == "none" else detector.spans(document, config.spans == "occlusion", prevalence)
        verdicts = {t: detector.verdict(document, score, spans, t, prevalence) for t in detector.targets}
        verdict = verdicts[detector.spec.default_target_fpr]
        rows.append(
            {
                **verdict.model_dump(mode="json", exclude={"label", "spans", "tampering", "content"}),
                **text.values,
                "row": text.row,
                "id": text.id,
                "digest": hashlib.sha256(text.text.encode()).hexdigest()[:16],
                "label": text.label,
                "verdict": verdict.label.value,
                "score": float(score),
                "tampering": json.dumps(verdict.tampering),
                "content": json.dumps(verdict.content),
                "verdicts": json.dumps({repr(t): v.label.value for t, v in verdicts.items()}),
                "spans": None if spans is None else json.dumps([span.model_dump() for span in spans]),
            }
        )
    return rows


def read_and_score(detector: Detector, texts: Sequence[Text]) -> tuple[list[Document], Scores]:
    """Texts as the detector reads them, and their scores, shape (n,). Raises InputError if a score is not finite."""
    documents = detector.read([text.text for text in texts])
    scores = detector.score([document.input_ids for document in documents])
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise InputError(
            f"bundle {detector.version}: the scores of {len(bad)} of {len(texts)} texts are not finite, first in row "
            f"{texts[bad[0]].row}: its weights are damaged, or {detector.spec.precision} overflows"
        )
    return documents, scores
