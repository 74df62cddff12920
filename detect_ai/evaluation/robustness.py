"""Metrics of texts under attack, compared with the metrics of the same texts unchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from detect_ai.corpus.manifest import ORIGINAL
from detect_ai.corpus.splits import shuffle_key
from detect_ai.detector.dataset import texts_at
from detect_ai.detector.verdict_table import Verdicts
from detect_ai.evaluation.slices import differences, overall_metrics
from detect_ai.evaluation.task import EvalTask
from detect_ai.text.attacks import ATTACKS


def attacked_metrics(task: EvalTask, verdicts: Verdicts) -> list[dict[str, Any]]:
    """Metrics of a sample unchanged (`attack` is `ORIGINAL`) and under each attack of `evaluation.attacks`.

    Both classes are attacked, because tampering must not cause false positives either. The row of each attack has the
    differences from the unchanged texts at the default target, see `intervals.paired_differences`.
    """
    options, seed, spec = task.config.evaluation, task.config.seed, task.spec
    rng = np.random.default_rng([seed, 3])
    unattacked = np.isin(verdicts.columns["attack"], ("", ORIGINAL))
    by_class = [rng.permutation(np.flatnonzero(unattacked & (verdicts.labels == label))) for label in (0, 1)]
    clean = verdicts[np.sort(np.concatenate([places[: options.attack_sample_size] for places in by_class]))]
    if not options.attacks or not len(clean):
        return []
    texts = texts_at(task.data, task.config.score, clean.rows.tolist())
    changed = [
        (row, ATTACKS[name](text, np.random.default_rng(shuffle_key(seed, f"{row}\0{name}"))), name)
        for name in options.attacks
        for row, text in texts.items()
    ]
    scored = task.score_generated(changed)
    rows = [{"attack": ORIGINAL, **overall_metrics(clean, spec, score_intervals=False)}]
    for name in options.attacks:
        attacked = aligned(scored[scored.columns["attack"] == name], clean)
        metrics = overall_metrics(attacked, spec, score_intervals=False)
        rows.append({"attack": name, **metrics, **differences(attacked, clean, spec.default_target_fpr)})
    return rows


def aligned(attacked: Verdicts, clean: Verdicts) -> Verdicts:
    """Attacked texts (their ids are rows of the data) in the order of the clean ones, with their labels and groups."""
    place = {row: i for i, row in enumerate(attacked.ids.tolist())}
    ordered = attacked[np.asarray([place[row] for row in clean.rows.tolist()])]
    return replace(ordered, labels=clean.labels, columns={**ordered.columns, "group": clean.columns["group"]})
