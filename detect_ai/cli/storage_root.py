"""Operator commands on a storage root: print the audit log, verify the registry, erase a request."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import TYPE_CHECKING

from detect_ai.cli import FAILED, OK, print_error, print_line, printable
from detect_ai.core.errors import InputError

if TYPE_CHECKING:
    from detect_ai.core.storage import Storage


def open_root(arguments: Namespace, folder: str) -> Storage:
    """The storage root of a command. Raises InputError if it does not have the folder that the command uses."""
    from detect_ai.core.storage import Storage

    if not arguments.root:
        raise InputError("no storage root: give --root ROOT, or set DETECT_AI_STORAGE_ROOT")
    storage = Storage(arguments.root)
    if not storage.list(folder):
        raise InputError(
            f"{storage.root}: there is no folder {folder}/ in it: expected the storage root of the jobs, and something "
            "recorded in it"
        )
    return storage


def print_audit_log(arguments: Namespace) -> int:
    """Print all events. Returns the exit code."""
    from detect_ai.core import audit_log

    for event in audit_log.events(open_root(arguments, audit_log.FOLDER)):
        print_line(json.dumps(event))
    return OK


def verify_registry(arguments: Namespace) -> int:
    """Print the problems of the registry and a summary. Returns the exit code."""
    from detect_ai.detector.registry import Registry

    result = Registry(open_root(arguments, "registry")).verify()
    for problem in result["problems"]:
        print_line(printable(problem))
    print_line(json.dumps({**result, "problems": len(result["problems"])}))
    return FAILED if result["problems"] else OK


def erase_request(arguments: Namespace) -> int:
    """Delete a request from the prediction log and the labels, and print the counts. Returns 1 if nothing was found."""
    from detect_ai.core import audit_log
    from detect_ai.core.compose import parse_config
    from detect_ai.monitoring import log_files
    from detect_ai.monitoring.feedback import Feedback

    storage = open_root(arguments, log_files.FOLDER)
    config = parse_config({"monitoring": {"feedback_url": arguments.feedback_url}}).monitoring
    labels = Feedback(storage, config).erase(arguments.request_id)  # first: it may fail
    erased = {"rows": log_files.erase(storage, arguments.request_id), "labels": labels}
    audit_log.record(storage, "erase", **erased)  # without the id, which must be forgotten too
    print_line(json.dumps(erased))
    if not any(erased.values()):
        print_error("nothing is recorded under this request id")
        return FAILED
    return OK
