"""The text of one Word or PDF file, found in a process of its own that may be stopped at any time.

`serve_app.files.reader` runs this file by its path: the limits as JSON in the first argument, the file on standard
input. It writes one JSON object, `{"text": …}` or `{"problem": …, "found": …}`. Whatever a hostile file does to its
parser, it does it here, within bounds on memory, time and open files, without the environment
and the data of the service.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import IO, Any

MAX_ENTRIES = 2_000  # files in an archive
MAX_PART_BYTES = 50_000_000  # of the one file in it that is read, unpacked
MAX_RATIO = 200  # unpacked to packed; Word's own files reach some 20
SMALL_PART_BYTES = 1_000_000  # below that no ratio matters
OPEN_FILES = 64
# Of a Word document: settings of a paragraph; what was deleted or moved away; what stands beside it already, said again
# for older programs.
LEFT_OUT = {"pPr", "del", "moveFrom", "Fallback"}
STANDS_FOR = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "p": "\n"}


@dataclass(frozen=True)
class Limits:
    """What the process may use.

    Attributes:
        kind: `docx` or `pdf`.
        max_chars: of the text, before it is normalised.
        max_pages: of a PDF.
        memory_bytes: address space of the process.
        seconds: of processor time.
    """

    kind: str
    max_chars: int
    max_pages: int
    memory_bytes: int
    seconds: float

    def to_json(self) -> str:
        """As the process is given them."""
        return json.dumps(asdict(self))


class RefusedError(Exception):
    """A file that gives no text.

    Args:
        problem: its name, known to `serve_app.files.reader`.
        found: the number it is about, if any.
    """

    def __init__(self, problem: str, found: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.found = found


def main() -> None:
    """Read the file from standard input, write what was found in it to standard output."""
    limits = Limits(**json.loads(sys.argv[1]))
    confine(limits)
    logging.disable()  # what parsers complain of may hold a part of the text
    json.dump(answer(sys.stdin.buffer.read(), limits), sys.stdout)


def answer(content: bytes, limits: Limits) -> dict[str, Any]:
    """What is said of a file."""
    try:
        return {"text": READERS[limits.kind](content, limits)}
    except RefusedError as refused:
        return {"problem": refused.problem, "found": refused.found}
    except MemoryError:
        return {"problem": "memory"}
    except Exception as error:  # parsers raise whatever they stumble over
        name = type(error).__qualname__
        return {"problem": "memory" if name == "LimitReachedError" else "damaged", "error": name}


def confine(limits: Limits) -> None:
    """Bound what this process may use, for good. A system that knows no such bound has the time-out still."""
    import resource

    seconds = math.ceil(limits.seconds) + 1
    bounds = {"AS": limits.memory_bytes, "CPU": seconds, "FSIZE": 0, "CORE": 0, "NOFILE": OPEN_FILES}
    for name, bound in bounds.items():
        with suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (bound, bound))


class Text:
    """Pieces of text up to a bound."""

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self.num_chars = 0
        self.pieces: list[str] = []

    def add(self, piece: str) -> None:
        """Add a piece. Raises RefusedError beyond the bound."""
        self.num_chars += len(piece)
        if self.num_chars > self.max_chars:
            raise RefusedError("chars", self.max_chars)
        self.pieces.append(piece)


def docx_text(content: bytes, limits: Limits) -> str:
    """The paragraphs of a Word document, a line each; no headers, footers, notes, comments or deleted text.

    Source: ECMA-376, part 1 (WordprocessingML) and part 2 (packages).
    """
    with zipfile.ZipFile(BytesIO(content)) as archive:
        if len(archive.infolist()) > MAX_ENTRIES:
            raise RefusedError("entries", len(archive.infolist()))
        with open_part(archive, main_part(archive)) as part:
            return document_text(part, limits.max_chars)


def main_part(archive: zipfile.ZipFile) -> str:
    """The name of the part that holds the document: the package says which. Raises RefusedError when none does."""
    from defusedxml.ElementTree import parse

    if "_rels/.rels" not in archive.namelist():
        raise RefusedError("not_word")
    with open_part(archive, "_rels/.rels") as relations:
        root = parse(relations, forbid_dtd=True).getroot()
    for relation in root:
        if relation.get("Type", "").endswith("/officeDocument"):
            name = str(PurePosixPath("/", relation.get("Target", "")))[1:]
            if name.startswith("word/") and name in archive.namelist():
                return name
    raise RefusedError("not_word")


def open_part(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A file of an archive, which unpacks to no more than the archive says. Raises RefusedError for a bomb."""
    entry = archive.getinfo(name)
    if entry.flag_bits & 1:
        raise RefusedError("encrypted")
    is_bomb = entry.file_size > max(SMALL_PART_BYTES, MAX_RATIO * entry.compress_size)
    if entry.file_size > MAX_PART_BYTES or is_bomb:
        raise RefusedError("unpacked", entry.file_size)
    return archive.open(entry)


def document_text(part: IO[bytes], max_chars: int) -> str:
    """The text of the main part of a document. Raises RefusedError beyond `max_chars`."""
    from defusedxml.ElementTree import iterparse

    text, depth = Text(max_chars), 0
    for event, element in iterparse(part, events=("start", "end"), forbid_dtd=True):
        namespace, _, name = element.tag.rpartition("}")
        if name in LEFT_OUT:
            depth += 1 if event == "start" else -1
        if event == "start":
            continue
        if not depth and "wordprocessingml" in namespace:
            text.add(element.text or "" if name == "t" else STANDS_FOR.get(name, ""))
        element.clear()
    return "".join(text.pieces)


def pdf_text(content: bytes, limits: Limits) -> str:
    """The text of all pages, in order. Raises RefusedError without any, beyond the bounds or behind a password."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(BytesIO(content))
    try:
        if reader.is_encrypted and not reader.decrypt(""):  # many files are locked for changes only
            raise RefusedError("encrypted")
    except DependencyError:
        raise RefusedError("encrypted") from None
    if len(reader.pages) > limits.max_pages:
        raise RefusedError("pages", len(reader.pages))
    text = Text(limits.max_chars)
    for page in reader.pages:
        text.add(page.extract_text() + "\n\n")
    if not "".join(text.pieces).strip():
        raise RefusedError("scanned", len(reader.pages))
    return "".join(text.pieces)


READERS: dict[str, Callable[[bytes, Limits], str]] = {"docx": docx_text, "pdf": pdf_text}

if __name__ == "__main__":
    main()
