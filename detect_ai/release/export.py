"""The stage `export`: other ways to run a bundle, measured on the machine at hand.

Each candidate is a bundle of its own: the weights in the form of its backend, the name of its parent and thresholds of
its own. The fastest that is as good as the parent goes into the registry; `publish` makes it champion.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect_ai import metrics
from detect_ai.calibration.domain_classifier import FILE as REGISTERS_FILE
from detect_ai.core.config import CalibrationConfig, Config, check_names
from detect_ai.core.errors import ConfigError
from detect_ai.core.job import attempt
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import Corpus
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.scoring import Scored, score_split
from detect_ai.evaluation.evaluate import evaluate
from detect_ai.models import backends
from detect_ai.release.calibrate import calibration_of
from detect_ai.release.promotion_gate import Likeness, unlike
from detect_ai.release.publish import add_version
from detect_ai.release.timing import alternate, ratio
from detect_ai.reports.export import machine, table

if TYPE_CHECKING:
    from detect_ai.models.tokenizer import Ids

logger = logging.getLogger(__name__)

BASE = backends.DEFAULT  # what every candidate is measured against: PyTorch at fp32
ALONE = 32  # texts that are also scored alone


@dataclass(frozen=True)
class Job:
    """What is exported, from what, to where.

    Attributes:
        config: its scoring is done where the service would run.
        corpus: that the parent learnt from.
        spec: of the parent.
        key: of the folder for the outputs.
        scratch: a local folder with a bundle for each candidate.
    """

    config: Config
    corpus: Corpus
    spec: DetectorSpec
    key: str
    scratch: Path

    @property
    def device(self) -> str:
        """Where the service would run."""
        return "cuda" if self.config.serve.use_gpu else "cpu"


def export(config: Config, storage: Storage) -> dict[str, Any]:
    """Measure other ways to run a bundle on this machine, and add the fastest that is as good to the registry.

    The bundle is `bundle`, else the champion; the corpus is that of this run. The machine should be of the kind that
    serves.

    Raises:
        ConfigError: the bundle is an export itself, or learnt from another corpus.
        RegistryError: no such bundle.
    """
    shapes = [re.sub(r"\+(layers|ffn)-[1-9]\d?(?=\+|$)", "", name) for name in config.export.candidates]
    check_names("export.candidates, less +layers-N and +ffn-P,", shapes, backends.BACKENDS)
    where = Registry(storage).locate(config.bundle)
    spec, corpus = spec_of(*where), Corpus.of_run(storage, config.run)
    _require_fit(config, spec, corpus)
    config = config.model_copy(
        update={"score": config.score.model_copy(update={"use_gpu": config.serve.use_gpu, "precision": "fp32"})}
    )
    key = f"runs/{config.run}/{attempt('export')}"
    with storage.whole(key), tempfile.TemporaryDirectory() as scratch, where[0].local_folder(where[1]) as parent:
        job = Job(config, corpus, spec, key, Path(scratch))
        left_out = _make_all(job, parent)
        rows = _timed(job)
        _judge(job, rows)
        chosen = next((row for row in rows if row["passes"]), None)
        result = {
            "parent": spec.version,
            **(_keep(job, chosen["name"]) if chosen else {"version": None, "backend": None, "figures": None}),
            "chosen": chosen and chosen["name"],
            "candidates": rows,
            "left_out": left_out,
            "machine": machine(config.serve.threads, job.device),
        }
        _tell(job, result)
    storage.prune(f"runs/{config.run}", "export-", config.storage.keep)
    return result


def _require_fit(config: Config, spec: DetectorSpec, corpus: Corpus) -> None:
    if spec.backend != BASE:
        raise ConfigError(
            f"bundle {spec.version} is an export itself: name the one that it was made from, {spec.parent}"
        )
    if corpus.manifest.fingerprint != spec.corpus["fingerprint"]:
        raise ConfigError(
            f"bundle {spec.version} learnt from corpus {spec.corpus['fingerprint'][:12]}, run={config.run} has "
            f"{corpus.manifest.fingerprint[:12]}: thresholds need the calibration split of its own; name its run"
        )


# Making


def _make_all(job: Job, parent: Path) -> dict[str, str]:
    """Make a bundle of every candidate and of the base. Returns those that could not be made, with the reason."""
    left_out = {}
    for name in dict.fromkeys([BASE, *job.config.export.candidates]):
        reason = backends.get(name.split("+")[0]).unavailable_reason(job.device)
        if reason is None:
            try:
                make(name, parent, job.scratch / name)
            except Exception as error:  # exporters refuse what they do not know by errors of every kind
                if name == BASE:
                    raise
                reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        if reason is not None:
            left_out[name] = reason
            shutil.rmtree(job.scratch / name, ignore_errors=True)
            logger.info("%s is left out: %s", name, reason)
    return left_out


def make(name: str, parent: Path, folder: Path) -> DetectorSpec:
    """Make the bundle of a candidate, with its parent's thresholds.

    Args:
        name: a backend, followed by what makes the encoder smaller, as in `ExportConfig`.
        parent: folder of a bundle that runs in PyTorch.
        folder: for the new one; it must not exist.

    Raises:
        InputError: the encoder cannot be made smaller in this way.
    """
    from detect_ai.models import encoder
    from detect_ai.release.shrinking import keep_layers, keep_neurons

    spec, network = bundle.read_spec(parent), encoder.load(parent)
    backend, *changes = name.split("+")
    for change in changes:
        kind, _, number = change.partition("-")
        {"layers": keep_layers, "ffn": keep_neurons}[kind](network, int(number))
    folder.mkdir()
    backends.save(network, folder, backend)
    for kept in ("tokenizer.json", "tokenizer_config.json", *([REGISTERS_FILE] if spec.registers else [])):
        shutil.copy(parent / kept, folder)
    provenance = {**spec.provenance, "export": name}
    return bundle.seal(folder, replace(spec, parent=spec.version, backend=backend, provenance=provenance, files={}))


# Speed


def _timed(job: Job) -> list[dict[str, Any]]:
    """What every candidate that was made takes, the fastest first."""
    texts = _texts(job)
    with _as_in_the_service(job.config):
        tokens = job.config.serve.batch_tokens
        found = {
            each.name: Detector.load(each, job.device, batch_tokens=tokens) for each in sorted(job.scratch.iterdir())
        }
        middle = [sorted(texts, key=len)[len(texts) // 2]]
        together = alternate(
            {name: partial(each.score, texts) for name, each in found.items()}, job.config.export.rounds
        )
        alone = alternate({name: partial(each.score, middle) for name, each in found.items()}, job.config.export.rounds)
        scores = {name: each.score(texts) for name, each in found.items()}
        moves = {name: _moves(each, texts[:ALONE], scores[name][:ALONE]) for name, each in found.items()}
    rows = []
    for name in found:
        speedup, speedup_alone = (ratio(times[BASE], times[name]) for times in (together, alone))
        rows.append(
            {
                "name": name,
                "texts_per_s": len(texts) / float(np.median(together[name])),
                "speedup": speedup.median,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "alone_ms": 1000 * float(np.median(alone[name])),
                "speedup_alone": speedup_alone.median,
                "bytes": sum(path.stat().st_size for path in (job.scratch / name).iterdir()),
                "difference": float(np.abs(scores[name] - scores[BASE]).max()),
                "moves": moves[name],
            }
        )
    return sorted(rows, key=lambda row: -row["speedup"])


def _texts(job: Job) -> list[Ids]:
    """Token ids of texts of the calibration split, drawn by the seed."""
    ids = job.corpus.read("calibration", ["input_ids"])["input_ids"].to_numpy()
    drawn = np.random.default_rng(job.config.seed).permutation(len(ids))[: job.config.export.texts]
    return [np.asarray(ids[i], np.int32) for i in drawn]


def _moves(detector: Detector, texts: list[Ids], together: Any) -> float:
    """How far the log-odds of a text move with the batch that it is in, at most."""
    alone = [detector.score([text])[0] for text in texts]
    return float(np.abs(np.asarray(alone) - together).max())


@contextmanager
def _as_in_the_service(config: Config) -> Iterator[None]:
    """As many threads as a replica has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(config.serve.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Quality


def _judge(job: Job, rows: list[dict[str, Any]]) -> None:
    """Score the split of the gate by what is fast enough, and say of each whether it is as good as the base."""
    e = job.config.export
    bounds = Likeness(e.max_auroc_change, e.max_tpr_drop)
    base = _figures(job, BASE)
    if 1 / base["n_ai"] > e.max_tpr_drop:
        logger.info(
            "the gate allows a drop of %g points, and one of the %d AI texts of %s is %.2g: a pass proves little",
            *(100 * e.max_tpr_drop, base["n_ai"], e.split, 100 / base["n_ai"]),
        )
    for row in rows:
        if row["name"] == BASE:
            found, reasons = base, ["The others are measured against it."]
        elif row["speedup"] < e.min_speedup:
            found, reasons = dict.fromkeys(base), [f"Not {e.min_speedup:g} times as fast."]
        else:
            found = _figures(job, row["name"])
            reasons = unlike(found, base, bounds)
        row |= {**found, "passes": not reasons, "reasons": reasons}


def _figures(job: Job, name: str) -> dict[str, Any]:
    """AUROC and TPR of a candidate on the split of the gate."""
    scored = _scored(job, name, job.config.export.split)
    labels = scored.labels
    return {
        "auroc": metrics.auroc(labels, scored.scores),
        "tpr_at_fpr_1": metrics.tpr_at_fpr(labels, scored.scores, 0.01),
        "n_human": int((labels == 0).sum()),
        "n_ai": int((labels == 1).sum()),
    }


def _scored(job: Job, name: str, split: str, **options: Any) -> Scored:
    storage, key = job.corpus.storage, f"{job.key}/candidates/{name}"
    if not storage.exists(key):
        storage.upload(job.scratch / name, key)
    return score_split(job.corpus, split, key, partial(Detector.load, device=job.device), job.config.score, **options)


# What stays


def _keep(job: Job, name: str) -> dict[str, Any]:
    """Give the chosen one thresholds of its own, judge it on the test split and add it to the registry."""
    storage, folder, key = job.corpus.storage, job.scratch / name, f"{job.key}/bundle"
    registers, settings = bundle.load_registers(folder, job.spec), settings_of(job.spec, job.config.calibration)
    scored = _scored(job, name, "calibration", edges=settings.length_edges, registers=registers)
    calibration = calibration_of(scored, settings, registers)
    spec = bundle.seal(folder, replace(bundle.read_spec(folder), calibration=calibration))
    storage.upload(folder, key)
    figures = evaluate(job.config.model_copy(update={"bundle": key, "data": ""}), storage)
    return {
        "version": add_version(storage, Registry(storage), key, figures),
        "backend": spec.backend,
        "figures": {name: value for name, value in figures.items() if isinstance(value, int | float)},
    }


def settings_of(spec: DetectorSpec, default: CalibrationConfig) -> CalibrationConfig:
    """How a bundle was calibrated; what it does not say is taken from the default."""
    told = spec.provenance.get("config", {}).get("calibration", {})
    given = {name: value for name, value in told.items() if name in CalibrationConfig.model_fields}
    return default.model_copy(update={**given, "target_fprs": sorted(spec.calibration.thresholds)})


def _tell(job: Job, result: dict[str, Any]) -> None:
    """The table beside the result, and into the log."""
    storage, text = job.corpus.storage, table(result)
    storage.delete(f"{job.key}/candidates")
    storage.write_bytes(f"{job.key}/table.md", text.encode())
    for line in text.splitlines():
        logger.info("%s", line)
    if result["chosen"] is None:
        logger.info("%s stays: nothing is %g times as fast and as good", BASE, job.config.export.min_speedup)
    else:
        logger.info("%s is version %s; publish it: bundle=%s", result["chosen"], *[result["version"]] * 2)
