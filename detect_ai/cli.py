"""The command `detect-ai`: verdicts of files, by a bundle on this machine or by a service."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import textwrap
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detect_ai import __version__, wording
from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.schemas import Label, ModelInfo, Verdict

if TYPE_CHECKING:
    from detect_ai.client import Client

TEXT_SUFFIXES = ("", ".txt", ".text", ".md", ".markdown")
DOCUMENT_SUFFIXES = (".docx", ".pdf")
MAX_BYTES = 20_000_000  # of a text
STDIN = "-"
WIDTH = 100
DONE, FAILED, BAD_INPUT, AI, UNCERTAIN, INTERRUPTED = 0, 1, 2, 3, 4, 128 + signal.SIGINT
EXIT_CODES = """\
exit codes:
  0  nothing is called AI
  1  something else failed, such as the service or the connection
  2  bad input or usage: a file that cannot be judged, a wrong option, a damaged bundle, a refused API key
  3  at least one text is called AI
  4  none is called AI, but at least one verdict is uncertain (0 with --uncertain-ok)
  130 interrupted
A failure of one file comes before any verdict of another: 2 says that not all were judged.
"""
ENVIRONMENT = """\
environment:
  DETECT_AI_URL      the service, where neither --bundle nor --url is given
  DETECT_AI_API_KEY  the key for it; on the command line other users of the machine could read it
"""
# Without a response, or when a service says this of one file, the next one may be judged.
OF_ONE_FILE = (None, 400, 413, 415, 422)


class Judged(NamedTuple):
    """A verdict, and the text that its spans are offsets into."""

    verdict: Verdict
    text: str


Judge = Callable[[str], Judged]  # from the name of a file; raises DetectAIError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code."""
    arguments = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to fail
    try:
        return run(arguments)
    except DetectAIError as error:
        complain(str(error))
        return BAD_INPUT if isinstance(error, InputError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more; Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    source = argparse.ArgumentParser(add_help=False)
    one_of = source.add_mutually_exclusive_group()
    one_of.add_argument("--bundle", type=Path, metavar="PATH", help="a bundle on this machine")
    one_of.add_argument("--url", metavar="URL", help="a service, such as http://127.0.0.1:8000")
    source.add_argument("--json", action="store_true", help="JSON in place of words, on one line each")
    page: dict[str, Any] = {
        "epilog": f"{EXIT_CODES}\n{ENVIRONMENT}",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    made = argparse.ArgumentParser("detect-ai", description="Does a text read as if AI wrote it?", **page)
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = made.add_subparsers(dest="command", required=True)
    about = "Judge files: txt and md; docx and pdf by a service only."
    check = commands.add_parser("check", parents=[source], help="judge files", description=about, **page)
    check.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for the standard input")
    check.add_argument(
        "--target-fpr", type=float, metavar="RATE", help="one that `detect-ai model` lists, such as 0.05"
    )
    check.add_argument("--spans", action="store_true", help="show the probability of each sentence, too")
    check.add_argument("--uncertain-ok", action="store_true", help="exit with 0 where verdicts are uncertain")
    about = "Tell of the model, its thresholds and limits."
    commands.add_parser("model", parents=[source], help=about[0].lower() + about[1:-1], description=about, **page)
    return made


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments say. Returns the exit code. Raises DetectAIError."""
    is_check = arguments.command == "check"
    if arguments.bundle is not None:
        return check(by_bundle(arguments), arguments) if is_check else tell(bundle_info(arguments.bundle), arguments)
    if not (arguments.url or os.environ.get("DETECT_AI_URL")):
        raise InputError("no detector: give --bundle PATH or --url URL, or set DETECT_AI_URL")
    from detect_ai.client import Client

    with Client(arguments.url) as client:
        return check(by_service(client, arguments), arguments) if is_check else tell(client.model(), arguments)


def tell(info: ModelInfo, arguments: argparse.Namespace) -> int:
    """Tell of a model."""
    if arguments.json:
        say(info.model_dump_json())
    else:
        show_lines(wording.description(info), indent="")
    return DONE


def bundle_info(folder: Path) -> ModelInfo:
    """What a bundle says of itself; its weights are not loaded."""
    from detect_ai.detector.bundle import read_spec
    from detect_ai.detector.model_info import model_info

    return model_info(read_spec(folder), {})


def by_bundle(arguments: argparse.Namespace) -> Judge:
    """Judge on this machine."""
    from detect_ai.detector.detector import Detector

    detector = Detector.load(arguments.bundle)
    target = detector.check_target(arguments.target_fpr)

    def judge(name: str) -> Judged:
        if is_document(name):
            raise InputError("docx and pdf are read by a service only: give --url, or save it as txt")
        text = read_text(name)
        [verdict] = detector.detect([text], target, arguments.spans)
        return Judged(verdict, text)

    return judge


def by_service(client: Client, arguments: argparse.Namespace) -> Judge:
    """Judge by a service."""

    def judge(name: str) -> Judged:
        if is_document(name):
            [found] = client.detect_files([name], arguments.target_fpr, arguments.spans, return_text=arguments.spans)
            if found.verdict is None:
                raise InputError(found.problem.detail if found.problem else "there is no verdict")
            return Judged(found.verdict, found.text or "")
        text = read_text(name)
        return Judged(client.detect(text, arguments.target_fpr, arguments.spans), text)

    return judge


def check(judge: Judge, arguments: argparse.Namespace) -> int:
    """Judge every file, and show it at once. Returns the exit code."""
    labels, failed = set(), False
    for name in arguments.files:
        try:
            judged = judge(name)
        except InputError as error:
            if getattr(error, "status", None) not in OF_ONE_FILE:
                raise
            failed = True
            show_failure(name, error, arguments.json)
            continue
        labels.add(judged.verdict.label)
        show(name, judged, arguments.json)
    if labels and not arguments.json:
        show_lines([wording.WARNING], indent="")
    return exit_code(labels, failed, arguments.uncertain_ok)


def exit_code(labels: set[Label], failed: bool, uncertain_ok: bool) -> int:
    """What the verdicts of all files come to."""
    if failed:
        return BAD_INPUT
    if Label.AI in labels:
        return AI
    return UNCERTAIN if Label.UNCERTAIN in labels and not uncertain_ok else DONE


def is_document(name: str) -> bool:
    """Whether a file is one that a service takes apart."""
    return Path(name).suffix.lower() in DOCUMENT_SUFFIXES


def read_text(name: str) -> str:
    """The text of a file, or of the standard input. Raises InputError."""
    if name != STDIN and Path(name).suffix.lower() not in TEXT_SUFFIXES:
        raise InputError("expected txt or md, or docx and pdf by a service: save it as txt")
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if name == STDIN else read_bytes(Path(name))
    except OSError as error:
        raise InputError(error.strerror or type(error).__name__) from None
    if len(data) > MAX_BYTES:
        raise InputError(f"longer than {MAX_BYTES:,} bytes: give it in pieces")
    try:
        text = data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (the byte at {error.start}): save it as UTF-8 text") from None
    if "\0" in text:
        raise InputError("no text, but a file of another kind: save it as txt")
    if not text.strip():
        raise InputError("there is no text in it")
    return text


def read_bytes(path: Path) -> bytes:
    """The beginning of a file, one byte more than is allowed at most."""
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def show(name: str, judged: Judged, as_json: bool) -> None:
    """One file's verdict."""
    verdict, text = judged
    if as_json:
        say(json.dumps({"file": name, "verdict": verdict.model_dump(mode="json"), "error": None}))
        return
    say(f"{wording.printable(name)}: {wording.headline(verdict)}")
    show_lines(wording.explanation(verdict))
    show_lines(wording.sentences(text, verdict))
    say("")


def show_failure(name: str, error: DetectAIError, as_json: bool) -> None:
    """Why one file has no verdict."""
    complain(f"{wording.printable(name)}: {error}")
    if as_json:
        say(json.dumps({"file": name, "verdict": None, "error": str(error)}))


def show_lines(lines: Sequence[str], indent: str = "  ") -> None:
    """Lines within the width of a page."""
    for line in lines:
        say(textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent))


def say(line: str) -> None:
    """Write a line that is seen at once, also through a pipe."""
    print(line, flush=True)  # noqa: T201


def complain(message: str) -> None:
    """Say what went wrong, apart from the results."""
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
