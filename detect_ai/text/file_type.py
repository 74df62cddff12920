"""File types by signature, and decoding of plain text. Shared by the command line and the service."""

from codecs import BOM_UTF16_BE, BOM_UTF16_LE

from detect_ai.core.errors import InputError

TEXT, DOCX, PDF = "text", "docx", "pdf"
DESCRIPTIONS = {
    TEXT: "plain text",
    DOCX: "a ZIP archive, such as a Word document",
    PDF: "a PDF",
    "ole": "an old Office document or one with a password",
    "rtf": "RTF",
    "html": "HTML",
}


def file_type(content: bytes, expected: str = TEXT) -> str:
    """The type of a file from its first bytes, a key of `DESCRIPTIONS`; `expected` is the type from its name."""
    head = content[:1024]
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith(b"PK\x03\x04"):
        return DOCX
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return "ole"
    # A text may mention the signature of a PDF; a PDF may have up to 1,024 other bytes before its signature.
    if start.startswith(b"%pdf-") or (expected == PDF and b"%PDF-" in head):
        return PDF
    if start.startswith(b"{\\rtf"):
        return "rtf"
    return "html" if start.startswith((b"<!doctype html", b"<html")) else TEXT


def decode_text(content: bytes) -> str:
    """Plain text in UTF-8, or in UTF-16 with a byte order mark. Raises InputError for anything else."""
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: invalid byte at position {error.start}; save it as UTF-8 text") from None
    if "\0" in text:
        raise InputError(f"not a text: NUL character at position {text.index(chr(0))}")
    return text
