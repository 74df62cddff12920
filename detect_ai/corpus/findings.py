"""Warnings about a corpus, with what to do about them: from the shortcut audit and the counts of the manifest. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detect_ai.calibration.conformal import texts_needed
from detect_ai.corpus.shortcuts import Audit, FeatureScore, SliceScore

MIN_AUROC = 0.70  # of a feature, for a warning
EASY_AUROC = 0.97  # of the baseline
MAX_SLICE_FPR = 0.15  # of a slice's human texts, where 5% of all are called AI
MIN_HUMANS = 50  # in a slice, for that warning
MIN_GENERATOR_ROWS = 100
MAX_GROUP_FRACTION = 0.20  # of the texts of a split
MAX_DROPPED_FRACTION = 0.05  # of the rows read, by one reason
_DROP_ADVICE = {
    "bad_row": "the file is damaged, or its format is not the configured one",
    "bad_encoding": "convert the files to UTF-8",
    "no_text": "check corpus.sources[].text",
    "no_label": "check corpus.sources[].label",
    "both_labels": "the same text is labelled human and AI: the labels of a source are wrong",
    "duplicate": "a source repeats its texts, or two sources share them",
    "contaminated": "an evaluation set shares texts with the sources",
    "leak": "fixed splits of the sources share groups or near duplicates",
    "language": "check in the quarantine whether the detected language is right",
}


@dataclass(frozen=True)
class Finding:
    """One warning: its subject in a word, and a sentence. `note`: nothing to do."""

    about: str
    text: str


def corpus_findings(
    audit: Audit, counts: Sequence[Mapping[str, Any]], dropped: Mapping[str, int], rows_read: int
) -> list[Finding]:
    """Every warning about a corpus.

    Args:
        audit: of a sample of the corpus.
        counts: `rows` of the whole corpus by split, label, source, domain and generator.
        dropped: rows by reason.
        rows_read: before anything was dropped.
    """
    return [
        *_feature_findings(audit.features),
        *_single_class_findings(counts),
        *_baseline_findings(audit.baseline, audit.slices),
        *_size_findings(counts),
        *_group_findings(audit.largest_groups),
        *_dropped_findings(dropped, rows_read),
    ]


def _feature_findings(features: Sequence[FeatureScore]) -> Iterator[Finding]:
    for feature in features:
        if feature.auroc < MIN_AUROC:
            continue
        higher = f", higher in {'AI' if feature.higher_in == 'ai' else 'human'} texts" if feature.higher_in else ""
        text = f"{feature.name} alone gives AUROC {feature.auroc:.2f}{higher}"
        if feature.normalised is not None and feature.normalised < MIN_AUROC:
            yield Finding("note", f"{text}; {feature.normalised:.2f} after the normaliser: nothing to do")
        else:
            yield Finding("shortcut", f"{text}: {feature.advice}, or the detector will learn it")


def _single_class_findings(counts: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    for column in ("source", "domain"):
        labels: dict[str, set[int]] = {}
        for row in counts:
            if row[column]:
                labels.setdefault(row[column], set()).add(row["label"])
        single = [f"{name} ({'AI' if 1 in own else 'human'})" for name, own in labels.items() if len(own) == 1]
        if single:
            yield Finding(
                "provenance",
                f"{len(single)} of {len(labels)} {column}s hold one class only: {_shown(single)}. A detector may learn "
                f"the {column} instead of the class",
            )


def _baseline_findings(baseline: SliceScore, slices: Sequence[SliceScore]) -> Iterator[Finding]:
    if baseline.auroc is not None and baseline.auroc >= EASY_AUROC:
        yield Finding(
            "baseline",
            f"TF-IDF and logistic regression reach AUROC {baseline.auroc:.3f}: the classes differ in their words. Test "
            f"on other domains and generators (corpus.holdout)",
        )
    for row in slices:
        if row.called_ai is not None and row.called_ai >= MAX_SLICE_FPR and row.n_human >= MIN_HUMANS:
            yield Finding(
                "baseline",
                f"at an FPR of 5% over all human texts the baseline has {row.called_ai:.0%} on the {row.n_human} of "
                f"{row.column} {row.value!r}: add human texts like these",
            )


def _size_findings(counts: Sequence[Mapping[str, Any]], targets: Sequence[float] = (0.01, 0.05)) -> Iterator[Finding]:
    humans: Counter[str] = Counter()
    generators: Counter[str] = Counter()
    for row in counts:
        humans[row["split"]] += row["rows"] * (row["label"] == 0)
        if row["label"] == 1 and row["generator"]:
            generators[row["generator"]] += row["rows"]
    for split, purpose in (("calibration", "set a threshold for"), ("test", "measure")):
        needs = [
            f"{texts_needed(t)} to {purpose} an FPR of {t:.0%}" for t in targets if humans[split] < texts_needed(t)
        ]
        if needs:
            yield Finding("size", f"the {split} split has {humans[split]} human texts; it takes {' and '.join(needs)}")
    few = [f"{name} ({rows})" for name, rows in reversed(generators.most_common()) if rows < MIN_GENERATOR_ROWS]
    if few:
        yield Finding(
            "size",
            f"{len(few)} of {len(generators)} generators have fewer than {MIN_GENERATOR_ROWS} texts: {_shown(few)}. "
            f"Metrics by generator are noisy there",
        )


def _group_findings(largest_groups: Mapping[str, tuple[int, float]]) -> Iterator[Finding]:
    for split, (groups, fraction) in largest_groups.items():
        if fraction >= MAX_GROUP_FRACTION:
            yield Finding(
                "groups",
                f"one of {groups} groups holds {fraction:.0%} of the {split} split: metrics vary more from group to "
                f"group than an interval over texts shows",
            )


def _dropped_findings(dropped: Mapping[str, int], rows_read: int) -> Iterator[Finding]:
    for reason, rows in sorted(dropped.items(), key=lambda item: -item[1]):
        if rows > MAX_DROPPED_FRACTION * rows_read and reason not in ("held_out", "over_limit"):  # configured
            advice = f": {_DROP_ADVICE[reason]}" if reason in _DROP_ADVICE else ""
            yield Finding(
                "quarantine",
                f"{rows:,} of {rows_read:,} rows ({rows / rows_read:.0%}) were dropped as {reason!r}{advice}",
            )


def _shown(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
