"""Word documents and PDFs for tests, good ones and hostile ones."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence

from docx import Document
from fpdf import FPDF

RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
    'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>'
)
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def docx(*paragraphs: str) -> bytes:
    """A Word document as python-docx writes it."""
    document, file = Document(), io.BytesIO()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    document.save(file)
    return file.getvalue()


def docx_of(body: str | bytes, entries: int = 0, relations: str = RELATIONS) -> bytes:
    """A Word document around the XML of its body, with further files in it."""
    file = io.BytesIO()
    if isinstance(body, str):
        body = f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>'.encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_rels/.rels", relations)
        archive.writestr("word/document.xml", body)
        for i in range(entries):
            archive.writestr(f"word/media/{i}", b"")
    return file.getvalue()


def understated(archive: bytes, size: int) -> bytes:
    """An archive that says of a file of `size` bytes that it has 1,000."""
    return archive.replace(struct.pack("<I", size), struct.pack("<I", 1_000))


def pdf(*pages: str, password: str = "", owner_password: str = "") -> bytes:
    """A PDF as fpdf2 writes it; behind a password where one is given."""
    document = FPDF()
    document.set_font("Helvetica", size=11)
    for page in pages:
        document.add_page()
        if page:
            document.multi_cell(0, 6, page)
        else:
            document.rect(10, 10, 100, 100)
    if password or owner_password:
        document.set_encryption(owner_password=owner_password or "owner", user_password=password or None)
    return bytes(document.output())


def pdf_of(content: bytes, pages: int = 1) -> bytes:
    """A PDF whose pages all show the same content stream, compressed."""
    stream = zlib.compress(content, 9)
    kids = " ".join(f"{5 + i} 0 R" for i in range(pages))
    page = b"<< /Type /Page /Parent 2 0 R /Contents 3 0 R /Resources << /Font << /F1 4 0 R >> >> /MediaBox [0 0 9 9] >>"
    return _pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>".encode(),
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(stream), stream),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            *[page] * pages,
        ]
    )


def _pdf(objects: Sequence[bytes]) -> bytes:
    file, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, each in enumerate(objects, 1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n%b" % (len(objects) + 1, table)
    file += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(file)
