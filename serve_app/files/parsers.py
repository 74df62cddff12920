"""Text extraction from a Word or PDF file, in a subprocess that can be killed at any time.

`serve_app.files.reader` runs this file by its path: limits as JSON in the first argument, the file on standard input.
It writes one JSON object, `{"text": …, "hidden": …}` or `{"problem": …, "number": …}`. A hostile file can only
affect this process, which has limits on memory, time and open files, and no environment variables but those that locate
Python and its libraries. Its access to files and to the network is not restricted.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from ctypes import c_uint
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import unquote

OPEN_FILES = 64
MAX_PART_BYTES = 50_000_000  # of a file in an archive, unpacked
MIN_POINTS = 2.0  # smaller text cannot be read by eye
WHITE = 248  # of 255, of each colour component
# Elements of a Word document that are not its text: properties, deleted or moved text, fallbacks for older programs.
LEFT_OUT = {"pPr", "rPr", "del", "moveFrom", "Fallback"}
OFF = ("0", "false", "off", "none")
CHARACTERS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "sym": "•", "p": "\n"}

Pieces = Iterator[tuple[str, int]]  # visible text, and the number of hidden characters that were left out


@dataclass(frozen=True)
class Limits:
    """The type of a file, `docx` or `pdf`, and the limits of the process; `max_chars` is before normalising."""

    kind: str
    max_chars: int
    max_pages: int
    memory_bytes: int
    seconds: float


class RefusedError(Exception):
    """A file without usable text: a key of `serve_app.files.reader.REFUSALS`, and the number in its message, if any."""

    def __init__(self, problem: str, number: int | None = None) -> None:
        self.problem, self.number = problem, number


def main() -> None:
    """Read the file from standard input and write the result to standard output."""
    import resource

    limits = Limits(**json.loads(sys.argv[1]))
    seconds = math.ceil(limits.seconds) + 1
    bounds = {"AS": limits.memory_bytes, "CPU": seconds, "FSIZE": 0, "CORE": 0, "NOFILE": OPEN_FILES}
    for name, bound in bounds.items():
        with suppress(ValueError, OSError, AttributeError):  # a system without this limit; the time-out remains
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (bound, bound))
    logging.disable()  # messages of the parsers may contain text
    json.dump(parse(sys.stdin.buffer.read(), limits), sys.stdout)


def parse(content: bytes, limits: Limits) -> dict[str, Any]:
    """The text of a file, or the problem with it."""
    pieces: list[str] = []
    num_chars = num_hidden = 0
    try:
        for piece, hidden in parse_docx(content) if limits.kind == "docx" else parse_pdf(content, limits.max_pages):
            num_hidden += hidden
            num_chars += len(piece)
            if num_chars > limits.max_chars:
                raise RefusedError("chars", limits.max_chars)
            pieces.append(piece)
    except RefusedError as refused:
        return {"problem": refused.problem, "number": refused.number}
    except MemoryError:
        return {"problem": "memory"}
    except Exception as error:  # parsers raise anything on malformed files
        return {"problem": "damaged", "error": type(error).__qualname__}
    return {"text": "".join(pieces), "hidden": num_hidden}


def parse_docx(content: bytes) -> Pieces:
    """Extract the paragraphs of a Word document (ECMA-376), without headers, footers, notes and deleted text."""
    from defusedxml.ElementTree import parse as parse_xml

    hidden_styles: set[str] = set()
    with zipfile.ZipFile(BytesIO(content)) as archive:
        entries = {part_name(entry.filename): entry for entry in archive.infolist()}

        def root(name: str) -> Any:
            entry = entries.get(part_name(name))
            if entry is None:
                raise RefusedError("not_word")
            if entry.file_size > MAX_PART_BYTES:
                raise RefusedError("unpacked", entry.file_size)
            return parse_xml(archive.open(entry), forbid_dtd=True).getroot()

        relations = [part for part in root("_rels/.rels") if part.get("Type", "").endswith("/officeDocument")]
        target = relations[0].get("Target", "") if relations else ""
        document, styles = root(target), target.rpartition("/")[0] + "/styles.xml"
        if part_name(styles) in entries:
            hidden_styles = styles_that_hide(root(styles))
    if not (document.tag.endswith("}document") and "wordprocessingml" in document.tag):
        raise RefusedError("not_word")
    yield from element_text(document, False, hidden_styles)


def part_name(name: str) -> str:
    """The canonical name of a part: names ignore case and may be percent-encoded; some writers use backslashes."""
    return unquote(name).replace("\\", "/").lstrip("./").lower()


def styles_that_hide(styles: Any) -> set[str]:
    """Ids of the styles of a Word document whose text is hidden, by themselves or by the style they are based on."""
    based_on, hidden = {}, set()
    for style in styles.iterfind("{*}style"):
        name = value(style, "styleId")
        based_on[name] = value(style.find("{*}basedOn"), "val")
        mark = style.find("{*}rPr/{*}vanish")
        if mark is not None and value(mark, "val", "true").lower() not in OFF:
            hidden.add(name)
    while more := {name for name, parent in based_on.items() if parent in hidden} - hidden:
        hidden |= more
    return hidden


def value(element: Any, name: str, default: str = "") -> str:
    """An attribute of a Word element, which may be None."""
    attributes: dict[str, str] = {} if element is None else element.attrib
    return next((text for key, text in attributes.items() if key.endswith("}" + name)), default)


def element_text(element: Any, is_hidden: bool, hidden_styles: set[str]) -> Pieces:
    """The text of a Word element and of the elements in it. Raises RefusedError."""
    namespace, _, name = element.tag.rpartition("}")
    if name == "altChunk":
        raise RefusedError("embedded")
    if name in LEFT_OUT:
        return
    if name == "txbxContent":
        yield "\n", 0  # a text box inside a paragraph
    if name == "p":
        is_hidden = is_hidden or value(element.find("{*}pPr/{*}pStyle"), "val") in hidden_styles
    if name == "r":
        by_style = value(element.find("{*}rPr/{*}rStyle"), "val") in hidden_styles
        is_hidden = is_hidden or by_style or any(map(hides_run, element.iterfind("{*}rPr")))
    for child in element:
        yield from element_text(child, is_hidden, hidden_styles)
    text = element.text or ""
    if "wordprocessingml" in namespace and name == "t":
        yield ("", len(text)) if is_hidden else (text, 0)
    elif "wordprocessingml" in namespace and name in CHARACTERS:
        is_mark_deleted = name == "p" and element.find("{*}pPr/{*}rPr/{*}del") is not None
        yield ("" if is_mark_deleted else CHARACTERS[name]), 0


def hides_run(properties: Any) -> bool:
    """Whether run properties hide the text: hidden, white without a background, or too small to read."""
    values = {}
    for child in properties:
        values[child.tag.rpartition("}")[2]] = value(child, "val", "true").lower()
    if any(values.get(name, "0") not in OFF for name in ("vanish", "webHidden")):
        return True
    is_white = values.get("color") == "ffffff" and not {"shd", "highlight"} & values.keys()
    size = values.get("sz", "24")  # in half points
    return is_white or (size.isdigit() and int(size) < 2 * MIN_POINTS)


def parse_pdf(content: bytes, max_pages: int) -> Pieces:
    """Extract the text of all pages. Raises RefusedError for no text, too many pages, or password protection.

    Invisible text is kept if it is the only text of a page with an image: the text layer of a scan.
    """
    import pypdfium2 as pdfium
    from pypdfium2 import raw

    try:
        document = pdfium.PdfDocument(content)
    except pdfium.PdfiumError as error:
        if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise RefusedError("encrypted") from None
        raise
    if len(document) > max_pages:
        raise RefusedError("pages", len(document))
    has_text = False
    for page in document:
        text, objects = page_text(page), list(page.get_objects())
        texts = [item for item in objects if item.type == raw.FPDF_PAGEOBJ_TEXT]
        invisible = [raw.FPDFTextObj_GetTextRenderMode(item) == raw.FPDF_TEXTRENDERMODE_INVISIBLE for item in texts]
        is_scan = all(invisible) and any(item.type == raw.FPDF_PAGEOBJ_IMAGE for item in objects)
        hidden = [item for item, mode in zip(texts, invisible, strict=True) if mode or hides_text(item, page)]
        if is_scan:
            hidden = []
        for item in hidden:
            page.remove_obj(item)
        visible = page_text(page) if hidden else text
        has_text = has_text or bool(text.strip())
        yield visible + "\n\n", len("".join(text.split())) - len("".join(visible.split()))
        page.close()
    if not has_text:
        raise RefusedError("scanned", len(document))


def page_text(page: Any) -> str:
    """All text of a PDF page; a hyphen at the end of a line, which PDFium marks, stays a hyphen."""
    textpage = page.get_textpage()
    text: str = textpage.get_text_range().replace("\r\n", "\n").replace("\ufffe", "-")
    textpage.close()
    return text


def hides_text(item: Any, page: Any) -> bool:
    """Whether a text object of a PDF page is white or transparent or, outside forms, too small or off the page."""
    from pypdfium2 import raw

    colour = [c_uint() for _ in range(4)]
    if raw.FPDFPageObj_GetFillColor(item, *colour):
        *components, opacity = (part.value for part in colour)
        if min(components) >= WHITE or not opacity:
            return True
    if item.level > 0:
        return False  # sizes and positions in a form are relative to it
    left, bottom, right, top = item.get_bounds()
    matrix = item.get_matrix()
    scale = max(math.hypot(matrix.a, matrix.b), math.hypot(matrix.c, matrix.d))
    # The unit of a Type 3 font may have any size: use the size of its glyphs.
    size: float = max(item.get_font_size() * scale, min(right - left, top - bottom))
    page_left, page_bottom, page_right, page_top = page.get_bbox()
    is_outside: bool = left > page_right or right < page_left or bottom > page_top or top < page_bottom
    return size < MIN_POINTS or is_outside


if __name__ == "__main__":
    main()
