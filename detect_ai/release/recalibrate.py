"""The stage `recalibrate`: new thresholds for one population of writers, from their human texts.

The encoder and the AI texts of its calibration stay unchanged. The child bundle is added to the registry, with a
one-page certificate; `publish` makes it champion.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.calibration.calibration import Calibration, Scores
from detect_ai.calibration.conformal import texts_needed
from detect_ai.calibration.domains import calibrate_population, scores_of
from detect_ai.calibration.leave_one_out import domain_rates, leave_one_text_out
from detect_ai.calibration.poisoning import poisoning_keys
from detect_ai.core import audit_log
from detect_ai.core.config import Config
from detect_ai.core.errors import CalibrationError, ConfigError
from detect_ai.core.job import attempt
from detect_ai.core.revision import git_revision
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec
from detect_ai.detector.registry import Registry, spec_of
from detect_ai.detector.score import score_in_memory
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.metrics import Labels
from detect_ai.release.promotion_gate import COMPARED, TEST
from detect_ai.release.publish import add_version
from detect_ai.reports.render import render

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

MAX_LISTED = 10  # domains of AI texts in the certificate


@dataclass(frozen=True)
class Sample:
    """The human texts used to set thresholds, and the texts left out."""

    human: Scores
    fingerprint: str  # of the texts
    left_out: dict[str, int]  # number of texts by reason
    excluded_keys: list[str]  # contributors whose labels shift the default threshold more than chance explains
    num_groups: int = 0  # of texts that belong together; 0: unknown
    num_keys: int = 0  # contributors; 0: unknown


def recalibrate(config: Config, storage: Storage) -> dict[str, Any]:
    """Set thresholds of `bundle` (default: the champion) for the population of `recalibrate.humans`.

    Raises ConfigError without texts or a population name, CorpusError for unreadable texts, CalibrationError for fewer
    texts than the default target needs.
    """
    name = " ".join(config.recalibrate.population.split())
    if not config.recalibrate.humans:
        raise ConfigError("recalibrate.humans=: expected a file or folder of texts that your population wrote")
    if not name or not name.isprintable():
        raise ConfigError('recalibrate.population=: expected whose texts they are: "essays of our first-year students"')
    parent_bundle = Registry(storage).resolve(config.bundle)
    parent = spec_of(*parent_bundle)
    sample = select(score_in_memory(config.recalibrate.humans, parent_bundle, config.score), parent)
    targets, refused = supported_targets(len(sample.human), parent)
    for target, needed in refused.items():
        logger.warning("target FPR %g is dropped: it needs %d texts, found %d", target, needed, len(sample.human))
    if sample.excluded_keys:
        logger.warning(
            "left out %s: their texts raise the threshold further than chance explains. If people wrote them, the "
            "thresholds do not hold for these people",
            ", ".join(sample.excluded_keys),
        )
    child = child_spec(parent, calibrate_population(parent.calibration, sample.human, name, targets), config.run)
    key, today = f"runs/{config.run}/{attempt('recalibrated')}", datetime.now(UTC).date().isoformat()
    with storage.whole(key):
        with tempfile.TemporaryDirectory() as scratch, parent_bundle[0].local_folder(parent_bundle[1]) as source:
            of_parent = shutil.ignore_patterns(bundle.CARD_FILE, bundle.METRICS_FILE)
            shutil.copytree(source, scratch, ignore=of_parent, dirs_exist_ok=True)
            bundle.write_spec(Path(scratch), child)
            storage.upload(scratch, f"{key}/bundle")
        version = add_version(storage, f"{key}/bundle", {TEST: metrics_of_sample(parent, child, sample)})
        certificate = certify(parent, child, sample, refused) | {"version": version, "created": today}
        storage.write_json(f"{key}/certificate.json", certificate)
        page = render("certificate.html.jinja", certificate=certificate, max_listed=MAX_LISTED)
        storage.write_bytes(f"{key}/certificate.html", page.encode())
    storage.prune(f"runs/{config.run}", "recalibrated-", config.storage.keep)
    audit_log.record(storage, "recalibrate", version=version, parent=parent.version, population=name)
    logger.info("publish it: python jobs/publish.py run=%s bundle=%s", config.run, version)
    return {**certificate, "bundle": f"{key}/bundle", "certificate": f"{key}/certificate.html"}


def select(scored: pd.DataFrame, parent: DetectorSpec) -> Sample:
    """The usable texts of `score.score_in_memory`: not labelled AI, in scope, long enough and not duplicates.

    Texts whose `key` is a contributor that `poisoning` finds are left out.
    """
    reason = scored["reason"].mask(scored.duplicated("digest"), "duplicate").mask(scored["label"] == 1, "labelled_ai")
    kept = scored[reason == ""]
    standardised = parent.calibration.human_length.standardise(kept["score"], kept["num_tokens"])
    excluded = poisoning_keys(standardised, kept["key"], parent.default_target_fpr)
    is_excluded = kept["key"].isin(excluded)
    counts = Counter(reason[reason != ""].tolist()) + Counter({"excluded_key": int(is_excluded.sum())})
    kept = kept[~is_excluded]
    return Sample(
        scores_of(kept),
        hashlib.sha256("".join(sorted(kept["digest"])).encode()).hexdigest(),
        dict(counts.most_common()),
        excluded,
        *(len(set(kept[column]) - {""}) for column in ("group", "key")),
    )


def supported_targets(n: int, parent: DetectorSpec) -> tuple[list[float], dict[float, int]]:
    """The targets of a parent that n human texts support, and the number of texts that each other target needs.

    Raises CalibrationError if the default target is not supported.
    """
    needed = {target: texts_needed(target, "expectation") for target in sorted(parent.calibration.thresholds)}
    default = parent.default_target_fpr
    if n < needed[default]:
        raise CalibrationError(
            f"recalibrate.humans: the default target FPR {default:g} needs at least {needed[default]} human texts that "
            f"are long enough, in scope and not duplicates; found {n}: add texts"
        )
    return [t for t in needed if n >= needed[t]], {t: least for t, least in needed.items() if n < least}


def child_spec(parent: DetectorSpec, calibration: Calibration, run: str) -> DetectorSpec:
    """The specification of the child. Texts shorter than those of the sample are `uncertain` at all targets."""
    settings = parent.calibration_config.model_copy(
        update={"target_fprs": list(calibration.thresholds), "guarantee": "expectation"}
    )
    return replace(
        parent,
        calibration=calibration,
        min_tokens=parent.min_tokens_at(parent.default_target_fpr),
        parent=parent.version,
        provenance={
            **parent.provenance,
            "config": {**parent.provenance["config"], "calibration": settings.model_dump()},
            "recalibrated": {"run": run, "git_revision": git_revision()},
        },
    )


def metrics_of_sample(parent: DetectorSpec, child: DetectorSpec, sample: Sample) -> dict[str, Any]:
    """Metrics for the promotion gate, as from `evaluate`, on the sample (leave-one-out) and the parent's AI texts.

    AI texts are decided by score alone, because those of other kinds of writing than the population's would be
    `uncertain`. `parent` has those rates of the parent that the gate compares.
    """
    (ai, _), targets = ai_texts(parent), child.calibration.thresholds
    labels, scores = np.repeat([0, 1], [len(sample.human), len(ai)]), np.concatenate([sample.human.scores, ai.scores])

    def measured(spec: DetectorSpec, human: dict[float, Labels]) -> dict[str, Any]:
        by_score = _by_score_alone(spec)
        return compute_metrics(
            labels,
            scores,
            spec.calibration.probability(scores),
            {target: np.append(own, _predictions(by_score, ai, target)) for target, own in human.items()},
            spec.default_target_fpr,
            np.full(len(labels), ""),
            spec.calibration.prevalence,
            score_intervals=False,
        )

    of_parent = measured(parent, {target: _predictions(parent, sample.human, target) for target in targets})
    left_out = {target: leave_one_text_out(child.calibration, sample.human, target) for target in targets}
    return measured(child, left_out) | {
        "parent": {"version": parent.version, **{name: of_parent[name] for name in COMPARED}},
        "measured_on": {"human": "texts of the population, each left out in turn", "ai": "AI texts of the parent"},
        "default_target": child.default_target_fpr,
        "test_fingerprint": f"recalibrated-{sample.fingerprint}-{parent.version}",
    }


def certify(parent: DetectorSpec, child: DetectorSpec, sample: Sample, refused: dict[float, int]) -> dict[str, Any]:
    """Plain values for the certificate: its statements, the texts they are based on, and the changes."""
    calibration, population, target = child.calibration, child.calibration.population, child.default_target_fpr
    assert population is not None
    ai, domains = ai_texts(parent)
    is_like = ~population.is_unlike(ai.styles)
    decided = {"before": _predictions(parent, ai, target), "after": _predictions(_by_score_alone(child), ai, target)}

    def change(domain: str, chosen: NDArray[np.bool_]) -> dict[str, Any]:
        """Detection rates and fractions labelled human of the chosen AI texts; None for few texts."""
        row: dict[str, Any] = {"domain": domain, "n_ai": int(chosen.sum()), "like": int(is_like[chosen].sum())}
        for when, predictions in decided.items():
            rates = domain_rates(domain, predictions[:0], predictions[chosen])
            row |= {f"{rate}_{when}": rates[rate] for rate in ("tpr", "cleared")}
        return row

    rows = [change(str(name), domains == name) for name in np.unique(domains)]
    return {
        "parent": parent.version,
        "population": population.name,
        "has_style": bool(population.style),
        "n_human": len(sample.human),
        "n_groups": sample.num_groups,
        "n_keys": sample.num_keys,
        "fingerprint": sample.fingerprint,
        "left_out": sample.left_out,
        "excluded_keys": sample.excluded_keys,
        "min_tokens": child.min_tokens,
        "default_target": target,
        "thresholds": [
            {
                "target": own,
                "probability": float(calibration.probability(calibration.ai_from_unlike(own))),
                "fpr_upper_bound": threshold.fpr_bound,
                "confidence": threshold.confidence,
                "fpr_before": float((_predictions(parent, sample.human, own) == 1).mean()),
                "fpr_left_out": float((leave_one_text_out(calibration, sample.human, own) == 1).mean()),
            }
            for own, threshold in sorted(calibration.thresholds.items())
        ],
        "refused_targets": [{"target": own, "texts_needed": needed} for own, needed in refused.items()],
        "ai": {
            "all": change("all", np.ones(len(ai), np.bool_)),
            "like": change("like the human texts", is_like),
            "domains": sorted(rows, key=lambda row: (-row["like"], -row["n_ai"], row["domain"])),
        },
    }


def ai_texts(parent: DetectorSpec) -> tuple[Scores, NDArray[np.str_]]:
    """The AI texts of a parent's calibration, and their domains, shape (n,)."""
    domains = [domain for domain in parent.calibration.domains if len(domain.ai)]
    columns = (
        np.concatenate([getattr(domain.ai, name) for domain in domains]) for name in ("scores", "num_tokens", "styles")
    )
    return Scores.of(*columns), np.repeat([domain.name for domain in domains], [len(domain.ai) for domain in domains])


def _by_score_alone(child: DetectorSpec) -> DetectorSpec:
    return replace(child, calibration=replace(child.calibration, population=None))


def _predictions(spec: DetectorSpec, texts: Scores, target: float) -> Labels:
    """Predictions for texts that are long enough; -1 for the others."""
    is_short = np.asarray(texts.num_tokens) < spec.min_tokens_at(target)
    return np.where(is_short, -1, spec.calibration.predictions_of(texts, target))
