"""Command line interface `detect-ai` (options in `__main__`): exit codes and terminal output."""

from __future__ import annotations

import signal
import sys
import unicodedata

OK, FAILED, BAD_INPUT, AI, UNCERTAIN, INTERRUPTED = 0, 1, 2, 3, 4, 128 + signal.SIGINT


def printable(text: str) -> str:
    """A text on one line, with the control and direction characters that could manipulate a terminal replaced."""
    line = " ".join(text.split())
    line = "".join("\ufffd" if unicodedata.category(char) in ("Cc", "Cf") else char for char in line)
    return line.encode(errors="replace").decode()


def print_line(line: str) -> None:
    """Print a line and flush it, also to a pipe."""
    print(line, flush=True)  # noqa: T201


def print_error(message: str) -> None:
    """Print an error to standard error."""
    print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201
