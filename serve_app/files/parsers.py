"""Text extraction from a Word or PDF file, in a subprocess that can be killed at any time.

`serve_app.files.reader` runs this file by its path: limits as JSON in the first argument, the file on standard input.
It writes one JSON object, `{"text": …, "hidden": …}` or `{"problem": …, "found": …}`. A hostile file can only
affect this process, which has limits on memory, time and open files, and no environment variables but those that locate
Python and its libraries. Its access to files and to the network is not restricted.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO, Any
from urllib.parse import unquote

MAX_ENTRIES = 2_000  # files in an archive
MAX_PART_BYTES = 50_000_000  # of the one file in it that is read, unpacked
MAX_RATIO = 200  # unpacked to packed; Word's own files reach about 20
SMALL_PART_BYTES = 1_000_000  # below this size the ratio does not matter
OPEN_FILES = 64
MIN_POINTS = 2.0  # smaller text cannot be read by eye
WHITE = 0.97  # of each colour component
SHOW_TEXT = ("Tj", "TJ", "'", '"')  # PDF operators
# Elements of a Word document that are not its text: properties, deleted or moved text, fallbacks for older programs.
LEFT_OUT = {"pPr", "rPr", "del", "moveFrom", "Fallback"}
CHARACTERS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "sym": "•", "p": "\n"}


@dataclass(frozen=True)
class Limits:
    """Limits of the process.

    Attributes:
        kind: `docx` or `pdf`.
        max_chars: of the text, before it is normalised.
        max_pages: of a PDF.
        memory_bytes: address space of the process.
        seconds: CPU time.
    """

    kind: str
    max_chars: int
    max_pages: int
    memory_bytes: int
    seconds: float


class RefusedError(Exception):
    """A file without usable text.

    Args:
        problem: its name, a key of `serve_app.files.reader.REFUSALS`.
        found: the number that exceeds a limit, if any.
    """

    def __init__(self, problem: str, found: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.found = found


@dataclass
class Text:
    """Extracted text up to a limit, and the number of hidden characters that were left out."""

    max_chars: int
    pieces: list[str] = field(default_factory=list)
    num_chars: int = 0
    hidden: int = 0

    def add(self, piece: str) -> None:
        """Add a piece. Raises RefusedError beyond the limit."""
        self.num_chars += len(piece)
        if self.num_chars > self.max_chars:
            raise RefusedError("chars", self.max_chars)
        if piece:
            self.pieces.append(piece)


def main() -> None:
    """Read the file from standard input and write the result to standard output."""
    limits = Limits(**json.loads(sys.argv[1]))
    confine(limits)
    logging.disable()  # messages of the parsers may contain text
    json.dump(parse(sys.stdin.buffer.read(), limits), sys.stdout)


def parse(content: bytes, limits: Limits) -> dict[str, Any]:
    """The text of a file, or the problem with it."""
    text = Text(limits.max_chars)
    try:
        PARSERS[limits.kind](content, limits, text)
    except RefusedError as refused:
        return {"problem": refused.problem, "found": refused.found}
    except MemoryError:
        return {"problem": "memory"}
    except Exception as error:  # parsers raise anything on malformed files
        name = type(error).__qualname__
        return {"problem": "memory" if name == "LimitReachedError" else "damaged", "error": name}
    return {"text": "".join(text.pieces), "hidden": text.hidden}


def confine(limits: Limits) -> None:
    """Set the resource limits of this process. On a system without one of them the time-out remains."""
    import resource

    seconds = math.ceil(limits.seconds) + 1
    bounds = {"AS": limits.memory_bytes, "CPU": seconds, "FSIZE": 0, "CORE": 0, "NOFILE": OPEN_FILES}
    for name, bound in bounds.items():
        with suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (bound, bound))


def parse_docx(content: bytes, limits: Limits, text: Text) -> None:
    """Extract the paragraphs of a Word document, without headers, footers, notes, comments and deleted text.

    Source: ECMA-376, part 1 (WordprocessingML) and part 2 (packages).
    """
    with zipfile.ZipFile(BytesIO(content)) as archive:
        if len(archive.infolist()) > MAX_ENTRIES:
            raise RefusedError("entries", len(archive.infolist()))
        with open_part(archive, main_part(archive)) as part:
            read_document(part, text)


def main_part(archive: zipfile.ZipFile) -> str:
    """The name of the part that the package declares as its document. Raises RefusedError without one."""
    from defusedxml.ElementTree import parse as parse_xml

    names = {_part_name(name): name for name in archive.namelist()}
    if "_rels/.rels" not in names:
        raise RefusedError("not_word")
    with open_part(archive, names["_rels/.rels"]) as relations:
        root = parse_xml(relations, forbid_dtd=True).getroot()
    for relation in root:
        name = _part_name(relation.get("Target", ""))
        if relation.get("Type", "").endswith("/officeDocument") and name in names:
            return names[name]
    raise RefusedError("not_word")


def _part_name(name: str) -> str:
    """Part names ignore case and may be percent-encoded (ECMA-376, part 2, 6.2.2); some writers use backslashes."""
    return unquote(name).replace("\\", "/").lstrip("/").lower()


def open_part(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a file of an archive. Raises RefusedError for one that unpacks to too much."""
    entry = archive.getinfo(name)
    if entry.flag_bits & 1:
        raise RefusedError("encrypted")
    is_bomb = entry.file_size > max(SMALL_PART_BYTES, MAX_RATIO * entry.compress_size)
    if entry.file_size > MAX_PART_BYTES or is_bomb:
        raise RefusedError("unpacked", entry.file_size)
    return archive.open(entry)


def read_document(part: IO[bytes], text: Text) -> None:
    """Add the visible text of a document part. Raises RefusedError."""
    from defusedxml.ElementTree import iterparse

    events = iterparse(part, events=("start", "end"), forbid_dtd=True)
    _, root = next(events)
    if not (root.tag.endswith("}document") and "wordprocessingml" in root.tag):
        raise RefusedError("not_word")
    document = Document(text)
    for event, element in events:
        namespace, _, name = element.tag.rpartition("}")
        if event == "start":
            document.start(name)
        else:
            document.end(name, element, "wordprocessingml" in namespace)


@dataclass
class Document:
    """State of reading a Word document element by element."""

    text: Text
    left_out: int = 0  # depth of elements whose text does not count
    in_run: bool = False
    is_hidden: bool = False
    joins_next: bool = False  # the mark of the paragraph is deleted

    def start(self, name: str) -> None:
        """Begin an element."""
        if name == "altChunk":
            raise RefusedError("embedded")
        if name == "p":
            if self.text.pieces and not self.text.pieces[-1].endswith("\n") and not self.joins_next:
                self.text.add("\n")  # a text box inside a paragraph
            self.joins_next = False
        if name in ("pPr", "r"):
            self.in_run, self.is_hidden = name == "r", False
        self.left_out += name in LEFT_OUT

    def end(self, name: str, element: Any, is_word: bool) -> None:
        """Finish an element."""
        self.left_out -= name in LEFT_OUT
        if name == "rPr" and self.in_run:
            self.is_hidden = _is_hidden(element)
        elif name == "rPr":
            self.joins_next = any(child.tag.endswith("}del") for child in element)
        elif is_word and not self.left_out:
            if name == "t" and self.is_hidden:
                self.text.hidden += len(element.text or "")
            elif name == "t":
                self.text.add(element.text or "")
            elif name != "p" or not self.joins_next:
                self.text.add(CHARACTERS.get(name, ""))
        if not self.left_out:
            element.clear()


def _is_hidden(properties: Any) -> bool:
    """Whether run properties hide the text: hidden, white, or too small to read."""
    values = {child.tag.rpartition("}")[2]: child for child in properties}

    def value(name: str, default: str) -> str:
        child = values.get(name)
        found = None if child is None else next((v for k, v in child.attrib.items() if k.endswith("}val")), "true")
        return default if found is None else found.lower()

    is_off = ("0", "false", "off", "none")
    if value("vanish", "0") not in is_off or value("webHidden", "0") not in is_off:
        return True
    has_background = bool({"shd", "highlight"} & values.keys())
    size = value("sz", "24")  # in half points
    return (value("color", "auto") == "ffffff" and not has_background) or (
        size.isdigit() and int(size) < 2 * MIN_POINTS
    )


def parse_pdf(content: bytes, limits: Limits, text: Text) -> None:
    """Extract the visible text of all pages. Raises RefusedError without any, beyond the limits, or for a password."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(BytesIO(content))
    try:
        if reader.is_encrypted and not reader.decrypt(""):  # many files are only protected against changes
            raise RefusedError("encrypted")
    except DependencyError:
        raise RefusedError("encrypted") from None
    if len(reader.pages) > limits.max_pages:
        raise RefusedError("pages", len(reader.pages))
    for page in reader.pages:
        text.hidden += remove_hidden_text(page)
        text.add(page.extract_text() + "\n\n")
    if not text.hidden and not "".join(text.pieces).strip():
        raise RefusedError("scanned", len(reader.pages))


Matrix = tuple[float, ...]
IDENTITY: Matrix = (1, 0, 0, 1, 0, 0)


@dataclass
class TextState:
    """The PDF state that decides whether text can be seen (ISO 32000-1, 8.4 and 9.3)."""

    matrix: Matrix = IDENTITY
    size: float = 0.0
    mode: int = 0
    is_white: bool = False
    line: Matrix = IDENTITY
    leading: float = 0.0
    stack: list[tuple[Any, ...]] = field(default_factory=list)

    def set_graphics(self, operator: str, numbers: list[float]) -> None:
        """Apply an operator of the graphics state."""
        if operator == "q":
            self.stack.append((self.matrix, self.size, self.mode, self.is_white))
        elif operator == "Q" and self.stack:
            self.matrix, self.size, self.mode, self.is_white = self.stack.pop()
        elif operator == "cm" and len(numbers) == 6:
            self.matrix = _multiply(tuple(numbers), self.matrix)
        elif operator == "Tr" and numbers:
            self.mode = int(numbers[0])
        elif operator == "Tf" and numbers:
            self.size = numbers[-1]
        elif operator in ("g", "rg", "k", "cs", "sc", "scn"):
            ink = [1 - number for number in numbers] if len(numbers) == 4 else numbers
            self.is_white = bool(ink) and min(ink) >= WHITE

    def set_position(self, operator: str, numbers: list[float]) -> None:
        """Apply an operator that moves the text position."""
        if operator == "BT":
            self.line = IDENTITY
        elif operator == "Tm" and len(numbers) == 6:
            self.line = tuple(numbers)
        elif operator in ("Td", "TD") and len(numbers) == 2:
            self.leading = -numbers[1] if operator == "TD" else self.leading
            self.line = _multiply((1, 0, 0, 1, *numbers), self.line)
        elif operator == "TL" and numbers:
            self.leading = numbers[0]
        elif operator in ("T*", "'", '"'):
            self.line = _multiply((1, 0, 0, 1, 0, -self.leading), self.line)

    def hides(self, box: tuple[float, ...]) -> bool:
        """Whether text at the current position is white, too small, or outside of a box (left, bottom, right, top)."""
        a, b, c, d, x, y = _multiply(self.line, self.matrix)
        size = abs(self.size) * max(math.hypot(a, b), math.hypot(c, d))
        bleed = 0.02 * max(box[2] - box[0], box[3] - box[1])
        is_inside = box[0] - bleed <= x <= box[2] + bleed and box[1] - bleed <= y <= box[3] + bleed
        return self.is_white or size < MIN_POINTS or not is_inside


def remove_hidden_text(page: Any) -> int:
    """Remove text from a page that a reader cannot see: invisible mode, white, off the page, or too small.

    Text in invisible mode stays if it is all the text of a page that draws an image: the text layer of a scan. Text in
    form objects is not examined.

    Returns:
        Bytes of the removed strings: characters, twice as many for fonts with two bytes each.
    """
    from pypdf.generic import ContentStream, NameObject

    if page.get_contents() is None:
        return 0
    content = ContentStream(page.get_contents(), page.pdf, "bytes")
    box = tuple(float(edge) for edge in page.cropbox)
    state, operations, type3_fonts = TextState(), [], _type3_fonts(page)
    for operands, operator in content.operations:
        name, reason = operator.decode("latin-1"), ""
        numbers = [float(operand) for operand in operands if isinstance(operand, int | float)]
        if name == "Tf" and operands and operands[0] in type3_fonts:
            numbers = [math.inf]  # the size of its characters is not known
        state.set_graphics(name, numbers)
        state.set_position(name, numbers)
        if name in SHOW_TEXT:
            reason = "invisible" if state.mode == 3 else "hidden" if state.hides(box) else "visible"
        operations.append((reason, operands, operator))
    reasons = {reason for reason, _, _ in operations}
    draws_image = any(operator in (b"Do", b"INLINE IMAGE") for _, _, operator in operations)
    if not reasons & {"hidden", "invisible"} or (reasons <= {"", "invisible"} and draws_image):
        return 0
    kept = [(operands, operator) for reason, operands, operator in operations if reason in ("", "visible")]
    removed = sum(_num_bytes(operands) for reason, operands, _ in operations if reason in ("hidden", "invisible"))
    content.operations = kept
    page[NameObject("/Contents")] = content
    return removed


def _multiply(first: Matrix, second: Matrix) -> Matrix:
    """The product of two transformation matrices (a, b, c, d, e, f)."""
    a, b, c, d, e, f = first
    g, h, i, j, k, m = second
    return (a * g + b * i, a * h + b * j, c * g + d * i, c * h + d * j, e * g + f * i + k, e * h + f * j + m)


def _num_bytes(operands: Any) -> int:
    """Bytes of the strings that an operator shows."""
    parts = [part for operand in operands for part in (operand if isinstance(operand, list) else [operand])]
    return sum(len(part) for part in parts if isinstance(part, str | bytes))


def _type3_fonts(page: Any) -> set[str]:
    """Names of the fonts of a page whose unit is not a thousandth of the font size."""
    resources = page.get("/Resources")
    fonts = resources.get_object().get("/Font") if resources is not None else None
    items = fonts.get_object().items() if fonts is not None else ()
    return {name for name, font in items if font.get_object().get("/Subtype") == "/Type3"}


PARSERS: dict[str, Callable[[bytes, Limits, Text], None]] = {"docx": parse_docx, "pdf": parse_pdf}

if __name__ == "__main__":
    main()
