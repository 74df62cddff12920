"""The stage `export`: faster backends for a bundle, measured on this machine.

Each candidate is a separate bundle: the weights of its parent, a backend and its own thresholds. The fastest one that
is as good as the parent is added to the registry; `publish` makes it champion.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from detect_ai import metrics
from detect_ai.core.config import Config, check_names
from detect_ai.core.errors import BundleError, ConfigError
from detect_ai.core.job import attempt
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.score import score_split
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.models import backends
from detect_ai.models.style import Style
from detect_ai.release.calibrate import calibrate_split
from detect_ai.release.promotion_gate import TEST, export_reasons, gate
from detect_ai.release.publish import add_version, champion_metrics

if TYPE_CHECKING:
    from detect_ai.models.tokenizer import Ids

logger = logging.getLogger(__name__)

PARENT = "parent"  # the bundle itself, the baseline of every candidate
MIN_SPEEDUP = 1.1  # over the parent; slower candidates are not scored
SPLIT = "validation"  # for the quality gate: the test split must not decide
NUM_TEXTS = 64  # timed together, drawn from the calibration split
NUM_ALONE = 32  # texts that are also scored alone
ROUNDS = 7  # every candidate is timed once per round


@dataclass(frozen=True)
class ExportTask:
    """Inputs and outputs of an export."""

    config: Config  # scoring uses the device of the service
    corpus: Corpus  # the training corpus of the parent
    spec: DetectorSpec  # of the parent
    key: str  # of the output folder
    scratch: Path  # local folder with the bundles of the candidates and the parent
    device: str  # of the service, cuda or cpu


def export(config: Config, storage: Storage) -> dict[str, Any]:
    """Measure faster backends for a bundle on this machine, and add the fastest one that is as good to the registry.

    The bundle is `bundle` (default: the champion); the corpus is that of this run. Run it on the serving machine.
    Raises ConfigError if a candidate is not a backend, or the bundle is an export itself or has another corpus.
    """
    allowed = [name for name in backends.BACKENDS if name != backends.DEFAULT]
    check_names("export.candidates", config.export.candidates, allowed)
    storage_of_parent, parent_key = Registry(storage).resolve(config.bundle)
    spec, corpus = spec_of(storage_of_parent, parent_key), Corpus.of_run(storage, config.run)
    if spec.parent is not None:
        made = "recalibrated (recalibrate the export instead)" if spec.calibration.population else "an export itself"
        raise ConfigError(f"bundle {spec.version} is {made}: name its parent, bundle={spec.parent}")
    if corpus.manifest.fingerprint != spec.corpus["fingerprint"]:
        raise ConfigError(
            f"bundle {spec.version} is of corpus {spec.corpus['fingerprint'][:12]}, run={config.run} has "
            f"{corpus.manifest.fingerprint[:12]}: thresholds need the calibration split of its own; name its run"
        )
    config = config.model_copy(update={"score": config.score.model_copy(update={"use_gpu": config.serve.use_gpu})})
    key = f"runs/{config.run}/{attempt('export')}"
    with (
        storage.whole(key),
        tempfile.TemporaryDirectory() as scratch,
        storage_of_parent.local_folder(parent_key) as parent,
    ):
        task = ExportTask(config, corpus, spec, key, Path(scratch), "cuda" if config.serve.use_gpu else "cpu")
        detectors, left_out = _make_all(task, parent)
        rows = _measure_speed(task, detectors)
        del detectors  # scoring needs the memory
        _measure_quality(task, rows)
        kept = _keep_first(task, rows)
        storage.delete(f"{key}/candidates")
    for row in rows:
        logger.info(
            "%s: %.1f texts/s, %.2f times the parent's speed (%.2f to %.2f), one text alone %.1f ms. %s",
            *(row[name] for name in ("name", "texts_per_s", "speedup", "speedup_low", "speedup_high", "alone_ms")),
            " ".join(row["reasons"]) or "As good as the parent.",
        )
    storage.prune(f"runs/{config.run}", "export-", config.storage.keep)
    if kept:
        logger.info("publish it: python jobs/publish.py run=%s bundle=%s", config.run, kept["version"])
    else:
        logger.info("the parent stays")
        kept = dict.fromkeys(("chosen", "version", "backend", "precision", "metrics"))
    return {"parent": spec.version, **kept, "candidates": rows, "left_out": left_out}


def _make_all(task: ExportTask, parent: Path) -> tuple[dict[str, Detector], dict[str, str]]:
    """Create the bundle of every candidate. Returns the detectors, and the reason for each one that does not run."""
    load = partial(Detector.load, device=task.device, batch_tokens=task.config.serve.batch_tokens)
    shutil.copytree(parent, task.scratch / PARENT)
    detectors, left_out = {PARENT: load(task.scratch / PARENT)}, {}
    for name in dict.fromkeys(task.config.export.candidates):
        reason = backends.get(name).unavailable_reason(task.device)
        if reason is None:
            make(name, parent, task.scratch / name)
            try:
                detectors[name] = load(task.scratch / name)
            except BundleError as error:
                reason = str(error).removeprefix(f"{task.scratch / name}: ")
                shutil.rmtree(task.scratch / name)
        if reason is not None:
            left_out[name] = reason
            logger.info("%s is left out: %s", name, reason)
    return detectors, left_out


def make(name: str, parent: Path, folder: Path) -> DetectorSpec:
    """Create the bundle of a candidate, one of `backends.BACKENDS`, in a new folder, with its parent's thresholds."""
    spec = bundle.read_spec(parent)
    shutil.copytree(parent, folder, ignore=shutil.ignore_patterns(bundle.CARD_FILE, bundle.METRICS_FILE))
    provenance = {**spec.provenance, "export": name}
    precision: Literal["fp32", "bf16"] = "bf16" if name == "torch-bf16" else "fp32"
    child = replace(spec, parent=spec.version, backend=name, precision=precision, provenance=provenance)
    return bundle.write_spec(folder, child)


def _measure_speed(task: ExportTask, detectors: Mapping[str, Detector]) -> list[dict[str, Any]]:
    """Throughput and latency of every candidate with the threads of a replica, fastest first."""
    import torch

    ids = task.corpus.read("calibration", ["input_ids"])["input_ids"].to_numpy()
    drawn = np.random.default_rng(task.config.seed).permutation(len(ids))[:NUM_TEXTS]
    texts: list[Ids] = [np.asarray(ids[i], np.int32) for i in drawn]
    middle = [sorted(texts, key=len)[len(texts) // 2]]
    threads = torch.get_num_threads()
    torch.set_num_threads(task.config.serve.threads)
    together = time_interleaved({name: partial(d.score, texts) for name, d in detectors.items()}, ROUNDS)
    alone = time_interleaved({name: partial(d.score, middle) for name, d in detectors.items()}, ROUNDS)
    base = detectors[PARENT].score(texts)
    rows = []
    for name, detector in detectors.items():
        scores = detector.score(texts)
        single = np.asarray([detector.score([text])[0] for text in texts[:NUM_ALONE]])
        speedups = np.asarray(together[PARENT]) / np.asarray(together[name])
        rows.append(
            {
                "name": name,
                "texts_per_s": len(texts) / float(np.median(together[name])),
                "speedup": float(np.median(speedups)),
                "speedup_low": float(speedups.min()),
                "speedup_high": float(speedups.max()),
                "alone_ms": 1000 * float(np.median(alone[name])),
                "difference": float(np.abs(scores - base).max()),  # of the log-odds from the parent's
                "batch_effect": float(np.abs(single - scores[:NUM_ALONE]).max()),  # on the log-odds of a text
            }
        )
    torch.set_num_threads(threads)
    return sorted(rows, key=lambda row: -row["speedup"])


def time_interleaved(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm in each round, interleaved so that other load on the machine affects all arms equally.

    Each round starts with another arm. A warm-up round is not counted.
    """
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        first = max(turn, 0) % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            arms[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _measure_quality(task: ExportTask, rows: list[dict[str, Any]]) -> None:
    """Add metrics for the candidates that are fast enough, and the reasons against each candidate."""
    e = task.config.export
    base = _metrics(task, PARENT)
    if 1 / base["n_ai"] > e.max_tpr_drop:
        logger.info(
            "the gate allows a drop of %g points, one of the %d AI texts of the %s split is %.2g: a pass proves little",
            *(100 * e.max_tpr_drop, base["n_ai"], SPLIT, 100 / base["n_ai"]),
        )
    for row in rows:
        if row["name"] == PARENT:
            row |= {**base, "reasons": ["The others are measured against it."]}
        elif row["speedup"] < MIN_SPEEDUP:
            row |= {**dict.fromkeys(base), "reasons": [f"Not {MIN_SPEEDUP:g} times as fast."]}
        else:
            own = _metrics(task, row["name"])
            row |= {**own, "reasons": export_reasons(own, base, e)}


def _metrics(task: ExportTask, name: str) -> dict[str, Any]:
    key = f"{task.key}/candidates/{name}"
    task.corpus.storage.upload(task.scratch / name, key)
    scored = score_split(task.corpus, SPLIT, key, Detector.load, task.config.score)
    labels, scores = scored["label"], scored["score"]
    return {
        "auroc": metrics.auroc(labels, scores),
        "tpr_at_fpr_1": metrics.tpr_at_fpr(labels, scores, 0.01),
        "n_human": int((labels == 0).sum()),
        "n_ai": int((labels == 1).sum()),
    }


def _keep_first(task: ExportTask, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Keep the fastest candidate that passes both gates; None if there is none."""
    return next(filter(None, (_keep(task, row) for row in rows if not row["reasons"])), None)


def _keep(task: ExportTask, row: dict[str, Any]) -> dict[str, Any] | None:
    """Recalibrate a candidate, evaluate it and add it to the registry; None if it fails the promotion gate."""
    storage, folder, key = task.corpus.storage, task.scratch / row["name"], f"{task.key}/bundle"
    calibration = calibrate_split(
        task.corpus,
        f"{task.key}/candidates/{row['name']}",
        Detector.load,
        task.config.score,
        task.spec.calibration_config,  # as the parent
        task.spec.window,
        Style.load(folder) if task.spec.calibration.domain_effects else None,
    )
    spec = bundle.write_spec(folder, replace(bundle.read_spec(folder), calibration=calibration))
    storage.upload(folder, key)
    tested = evaluate(task.config.model_copy(update={"bundle": key, "data": ""}), storage)
    champion = Registry(storage).champion()
    compared = champion_metrics(task.config, storage, champion, spec, {TEST: tested}) if champion else None
    reasons, row["warnings"] = gate({TEST: tested}, compared, task.config.gate)
    for warning in row["warnings"]:
        logger.warning("%s", warning)
    row["reasons"] += reasons
    if reasons:
        return None
    return {
        "chosen": row["name"],
        "version": add_version(storage, key, {TEST: tested}),
        "backend": spec.backend,
        "precision": spec.precision,
        "metrics": {name: value for name, value in tested.items() if isinstance(value, int | float)},
    }
