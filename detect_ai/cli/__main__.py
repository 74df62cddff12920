"""Entry point and options of `detect-ai`."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detect_ai import __version__
from detect_ai.cli import BAD_INPUT, FAILED, INTERRUPTED, OK, print_error, storage_root, verdicts
from detect_ai.core.errors import DetectAIError, InputError
from detect_ai.core.extras import required

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = build_parser()
    arguments, others = parser.parse_known_args(argv)
    if others and ("overrides" not in arguments or any(other.startswith("-") for other in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:  # settings after the first option that follows a setting
        arguments.overrides += others
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that cannot encode a character
    try:
        with required(arguments.extra):
            code: int = arguments.run(arguments)
    except DetectAIError as error:
        print_error(str(error))
        return BAD_INPUT if isinstance(error, InputError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # Standard output is closed or full. Python would report this again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            where = f"{error.filename}: " if error.filename else ""
            print_error(where + (error.strerror or type(error).__name__))
        return FAILED
    return code


def serve(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM. Returns the exit code."""
    from serve_app import one_process

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if arguments.bundle == "":
        raise InputError(
            "--bundle is empty: expected a folder with detector.json, or a version; is a variable not set?"
        )
    one_process.serve(arguments.bundle or "", arguments.root, arguments.metrics_port, arguments.overrides)
    return OK


def build_parser() -> argparse.ArgumentParser:
    """The command line options; `run` is the function of a command, `extra` the package extra that it needs."""
    source = argparse.ArgumentParser(add_help=False)
    group = source.add_mutually_exclusive_group()
    group.add_argument("--bundle", type=Path, metavar="PATH", help="a local bundle")
    group.add_argument("--url", metavar="URL", help="a service, such as http://127.0.0.1:8000")
    page: dict[str, Any] = {"epilog": EPILOG, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser("detect-ai", description="Detect AI-generated text.", **page)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add = parser.add_subparsers(required=True).add_parser
    description = "Predict whether files are AI-generated: txt and md; docx and pdf with a service."
    check = add("check", parents=[source], help="detect AI-generated text in files", description=description, **page)
    check.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for standard input")
    check.add_argument("--target-fpr", type=float, metavar="RATE", help="one listed by `detect-ai model`, such as 0.05")
    prevalence = "fraction of AI texts that probabilities assume, such as 0.05"
    check.add_argument("--prevalence", type=float, metavar="FRACTION", help=prevalence)
    check.add_argument("--spans", action="store_true", help="print the probability of each sentence")
    check.add_argument("--json", action="store_true", help="print JSON, one line per file")
    check.add_argument("--uncertain-ok", action="store_true", help="exit with 0 for uncertain verdicts")
    check.set_defaults(run=verdicts.check, extra="local")
    description = "Print the model, its thresholds, their error rates and the limits of a request as JSON."
    model = add("model", parents=[source], help="print model information", description=description, **page)
    model.set_defaults(run=verdicts.print_model, extra="local")
    root = argparse.ArgumentParser(add_help=False)
    default = os.environ.get("DETECT_AI_STORAGE_ROOT", "")
    root.add_argument("--root", default=default, metavar="ROOT", help="storage root; default: DETECT_AI_STORAGE_ROOT")
    description = "Serve a bundle over HTTP in one process, without Ray. API keys: python -m serve_app.auth.api_keys."
    service = add("serve", parents=[root], help="serve a bundle over HTTP", description=description, **page)
    bundle = "a folder, a URI or a version of the registry; default: the champion under ROOT"
    service.add_argument("--bundle", metavar="BUNDLE", help=bundle)
    service.add_argument("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics on 127.0.0.1:PORT")
    settings = "settings: serve.port=8080, serve.host=0.0.0.0 (needs API keys), monitoring.log=true …"
    service.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=settings)
    service.set_defaults(run=serve, extra="serve")
    audit = add("audit", parents=[root], help="print who published, deployed, changed keys …, a JSON line per event")
    audit.set_defaults(run=storage_root.print_audit_log, extra="serve")
    erase = add("erase", parents=[root], help="delete rows, texts and labels of a request from the prediction log")
    erase.add_argument("request_id", metavar="REQUEST_ID", help="that of the response with the verdict")
    erase.add_argument("--feedback-url", default="", metavar="URL", help="monitoring.feedback_url of the service")
    erase.set_defaults(run=storage_root.erase_request, extra="serve")
    registry = add("registry", help="check the published versions").add_subparsers(required=True)
    verify = registry.add_parser("verify", parents=[root], help="hash all versions, check the champion's history")
    verify.set_defaults(run=storage_root.verify_registry, extra="serve")
    return parser


if __name__ == "__main__":
    sys.exit(main())
