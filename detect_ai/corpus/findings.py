"""Warnings about a corpus, in words: what was found, and what to do about it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detect_ai.calibration.conformal import texts_needed
from detect_ai.corpus.baseline import SliceScore
from detect_ai.corpus.shortcuts import ALL_FEATURES, PROVENANCE, Audit, FamilyScore, FeatureScore

TELLING_AUROC = 0.70  # from here on one feature is worth a warning
EASY_AUROC = 0.97  # of the bag of words, or of all trivial features
CLEARLY_MORE = 0.02  # AUROC by which a sum must beat its parts to be worth words
MORE_ACCUSED = 0.15  # of a slice's human texts, where 5% of all are called AI
MIN_HUMANS = 50  # in a slice, before that is said of it
FEW_ROWS = 100  # of a generator
LARGE_GROUP = 0.20  # of the texts of a split
LARGE_REASON = 0.05  # of the rows read
SHOWN = 5  # names in a warning
NOTE = "note"  # about something that needs no action

_ADVICE = {
    "length": "balance lengths (corpus.balance=weight) or the detector will learn them",
    "word choice": "add human writers of other ages and schooling, or the detector will learn how these choose words",
    "sentence length": "add sources whose writers differ in it, or the detector will learn it",
    "punctuation": "add sources that punctuate otherwise, or the detector will learn these marks",
    "typography": "make both classes go through the same editor, or the detector will learn it",
    "layout": "bring both classes into the same layout, or the detector will learn it",
    "casing": "look whether one source was lower-cased, or the detector will learn it",
    "digits": "match the subjects of both classes, or the detector will learn it",
    "boilerplate": "corpus.boilerplate=remove cuts such phrases away, corpus.boilerplate=drop their texts",
    "openings": "vary prompts and generators, or cut what all answers to one prompt begin with",
    "endings": "look whether the texts of one class are cut off, and cut both alike",
}
_REASONS = {
    "bad_row": "the file is damaged, or its format is not the one configured",
    "bad_encoding": "convert the files to UTF-8",
    "no_text": "check corpus.sources[].text",
    "no_label": "check corpus.sources[].label",
    "too_short": "corpus.min_words drops them",
    "too_long": "corpus.max_chars drops them",
    "language": "corpus.language drops them; see in the quarantine whether it is right",
    "boilerplate": "corpus.boilerplate drops them",
    "both_labels": "the same text is called human and AI: the labels of a source are wrong",
    "duplicate": "a source holds its texts several times, or two sources share them",
    "near_duplicate": "a source holds its texts in several versions; corpus.near_duplicates=group would keep them",
    "contaminated": "an evaluation set shares texts with the sources: who trained on them before got false figures",
    "leak": "fixed splits of the sources share groups or near duplicates",
    "balance": "corpus.balance=weight keeps them and weighs them instead",
}
_ASKED_FOR = {"held_out", "over_limit"}  # by the configuration, in these numbers


@dataclass(frozen=True)
class Finding:
    """One warning: what it is about, in a word, and a sentence or two."""

    about: str
    text: str


def all_findings(
    audit: Audit, counts: Sequence[Mapping[str, Any]], dropped: Mapping[str, int], rows_read: int
) -> list[Finding]:
    """Every warning, the gravest kind first.

    Args:
        audit: of a sample of the corpus.
        counts: `rows` of the whole corpus by split, label, source, domain and generator.
        dropped: rows by reason.
        rows_read: before anything was dropped.
    """
    return [
        *of_provenance(audit, counts),
        *of_shortcuts(audit),
        *of_baseline(audit.baseline, audit.slices),
        *of_sizes(counts),
        *of_groups(audit.largest_groups),
        *of_quarantine(dropped, rows_read),
    ]


def of_provenance(audit: Audit, counts: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Sources and domains that give the label away, and those that hold one class."""
    for feature in audit.features:
        if feature.family == "provenance" and feature.auroc >= TELLING_AUROC:
            text = (
                f"{feature.name} alone gives AUROC {feature.auroc:.2f}, so the label can be read off where a text "
                f"comes from: add {feature.name}s that hold both classes"
            )
            yield Finding("provenance", text)
    for column in PROVENANCE:
        by_label = _by_label(counts, column)
        single = [name for name, (human, ai) in by_label.items() if not (human and ai)]
        if single:
            parts = [f"{_names(names)} only {label} texts" for names, label in _sides(by_label, single)]
            yield Finding(
                "provenance",
                f"{len(single)} of {len(by_label)} {column}s hold one class only: {'; '.join(parts)}. A detector may "
                f"learn the {column} instead of the class",
            )


def of_shortcuts(audit: Audit) -> Iterator[Finding]:
    """One warning a family of features that tells the classes apart, alone or together; and one for the sum of all."""
    together = {family.family: family for family in audit.families}
    by_family = defaultdict(list)
    for feature in audit.features:
        if feature.family != "provenance":
            by_family[feature.family].append(feature)
    scored = [_shortcut(features, together.get(family)) for family, features in by_family.items()]
    found = sorted(filter(None, scored), key=lambda pair: -pair[0])
    everything = together[ALL_FEATURES].normalised
    if everything >= max([EASY_AUROC, *(score + CLEARLY_MORE for score, _ in found)]):
        text = (
            f"all trivial features together give AUROC {everything:.2f} on normalised texts, without reading a word: "
            "what a detector reaches here it may owe to them"
        )
        yield Finding("shortcut", text)
    yield from (finding for _, finding in found)


def _shortcut(features: Sequence[FeatureScore], together: FamilyScore | None) -> tuple[float, Finding] | None:
    telling = [feature for feature in features if feature.auroc >= TELLING_AUROC]
    sum_of_all = together if together and together.auroc >= TELLING_AUROC else None
    if not (telling or sum_of_all):
        return None
    family = features[0].family
    scores, parts = [], []
    if telling:
        names = ", ".join(f"{f.name} {f.auroc:.2f}{_higher(f)}" for f in telling[1:])
        others = f" (also {names})" if names else ""
        first = telling[0]
        parts.append(f"{family} alone ({first.name}) gives AUROC {first.auroc:.2f}{_higher(first)}{others}")
        scores += [(f.auroc, f.normalised or 0.0) for f in telling]
    if sum_of_all and sum_of_all.auroc > max([score for score, _ in scores], default=0.0) + CLEARLY_MORE:
        parts.append(f"the {len(features)} features of {family} together give AUROC {sum_of_all.auroc:.2f}")
        scores.append((sum_of_all.auroc, sum_of_all.normalised))
    left = max(after for _, after in scores)
    about, advice = "shortcut", _ADVICE[family]
    if left < TELLING_AUROC:
        about = NOTE
        advice = f"the normaliser takes it away before the detector reads (AUROC {left:.2f} after it): nothing to do"
    return max(score for score, _ in scores), Finding(about, f"{'; '.join(parts)}: {advice}")


def _higher(feature: FeatureScore) -> str:
    return f", higher in {'AI' if feature.higher_in == 'ai' else 'human'} texts" if feature.higher_in else ""


def of_baseline(baseline: SliceScore, slices: Iterable[SliceScore]) -> Iterator[Finding]:
    """An easy corpus, and human texts that a simple classifier takes for AI far more often than others."""
    if baseline.auroc is not None and baseline.auroc >= EASY_AUROC:
        text = (
            f"TF-IDF and logistic regression reach AUROC {baseline.auroc:.3f}: the classes differ in their words, and "
            "a good figure here promises little elsewhere. Test on other domains and generators (corpus.holdout)"
        )
        yield Finding("baseline", text)
    for each in slices:
        if each.called_ai is not None and each.called_ai >= MORE_ACCUSED and each.n_human >= MIN_HUMANS:
            text = (
                f"where the baseline calls 5% of all human texts AI, it calls {each.called_ai:.0%} of the "
                f"{each.n_human} of {each.column} {each.value!r} so: add human texts like these"
            )
            yield Finding("baseline", text)


def of_sizes(counts: Sequence[Mapping[str, Any]], targets: Sequence[float] = (0.01, 0.05)) -> Iterator[Finding]:
    """Splits with too few human texts for a target FPR, and generators with few texts."""
    humans = _totals((row["split"], row["rows"]) for row in counts if row["label"] == 0)
    for split, what in (("calibration", "set a threshold for"), ("test", "measure")):
        short = [target for target in targets if humans.get(split, 0) < texts_needed(target)]
        if short:
            needs = " and ".join(f"{texts_needed(target)} to {what} an FPR of {target:.0%}" for target in short)
            yield Finding("size", f"the {split} split has {humans.get(split, 0)} human texts; it takes {needs}")
    sizes = _totals((row["generator"], row["rows"]) for row in counts if row["label"] == 1 and row["generator"])
    few = {name: rows for name, rows in sizes.items() if rows < FEW_ROWS}
    if few:
        shown = [f"{name} ({rows})" for name, rows in sorted(few.items(), key=lambda item: item[1])]
        yield Finding(
            "size",
            f"{len(few)} of {len(sizes)} generators have fewer than {FEW_ROWS} texts: {_names(shown)}. Figures by "
            "generator are noise there",
        )


def of_groups(largest_groups: Mapping[str, tuple[int, float]]) -> Iterator[Finding]:
    """Splits that hang on one group."""
    large = {split: found for split, found in largest_groups.items() if found[1] >= LARGE_GROUP}
    if large:
        parts = [f"{share:.0%} of {split} (of {groups} groups)" for split, (groups, share) in large.items()]
        yield Finding(
            "groups",
            f"one group holds {', '.join(parts)}: figures there vary from group to group more than an interval over "
            "texts shows",
        )


def of_quarantine(dropped: Mapping[str, int], rows_read: int) -> Iterator[Finding]:
    """Reasons that took a large share of the rows."""
    for reason, rows in sorted(dropped.items(), key=lambda item: -item[1]):
        if rows > LARGE_REASON * rows_read and reason not in _ASKED_FOR:
            cause = f": {_REASONS[reason]}" if reason in _REASONS else ""
            yield Finding(
                "quarantine", f"{rows:,} of {rows_read:,} rows ({rows / rows_read:.0%}) fell for '{reason}'{cause}"
            )


def _by_label(counts: Sequence[Mapping[str, Any]], column: str) -> dict[str, tuple[int, int]]:
    """Human and AI rows of each value of a column that is not empty."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in counts:
        if row[column]:
            found[row[column]][row["label"]] += row["rows"]
    return {name: (human, ai) for name, (human, ai) in found.items()}


def _sides(by_label: Mapping[str, tuple[int, int]], single: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    for label, word in enumerate(("human", "AI")):
        names = [name for name in single if by_label[name][label]]
        if names:
            yield names, word


def _totals(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for name, rows in pairs:
        found[name] += rows
    return dict(found)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
