"""Files as texts: what a file is, and the text in it. Whatever is wrong with a file is a problem of that file alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detect_ai.core.config import ServeConfig
from serve_app.api.errors import ProblemError
from serve_app.engine.batcher import QueueFullError
from serve_app.files.parsers import MAX_ENTRIES, Limits

logger = logging.getLogger("ray.serve")

PROCESSES = 2  # that read Word and PDF files at once
MAX_WAITING_FILES = 32  # for a process; more are refused
UPLOADS = 8  # of the largest size that a replica holds at once
MEMORY_BYTES = 512 * 1024 * 1024  # of each
SLACK = 4  # characters before normalising for one after it, at most
KINDS = {".txt": "text", ".md": "text", ".docx": "docx", ".pdf": "pdf"}
NAMES = {"text": "a text", "docx": "a Word document (.docx)", "pdf": "a PDF"}
CONTENTS = {"text": "something else", "docx": "an archive, such as a Word document", "pdf": "a PDF"}
PDF_HEAD_BYTES = 1024  # in which a PDF says that it is one
PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")  # all that a parser gets to know of the environment
_ZIP, _PDF, _OLE, _UTF16 = b"PK\x03\x04", b"%PDF-", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", (b"\xff\xfe", b"\xfe\xff")
# What `serve_app.files.parsers` may say: the status and the sentence. {found} is its number.
_REFUSALS = {
    "chars": (413, "The file has more than {found} characters: send it in parts."),
    "pages": (413, "The PDF has {found} pages, at most {max_pages} are read: send it in parts."),
    "entries": (413, "The archive of this document holds {found} files, at most {max_entries} are read."),
    "unpacked": (413, "This document unpacks to {found} bytes, which is more than is read: send its text as .txt."),
    "memory": (413, "Reading the file takes more memory than there is for one: send its text as .txt."),
    "encrypted": (422, "The file is protected by a password: save it without one."),
    "scanned": (
        422,
        "No text stands on the pages of this PDF ({found}), it may be scanned: recognise its text first.",
    ),
    "not_word": (415, "Expected a Word document (.docx), found another archive: save it as .docx."),
    "damaged": (422, "The file is damaged, it cannot be read as {kind}: open it and save it again."),
}


@dataclass(frozen=True)
class Upload:
    """A file as it was sent.

    Attributes:
        name: without folders.
        content: all of it.
    """

    name: str
    content: bytes


class FileReader:
    """Finds the texts of files; Word and PDF files are read in processes of their own, a few at once.

    Args:
        config: bounds.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="files")
        self._waiting_files = 0
        self._held_bytes = 0

    @contextmanager
    def held(self, num_bytes: int) -> Iterator[None]:
        """Room for the bytes of a request, for the time of the block.

        Raises:
            QueueFullError: too many are held already, or files that came before take too long.
        """
        self._check_queue()
        if self._held_bytes and self._held_bytes + num_bytes > UPLOADS * self.config.max_upload_bytes:
            raise QueueFullError(1)
        self._held_bytes += num_bytes
        try:
            yield
        finally:
            self._held_bytes -= num_bytes

    async def texts(self, uploads: Sequence[Upload]) -> list[str | ProblemError]:
        """The text of each file, or what is wrong with it. Raises QueueFullError."""
        loop = asyncio.get_running_loop()

        def begin(upload: Upload) -> Awaitable[str | ProblemError]:
            if is_plain(upload):
                return loop.run_in_executor(None, self._text, upload)
            return loop.run_in_executor(self._threads, self._text, upload)

        num_files = sum(not is_plain(upload) for upload in uploads)
        if num_files:
            self._check_queue()
        self._waiting_files += num_files
        try:
            return await asyncio.gather(*map(begin, uploads))
        finally:
            self._waiting_files -= num_files

    def _check_queue(self) -> None:
        if self._waiting_files >= MAX_WAITING_FILES:
            raise QueueFullError

    def _text(self, upload: Upload) -> str | ProblemError:
        try:
            return text_of(upload, self.config)
        except ProblemError as problem:
            return problem


def is_plain(upload: Upload) -> bool:
    """Whether it is read without a process of its own, by its name."""
    return KINDS.get(Path(upload.name).suffix.lower(), "text") == "text"


def text_of(upload: Upload, config: ServeConfig) -> str:
    """The text in a file. Raises ProblemError."""
    if len(upload.content) > config.max_file_bytes:
        raise ProblemError(
            413, f"The file has {len(upload.content)} bytes, at most {config.max_file_bytes} are read: send less."
        )
    kind = kind_of(upload)
    text = plain_text(upload.content) if kind == "text" else parsed_text(upload.content, kind, config)
    if not text.strip():
        raise ProblemError(422, "The file holds no text: expected at least one character that is not white space.")
    if len(text) > SLACK * config.max_chars:
        raise _refusal({"problem": "chars", "found": SLACK * config.max_chars}, kind, config)
    return text


def kind_of(upload: Upload) -> str:
    """`text`, `docx` or `pdf`, by the name of a file and by how it begins. Raises ProblemError where they differ."""
    kind = KINDS.get(Path(upload.name).suffix.lower())
    if kind is None:
        raise ProblemError(415, "Expected a file whose name ends in .txt, .md, .docx or .pdf.")
    if upload.content.startswith(_OLE):
        raise ProblemError(
            415, "The file is of an old Office format, or protected by a password: save it as .docx without a password."
        )
    found = content_kind(upload.content, kind)
    if found != kind:
        raise ProblemError(415, f"The file is named as {NAMES[kind]} but holds {CONTENTS[found]}: rename it.")
    return kind


def content_kind(content: bytes, expected: str) -> str:
    """What a file is by how it begins."""
    head = content[:PDF_HEAD_BYTES]
    if head.startswith(_ZIP):
        return "docx"
    # A text may well mention the mark of a PDF, and a PDF may begin with something else.
    return "pdf" if head.lstrip().startswith(_PDF) or (expected == "pdf" and _PDF in head) else "text"


def plain_text(content: bytes) -> str:
    """Text in UTF-8, with or without a byte order mark. Raises ProblemError for another encoding."""
    if content.startswith(_UTF16):
        raise ProblemError(422, "The text is in UTF-16: save it in UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProblemError(
            422, f"The text is not in UTF-8: invalid byte at position {error.start}. Save it in UTF-8."
        ) from None
    if "\0" in text:
        raise ProblemError(422, f"The file is no text: it has a NUL character at position {text.index(chr(0))}.")
    return text


def parsed_text(content: bytes, kind: str, config: ServeConfig) -> str:
    """The text of a Word or PDF file, read in a process that is killed when it takes too long. Raises ProblemError."""
    limits = Limits(kind, SLACK * config.max_chars, config.max_pages, MEMORY_BYTES, config.file_timeout_s)
    command = [sys.executable, "-B", "-P", str(Path(__file__).with_name("parsers.py")), limits.to_json()]
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        done = subprocess.run(  # noqa: S603 - our own file, with numbers as arguments
            command,
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=config.file_timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProblemError(
            422, f"The file was not read within {config.file_timeout_s:g} seconds: send its text as .txt."
        ) from None
    return _said(done, kind, config)


def _said(done: subprocess.CompletedProcess[bytes], kind: str, config: ServeConfig) -> str:
    """The text that the process found. Raises ProblemError."""
    try:
        said = json.loads(done.stdout)
    except ValueError:  # it was ended by a bound in the middle of a sentence
        logger.warning("The process that reads a %s file ended with %s", kind, done.returncode)
        said = {"problem": "memory"}
    if "text" not in said:
        raise _refusal(said, kind, config)
    # Parsers may hand on halves of surrogate pairs, which no answer can carry.
    return str(said["text"]).encode("utf-8", "replace").decode()


def _refusal(said: dict[str, Any], kind: str, config: ServeConfig) -> ProblemError:
    if "error" in said:
        logger.info("A %s file could not be read: %s", kind, said["error"])
    status, sentence = _REFUSALS[said["problem"]]
    numbers = {"found": said.get("found"), "max_pages": config.max_pages, "max_entries": MAX_ENTRIES}
    return ProblemError(status, sentence.format(kind=NAMES[kind], **numbers))
