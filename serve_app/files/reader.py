"""Text of uploaded files: file types, limits and the extraction subprocess. An error affects one file only."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from detect_ai.core.config import ServeConfig
from detect_ai.core.errors import InputError
from detect_ai.text.characters import SURROGATE, is_blank
from detect_ai.text.file_type import DESCRIPTIONS, DOCX, PDF, TEXT, decode_text, file_type
from serve_app.errors import ProblemError, QueueFullError
from serve_app.files.parsers import Limits

logger = logging.getLogger("ray.serve")

PROCESSES = 2  # parser processes for Word and PDF files at a time
MAX_WAITING_FILES = 32  # for a process; more are rejected
MAX_FILES = 16  # in a request
MAX_FILE_BYTES = 10_000_000
MAX_PAGES = 500  # of a PDF
TIMEOUT_S = 10.0  # to extract the text of a Word or PDF file
FILE_LIMITS = {"max_files": MAX_FILES, "max_file_bytes": MAX_FILE_BYTES, "max_pages": MAX_PAGES}
UPLOADS = 8  # uploads of the largest size that a replica holds at a time
MEMORY_BYTES = 512 * 1024 * 1024  # of each process
SLACK = 4  # maximum number of characters before normalising per character after it
MAX_JSON_BYTES_PER_CHAR = 12  # a pair of escaped surrogates
KINDS = {".txt": TEXT, ".md": TEXT, ".docx": DOCX, ".pdf": PDF}
ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")  # variables that a parser process gets
# Problems that `serve_app.files.parsers` reports: HTTP status and message. {number} is the number that it reports.
REFUSALS = {
    "chars": (413, "The file has more than {number} characters: split it."),
    "pages": (413, f"The PDF has {{number}} pages, the limit is {MAX_PAGES}: split it."),
    "late": (422, "The file could not be read within {seconds:g} seconds: send it as .txt."),
    "memory": (413, "Reading the file exceeds the memory limit: send it as .txt."),
    "unpacked": (413, "The file unpacks to {number} bytes: send it as .txt."),
    "encrypted": (422, "The file is protected by a password: save it without one."),
    "scanned": (422, "The PDF has no text on its {number} pages; it may be scanned: run text recognition (OCR) first."),
    "not_word": (415, "Expected a Word document (.docx), found another archive: save it as .docx."),
    "embedded": (422, "The document embeds another one (altChunk): open it in Word and save it again."),
    "damaged": (422, "The file is damaged and cannot be read as {name}: open it and save it again."),
}


class FileText(NamedTuple):
    """Extracted text, and how many hidden characters were left out."""

    text: str
    hidden: int = 0


class Upload(NamedTuple):
    """An uploaded file: its name without directories, and its bytes."""

    name: str
    content: bytes

    @property
    def suffix(self) -> str:
        """End of the name, in lower case, with its dot."""
        return Path(self.name).suffix.lower()


class FileReader:
    """Extracts the texts of files; Word and PDF files are parsed in subprocesses, `PROCESSES` at once."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="files")
        self._waiting_files: Counter[str] = Counter()  # by caller, like the next
        self._held_bytes: Counter[str] = Counter()

    @contextmanager
    def held(self, num_bytes: int, caller: str) -> Iterator[None]:
        """Reserve memory for the bytes of a request. Raises QueueFullError."""
        held = taken(self._held_bytes, caller)
        is_full = held and held + num_bytes > UPLOADS * self.config.max_upload_bytes
        if is_full or taken(self._waiting_files, caller) >= MAX_WAITING_FILES:
            raise QueueFullError
        self._held_bytes[caller] += num_bytes
        try:
            yield
        finally:
            self._held_bytes -= Counter({caller: num_bytes})

    async def texts(self, uploads: Sequence[Upload], caller: str) -> list[FileText | ProblemError]:
        """The text of each file, or the problem with it. Raises QueueFullError."""
        loop = asyncio.get_running_loop()
        needs_process = [KINDS.get(upload.suffix, TEXT) != TEXT for upload in uploads]
        if any(needs_process) and taken(self._waiting_files, caller) >= MAX_WAITING_FILES:
            raise QueueFullError
        self._waiting_files[caller] += sum(needs_process)
        try:
            threads = [self._threads if process else None for process in needs_process]
            return await asyncio.gather(*map(loop.run_in_executor, threads, repeat(self._text), uploads))
        finally:
            self._waiting_files -= Counter({caller: sum(needs_process)})

    def _text(self, upload: Upload) -> FileText | ProblemError:
        try:
            return read_file(upload, self.config)
        except ProblemError as problem:
            return problem


def taken(by_caller: Counter[str], caller: str) -> int:
    """Amount that counts as taken for a caller: at least twice its own, so that one caller gets half of the room."""
    return max(by_caller.total(), 2 * by_caller[caller])


def read_file(upload: Upload, config: ServeConfig) -> FileText:
    """Extract the text of a file. Raises ProblemError."""
    content, kind = upload.content, KINDS.get(upload.suffix)
    if len(content) > MAX_FILE_BYTES:
        raise ProblemError(413, f"The file has {len(content)} bytes, the limit is {MAX_FILE_BYTES}: split it.")
    if kind is None:
        raise ProblemError(415, "Expected a file whose name ends in .txt, .md, .docx or .pdf.")
    if not content:
        raise ProblemError(422, "The file is empty.")
    if (actual := file_type(content, kind)) != kind:
        suffix, contents = upload.suffix, DESCRIPTIONS[actual]
        raise ProblemError(415, f"The file is named {suffix} but contains {contents}: save it as {suffix}.")
    max_chars = SLACK * config.max_chars
    result: dict[str, Any]
    if kind == TEXT:
        try:
            text = decode_text(content)
        except InputError as error:
            raise ProblemError(422, f"The file is {error}.") from None
        result = {"problem": "chars", "number": max_chars} if len(text) > max_chars else {"text": text, "hidden": 0}
    else:
        result = run_parser(content, Limits(kind, max_chars, MAX_PAGES, MEMORY_BYTES, TIMEOUT_S))
    if "error" in result:
        logger.info("A %s file could not be read: %s", kind, result["error"])
    if "text" not in result:
        status, message = REFUSALS[result["problem"]]
        name = "a PDF" if kind == PDF else "a Word document (.docx)"
        detail = message.format(number=result.get("number"), name=name, seconds=TIMEOUT_S)
        raise ProblemError(status, detail, reason=result["problem"])
    if is_blank(result["text"]):
        raise ProblemError(422, "The file has no text: expected at least one visible character.")
    return FileText(result["text"], result["hidden"])


def run_parser(content: bytes, limits: Limits) -> dict[str, Any]:
    """Extract the text of a Word or PDF file in a subprocess: `text` and `hidden`, or `problem`, a key of REFUSALS."""
    command = [sys.executable, "-B", "-P", str(Path(__file__).with_name("parsers.py")), json.dumps(asdict(limits))]
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    deadline = time.monotonic() + limits.seconds
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, env=environment) as process:  # noqa: S603
        assert process.stdin
        assert process.stdout
        timer = threading.Timer(limits.seconds, process.kill)
        timer.start()
        try:
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(content)
            # The limit keeps a parser that a hostile file took over from making the replica read without end.
            output = process.stdout.read(MAX_JSON_BYTES_PER_CHAR * limits.max_chars + 1000)
        finally:
            timer.cancel()
            is_late = time.monotonic() >= deadline
            process.kill()
    if is_late:
        return {"problem": "late"}
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:  # the process exceeded a limit
        logger.warning("The parser of a %s file ended with %s", limits.kind, process.returncode)
        return {"problem": "memory"}
    if "text" in result:  # parsers may return unpaired surrogates, which cannot be sent in a response
        result["text"] = SURROGATE.sub("\ufffd", result["text"])
    return result
