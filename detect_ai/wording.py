"""Verdicts in words, for people who read a terminal. Pure."""

from __future__ import annotations

import unicodedata

from detect_ai.schemas import CategoryInfo, Label, ModelInfo, Reason, Verdict

WARNING = (
    "A score is no proof. Human writing gets high scores too, and more often when the writer is not a native speaker, "
    "the text is formal, or it is of a kind that the model has not seen. Never judge a person by a score alone: talk "
    "to them, and look at drafts and sources."
)
_LABELS = {Label.HUMAN: "No sign of AI", Label.AI: "Likely AI-generated", Label.UNCERTAIN: "Can't tell"}
_REASONS = {
    Reason.TOO_SHORT: "too short",
    Reason.OTHER_SCRIPT: "not in Latin letters",
    Reason.OTHER_LANGUAGE: "in another language than the model reads",
    Reason.MOSTLY_CODE: "mostly code",
    Reason.MOSTLY_TABLES: "mostly tables or numbers",
    Reason.MOSTLY_QUOTATIONS: "mostly quotations",
    Reason.BETWEEN_THRESHOLDS: "between what is usual for human and for AI texts",
}
_TAMPERING = {
    "invisible": "invisible characters",
    "homoglyph": "letters of another alphabet that look Latin",
    "lookalike_form": "full-width or decorated letters",
    "filler": "blank fillers",
}


def headline(verdict: Verdict) -> str:
    """The verdict in a few words."""
    reasons = ", ".join(_REASONS[reason] for reason in verdict.reasons)
    return _LABELS[verdict.label] + (f": {reasons}" if reasons else "")


def explanation(verdict: Verdict) -> list[str]:
    """What the verdict means, a sentence or two to a line; no number for a text that cannot be judged."""
    lines = [_meaning(verdict)]
    if all(reason is Reason.BETWEEN_THRESHOLDS for reason in verdict.reasons):
        lines += _numbers(verdict)
    if verdict.tampering:
        found = ", ".join(f"{count} {_TAMPERING.get(kind, kind)}" for kind, count in verdict.tampering.items())
        lines.append(f"Undone before reading: {found}. Some come from copying, some are put in to mislead.")
    windows = "one window" if verdict.num_windows == 1 else f"{verdict.num_windows} windows"
    lines.append(f"All {verdict.num_tokens} tokens were read, in {windows}. Model {verdict.model_version}.")
    return lines


def sentences(text: str, verdict: Verdict) -> list[str]:
    """Each sentence of a judged text after its probability of AI."""
    if verdict.reasons or not verdict.spans:
        return []
    fraction = f"Sentences more likely AI than not make up {percent(verdict.ai_fraction or 0)} of the text. "
    head = f"{fraction}Each is read with its neighbours; one alone says little:"
    return [head, *(f"{percent(s.probability):>9}  {printable(text[s.start : s.end])}" for s in verdict.spans)]


def description(info: ModelInfo) -> list[str]:
    """What a model is, what its thresholds hold and where they hold."""
    corpus, language = info.corpus.get("name", "unknown"), info.language or "any language"
    lines = [
        f"Model {info.model_version}: {info.base_model}, trained on the corpus {corpus} ({language}).",
        f"Thresholds from {info.num_human} human texts; probabilities assume that {out_of_100(info.prevalence)} texts "
        "are AI.",
    ]
    for each in info.thresholds:
        default = " (the default)" if each.target_fpr == info.default_target_fpr else ""
        lines.append(
            f"--target-fpr {each.target_fpr:g}{default}: AI from a probability of {percent(each.probability)}. About "
            f"{out_of_100(each.expected_fpr)} human texts are called AI, with so few texts it could be "
            f"{out_of_100(each.fpr_upper_bound)}. {each.min_tokens} tokens or more."
        )
        lines += [f"  {_compared(category)}" for category in each.categories]
    if info.limits:
        limits = ", ".join(f"{name} {value:,}" for name, value in info.limits.items())
        lines.append(f"Limits of a request: {limits}.")
    return [*lines, info.guarantee]


def _compared(category: CategoryInfo) -> str:
    to = "" if category.max_tokens is None else f" to {category.max_tokens - 1}"
    return (
        f"{category.compared_with or 'texts'} of {category.min_tokens}{to or ' or more'} tokens: from "
        f"{percent(category.probability)}, by {category.num_human} human texts; about "
        f"{out_of_100(category.expected_fpr)}, it could be {out_of_100(category.fpr_upper_bound)}."
    )


def percent(share: float) -> str:
    """A share of 1 as a percentage that never claims to be sure."""
    value = 100 * share
    if 0 < value < 1:
        return "under 1%"
    return "over 99%" if 99 < value < 100 else f"{value:.0f}%"


def out_of_100(share: float) -> str:
    """A share as people read it most safely: 3 of 100."""
    value = 100 * share
    return f"{round(value, 1) if value < 10 else round(value):g} of 100"


def printable(text: str) -> str:
    """A text on one line, without characters that steer a terminal or turn the direction of what follows."""
    shown = "".join(
        "\N{REPLACEMENT CHARACTER}" if _is_steering(letter) else letter for letter in " ".join(text.split())
    )
    return shown.encode(errors="replace").decode()


def _is_steering(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf")


def _meaning(verdict: Verdict) -> str:
    if verdict.label is Label.AI:
        return (
            f"It may be human all the same: of human texts like the {verdict.num_compared} that it was compared with, "
            f"about {out_of_100(verdict.target_fpr)} are called AI, and with so few it could be "
            f"{out_of_100(verdict.fpr_upper_bound)}."
        )
    if verdict.label is Label.HUMAN:
        return "Nothing in it stands out as AI writing. AI texts can pass too, above all edited ones."
    return "The detector does not answer here, and no answer is better than a wrong one."


def _numbers(verdict: Verdict) -> list[str]:
    kind = f" of its kind ({verdict.compared_with})" if verdict.compared_with else ""
    return [
        f"About {out_of_100(verdict.p_value)} human texts{kind} score at least this high, to go by "
        f"{verdict.num_compared} of them.",
        f"Probability of AI: {percent(verdict.probability)}, if {out_of_100(verdict.prevalence)} texts were AI. "
        f"Called AI from {percent(verdict.threshold)}.",
    ]
