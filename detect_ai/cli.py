"""Command line interface `detect-ai`: verdicts of files, from a local bundle or a service; checks of a storage root."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect_ai import __version__
from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.schemas import Label, Reason, Reference, Verdict
from detect_ai.text.file_type import DESCRIPTIONS, TEXT, decode_text, file_type
from detect_ai.text.normalize import is_blank

if TYPE_CHECKING:
    from detect_ai.client import Client, DetectOptions

TEXT_SUFFIXES = ("", ".txt", ".text", ".md", ".markdown")
DOCUMENT_SUFFIXES = (".docx", ".pdf")
MAX_BYTES = 20_000_000
STDIN = "-"
WIDTH = 100
MOSTLY_PROSE = 0.9  # from here on, the content is not shown
OK, FAILED, BAD_INPUT, AI, UNCERTAIN, INTERRUPTED = 0, 1, 2, 3, 4, 128 + signal.SIGINT
EPILOG = """\
exit codes:
  0  no text is labelled AI
  1  other failure, such as the service or the connection
  2  bad input or usage: an unreadable file, an invalid option, a damaged bundle, a refused API key
  3  at least one text is labelled AI
  4  none is labelled AI, but at least one verdict is uncertain (0 with --uncertain-ok)
  130 interrupted
`registry verify` returns 1 if it finds a problem.
A failed file takes precedence over the verdicts of the others: 2 means that not all files have a verdict.

environment:
  DETECT_AI_URL      address of the service if neither --bundle nor --url is given
  DETECT_AI_API_KEY  its API key; other users of the machine could read it on the command line
  DETECT_AI_STORAGE_ROOT  the storage root if --root is not given
"""
WARNING = (
    "A score is not proof. Human texts can score high too, in particular texts by non-native speakers, formal texts "
    "and kinds of text that the model was not trained on. Do not use a score as the only evidence against a person: "
    "talk to them, and look at drafts and sources."
)
LABELS = {Label.HUMAN: "No sign of AI", Label.AI: "Likely AI-generated", Label.UNCERTAIN: "Uncertain"}
# Without a status (local), or with one of these, the error is about one file and the next one can be read.
FILE_ERRORS = (None, 400, 413, 415, 422)
Predict = Callable[[str], tuple[Verdict, str]]  # file name to verdict and text; raises DetectAIError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack a character
    try:
        return run(arguments)
    except DetectAIError as error:
        print_error(str(error))
        return BAD_INPUT if isinstance(error, InputError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # Standard output is closed or full; Python would report it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print_error(error.strerror or type(error).__name__)
        return FAILED


def build_parser() -> argparse.ArgumentParser:
    """The command line options."""
    source = argparse.ArgumentParser(add_help=False)
    group = source.add_mutually_exclusive_group()
    group.add_argument("--bundle", type=Path, metavar="PATH", help="a local bundle")
    group.add_argument("--url", metavar="URL", help="a service, such as http://127.0.0.1:8000")
    page: dict[str, Any] = {"epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("detect-ai", description="Detect AI-generated text.", **page)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add = parser.add_subparsers(dest="command", required=True).add_parser
    description = "Predict whether files are AI-generated: txt and md; docx and pdf with a service."
    check = add("check", parents=[source], help="detect AI-generated text in files", description=description, **page)
    check.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for standard input")
    check.add_argument("--target-fpr", type=float, metavar="RATE", help="one listed by `detect-ai model`, such as 0.05")
    prevalence = "fraction of AI texts that probabilities assume, such as 0.05"
    check.add_argument("--prevalence", type=float, metavar="FRACTION", help=prevalence)
    check.add_argument("--spans", action="store_true", help="print the probability of each sentence")
    check.add_argument("--json", action="store_true", help="print JSON, one line per file")
    check.add_argument("--uncertain-ok", action="store_true", help="exit with 0 for uncertain verdicts")
    description = "Print the model, its thresholds, their error rates and the limits of a request as JSON."
    add("model", parents=[source], help="print model information", description=description, **page)
    root = argparse.ArgumentParser(add_help=False)
    default = os.environ.get("DETECT_AI_STORAGE_ROOT", "")
    root.add_argument("--root", default=default, metavar="ROOT", help="storage root; default: DETECT_AI_STORAGE_ROOT")
    description = (
        "Print who published, rolled back, deployed or changed API keys: one JSON line per event, oldest first."
    )
    add("audit", parents=[root], help="print the audit log", description=description)
    registry = add("registry", help="check the published versions").add_subparsers(required=True)
    description = (
        "Hash all versions again and check the champion with its history. Prints a line per problem and a JSON summary."
    )
    description = "Delete what the prediction log holds of a request: its rows, its texts and the labels given to it."
    erase = add("erase", parents=[root], help="delete a request from the prediction log", description=description)
    erase.add_argument("request_id", metavar="REQUEST_ID", help="that of the response with the verdict")
    erase.add_argument("--feedback-url", default="", metavar="URL", help="monitoring.feedback_url of the service")
    registry.add_parser("verify", parents=[root], help="find damaged versions and records", description=description)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Run the selected command. Returns the exit code. Raises DetectAIError."""
    if arguments.command in ("audit", "registry", "erase"):
        return manage_root(arguments)
    is_check = arguments.command == "check"
    if arguments.bundle is not None and is_check:
        return check_files(bundle_predictor(arguments), arguments)
    if arguments.bundle is not None:  # without loading its weights
        from detect_ai.detector.bundle import read_spec
        from detect_ai.detector.model_info import model_info

        print_line(model_info(read_spec(arguments.bundle), {}).model_dump_json(indent=2))
        return OK
    if not (arguments.url or os.environ.get("DETECT_AI_URL")):
        raise InputError("no detector: give --bundle PATH or --url URL, or set DETECT_AI_URL")
    from detect_ai.client import Client

    with Client(arguments.url) as client:
        if is_check:
            return check_files(service_predictor(client, arguments), arguments)
        print_line(client.model().model_dump_json(indent=2))
    return OK


def manage_root(arguments: argparse.Namespace) -> int:
    """Print the audit log of a storage root, verify its registry, or erase a request from its prediction log."""
    from detect_ai.core import audit_log
    from detect_ai.core.storage import Storage

    if not arguments.root:
        raise InputError("no storage root: give --root ROOT, or set DETECT_AI_STORAGE_ROOT")
    storage = Storage(arguments.root)
    folder = {"audit": audit_log.FOLDER, "registry": "registry", "erase": "monitoring"}[arguments.command]
    if not storage.list(folder):
        raise InputError(f"{storage.root}: there is no folder {folder}/ in it: expected the storage root of the jobs")
    if arguments.command == "audit":
        for event in audit_log.events(storage):
            print_line(json.dumps(event))
        return OK
    if arguments.command == "erase":
        from detect_ai.core.config import MonitoringConfig
        from detect_ai.monitoring import prediction_log
        from detect_ai.monitoring.feedback import Feedback

        feedback = Feedback(storage, MonitoringConfig(feedback_url=arguments.feedback_url))
        rows = prediction_log.erase(storage, arguments.request_id)
        erased = {"rows": rows, "labels": feedback.erase(arguments.request_id)}
        audit_log.record(storage, "erase", **erased)  # without the id: it is what was to be forgotten
        print_line(json.dumps(erased))
        return OK
    from detect_ai.detector.registry import Registry

    result = Registry(storage).verify()
    for problem in result["problems"]:
        print_line(printable(problem))
    print_line(json.dumps({**result, "problems": len(result["problems"])}))
    return FAILED if result["problems"] else OK


def bundle_predictor(arguments: argparse.Namespace) -> Predict:
    """Predict with a local bundle."""
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
    """Predict with a service."""
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
    """Predict and print each file. Returns the exit code."""
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
            file = name.encode(errors="replace").decode()  # strict parsers refuse unpaired surrogates
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
    """How many human texts are labelled AI, and which ones that holds for."""
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


def printable(text: str) -> str:
    """A text on one line, with control and direction characters replaced, which could manipulate a terminal."""
    line = " ".join(text.split())
    line = "".join("\ufffd" if unicodedata.category(char) in ("Cc", "Cf") else char for char in line)
    return line.encode(errors="replace").decode()


def print_line(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)  # noqa: T201


def print_error(message: str) -> None:
    """Print an error to standard error."""
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
