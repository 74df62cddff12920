"""Commands that use a detector (a local bundle or a service): verdicts for files, and model information."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from detect_ai.cli import AI, BAD_INPUT, OK, UNCERTAIN, print_error, print_line, printable
from detect_ai.core.errors import InputError
from detect_ai.schemas import Label, Reason, Reference, Verdict
from detect_ai.text.characters import is_blank
from detect_ai.text.file_type import DESCRIPTIONS, TEXT, decode_text, file_type

if TYPE_CHECKING:
    from detect_ai.client import Client, DetectOptions

TEXT_SUFFIXES = ("", ".txt", ".text", ".md", ".markdown")
DOCUMENT_SUFFIXES = (".docx", ".pdf")
MAX_BYTES = 20_000_000
STDIN = "-"
WIDTH = 100
MOSTLY_PROSE = 0.9  # from this fraction on, the content is not shown
WARNING = (
    "A score is not proof. Human texts can score high too, in particular texts by non-native speakers, formal texts "
    "and kinds of text that the model was not trained on. Do not use a score as the only evidence against a person: "
    "talk to them, and look at drafts and sources."
)
LABELS = {Label.HUMAN: "No sign of AI", Label.AI: "Likely AI-generated", Label.UNCERTAIN: "Uncertain"}
# Errors without a status (local) or with one of these concern a single file; the next file can still be read.
FILE_ERRORS = (None, 400, 413, 415, 422)
Predict = Callable[[str], tuple[Verdict, str]]  # takes a file name, returns verdict and text; raises DetectAIError


def check(arguments: argparse.Namespace) -> int:
    """Print predictions for files with a bundle or a service. Returns the exit code."""
    if arguments.bundle is not None:
        return check_files(bundle_predictor(arguments), arguments)
    with connect(arguments.url) as client:
        return check_files(service_predictor(client, arguments), arguments)


def print_model(arguments: argparse.Namespace) -> int:
    """Print information about a bundle (without loading its weights) or a service. Returns the exit code."""
    if arguments.bundle is None:
        with connect(arguments.url) as client:
            info = client.model()
    else:
        from detect_ai.detector.bundle import read_spec
        from detect_ai.detector.model_info import model_info

        info = model_info(read_spec(arguments.bundle), {})
    print_line(info.model_dump_json(indent=2))
    return OK


def connect(url: str | None) -> Client:
    """A client of a service. Raises InputError if there is no address."""
    from detect_ai.client import Client

    if not (url or os.environ.get("DETECT_AI_URL")):
        raise InputError("no detector: give --bundle PATH or --url URL, or set DETECT_AI_URL")
    return Client(url)


def bundle_predictor(arguments: argparse.Namespace) -> Predict:
    """A function that predicts with a local bundle."""
    from detect_ai.detector.detector import Detector

    detector = Detector.load(arguments.bundle)
    target_fpr, prevalence = detector.check_target(arguments.target_fpr), arguments.prevalence
    detector.check_prevalence(prevalence)

    def predict(name: str) -> tuple[Verdict, str]:
        if is_document(name):
            raise InputError("docx and pdf are supported by a service only: give --url, or save it as txt")
        text = read_text(name)
        [verdict] = detector.detect([text], target_fpr, arguments.spans, prevalence)
        return verdict, text

    return predict


def service_predictor(client: Client, arguments: argparse.Namespace) -> Predict:
    """A function that predicts with a service."""
    spans, prevalence = arguments.spans, arguments.prevalence
    options: DetectOptions = {"target_fpr": arguments.target_fpr, "prevalence": prevalence, "return_spans": spans}

    def predict(name: str) -> tuple[Verdict, str]:
        if not is_document(name):
            text = read_text(name)
            return client.detect(text, **options), text
        [file] = client.detect_files([name], **options, return_text=spans)
        if file.verdict is None:
            raise InputError(file.problem.detail if file.problem else "the service returned no verdict")
        return file.verdict, file.text or ""

    return predict


def check_files(predict: Predict, arguments: argparse.Namespace) -> int:
    """Print the prediction for each file. Returns the exit code."""
    labels: set[Label | None] = set()  # None: a file failed
    for name in arguments.files:
        verdict, text, message = None, "", None
        try:
            verdict, text = predict(name)
        except InputError as error:
            if getattr(error, "status", None) not in FILE_ERRORS:
                raise
            message = str(error).removeprefix(f"{name}: ")
            print_error(f"{printable(name)}: {message}")
        labels.add(verdict.label if verdict else None)
        if arguments.json:
            file = name.encode(errors="replace").decode()  # strict parsers reject unpaired surrogates
            values = verdict and verdict.model_dump(mode="json")
            print_line(json.dumps({"file": file, "verdict": values, "error": message}))
        elif verdict:
            reasons = ", ".join(reason.replace("_", " ") for reason in verdict.reasons)
            print_line(f"{printable(name)}: {LABELS[verdict.label]}{f': {reasons}' if reasons else ''}")
            for line in explanation(text, verdict):
                print_line(textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="  "))
            print_line("")
    if labels != {None} and not arguments.json:
        print_line(textwrap.fill(WARNING, WIDTH))
    if None in labels:
        return BAD_INPUT
    if Label.AI in labels:
        return AI
    return UNCERTAIN if Label.UNCERTAIN in labels and not arguments.uncertain_ok else OK


def is_document(name: str) -> bool:
    """Whether a file needs a service to extract its text."""
    return Path(name).suffix.lower() in DOCUMENT_SUFFIXES


def read_text(name: str) -> str:
    """Read a text file, or standard input. Raises InputError."""
    if name == STDIN and sys.stdin is None:
        raise InputError("standard input is closed")
    if name != STDIN and Path(name).suffix.lower() not in TEXT_SUFFIXES:
        raise InputError("expected txt or md, or docx and pdf with a service: save it as txt")
    try:
        with sys.stdin.buffer if name == STDIN else Path(name).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: standard input was read before
        raise InputError(getattr(error, "strerror", None) or str(error)) from None
    if len(content) > MAX_BYTES:
        raise InputError(f"longer than {MAX_BYTES:,} bytes: split it")
    if (kind := file_type(content)) != TEXT:
        raise InputError(f"expected plain text, found {DESCRIPTIONS[kind]}: save it as txt")
    text = decode_text(content)
    if is_blank(text):
        raise InputError("no text found")
    return text


def error_rate(verdict: Verdict) -> str:
    """How many human texts are labelled AI, and for which texts this holds."""
    # Null only where `reasons` make the label `uncertain`.
    assert verdict.fpr_upper_bound is not None
    assert verdict.confidence is not None
    bound, confidence = out_of_100(verdict.fpr_upper_bound), f"{percent(verdict.confidence)} confidence"
    if verdict.compared_with is Reference.NEW_DOMAIN:
        rate = f"of a kind of writing that it has never seen, the detector labels up to {bound} human texts AI"
        return f"{rate} (with {confidence}; most like this text: {verdict.nearest_domain})."
    if verdict.compared_with is Reference.POPULATION:
        rate = (
            f"the detector was set for one population ({verdict.nearest_domain}), of whose human texts it labels up to"
        )
        return f"{rate} {bound} AI (with {confidence}). For other writers this does not hold."
    return f"of texts like the {verdict.num_compared} human calibration texts, it labels up to {bound} AI."


def explanation(text: str, verdict: Verdict) -> list[str]:
    """One line per statement, then the scored sentences; no probability for a text that is out of scope."""
    if verdict.label is Label.AI:
        lines = [f"It may still be human: {error_rate(verdict)}"]
    elif verdict.label is Label.HUMAN:
        lines = ["No evidence of AI was found. AI texts can be missed, in particular edited ones."]
    else:
        lines = ["The detector abstains: a wrong verdict would be worse than none."]
    if all(reason is Reason.BETWEEN_THRESHOLDS for reason in verdict.reasons):
        if verdict.compared_with is Reference.NEW_DOMAIN:
            share = f"up to {out_of_100(verdict.p_value)}" if verdict.p_value < 1 else "more than half of the"
            reached = f"Of a kind of writing that it has never seen, {share} human texts may score this high."
        else:
            of = "Of that population" if verdict.compared_with is Reference.POPULATION else "In calibration"
            reached = f"{of}, {out_of_100(verdict.p_value)} human texts scored this high or higher "
            reached += f"(n = {verdict.num_compared})."
        lines += [
            reached,
            f"Probability of AI: {percent(verdict.probability)}, if {out_of_100(verdict.prevalence)} texts are AI. "
            f"Labelled AI at {percent(verdict.threshold)} or higher.",
        ]
    if verdict.label is Label.AI and verdict.ppv is not None:
        right = out_of_100(verdict.ppv)
        lines.append(f"If {out_of_100(verdict.prevalence)} texts are AI, {right} texts labelled AI are really AI.")
    if verdict.content.get("prose", 1) < MOSTLY_PROSE:
        kinds = sorted(verdict.content.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{percent(fraction)} {kind.replace('_', ' ')}" for kind, fraction in kinds)
        lines.append(f"Read as: {parts}.")
    if verdict.tampering:
        counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in verdict.tampering.items())
        lines.append(
            f"Characters removed or replaced before reading: {counts}. Copying can cause this, and so can manipulation."
        )
    windows = "one window" if verdict.num_windows == 1 else f"{verdict.num_windows} windows"
    lines.append(f"Read in full: {verdict.num_tokens} tokens in {windows}. Model {verdict.model_version}.")
    if verdict.spans and not verdict.reasons:
        lines.append(
            f"Sentences that are more likely AI than human make up {percent(verdict.ai_fraction or 0)} of the text. "
            "Each is scored with its neighbours; a single sentence is weak evidence:"
        )
        lines += [f"{percent(s.probability):>9}  {printable(text[s.start : s.end])}" for s in verdict.spans]
    return lines


def percent(fraction: float) -> str:
    """A fraction as a percentage; close to 0 or 1 as a bound, not as certainty."""
    value = 100 * fraction
    if 0 < value < 1:
        return "under 1%"
    return "over 99%" if 99 < value < 100 else f"{value:.0f}%"


def out_of_100(fraction: float) -> str:
    """A fraction as a natural frequency: 3 of 100."""
    value = 100 * fraction
    return f"{round(value, 1) if value < 10 else round(value):g} of 100"
