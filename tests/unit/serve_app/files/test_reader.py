"""Files as texts: what is read of them, and that no file takes more than it is given."""

from __future__ import annotations

import asyncio
import time

import pytest

from detect_ai.core.config import ServeConfig
from serve_app.api.errors import ProblemError
from serve_app.engine.batcher import QueueFullError
from serve_app.files import reader as files
from serve_app.files.reader import FileReader, Upload, text_of
from serve_app.files.uploads import file_name
from tests.fixtures import documents

CONFIG = ServeConfig(max_pages=20, file_timeout_s=20)
SENTENCE = "The council met on Tuesday to vote on the bridge."
BILLION_LAUGHS = (
    b'<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b'<w:document xmlns:w="%b"><w:p><w:r><w:t>&b;</w:t></w:r></w:p></w:document>' % documents.WORD.encode()
)
SHOW = b"BT /F1 1 Tf (ha) Tj ET\n"


def text(name: str, content: bytes, config: ServeConfig = CONFIG) -> str:
    return text_of(Upload(name, content), config)


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "b.md", "c.d.md"])
@pytest.mark.parametrize("content", ["Zoë said «no».", "\ufeffZoë said «no»."])
def test_text_is_read_as_utf8_with_or_without_a_mark(name: str, content: str) -> None:
    assert text(name, content.encode()) == "Zoë said «no»."


def test_paragraphs_of_a_word_document_are_lines() -> None:
    assert text("a.docx", documents.docx("First – «one».", "Second.")).split("\n")[:2] == ["First – «one».", "Second."]


def test_of_a_word_document_what_a_reader_sees_is_read_once() -> None:
    deleted = "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
    moved = "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>"
    field = "<w:r><w:instrText>PAGE</w:instrText></w:r>"
    stops = '<w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr>'
    twice = (
        '<w:r><m:AlternateContent xmlns:m="http://schemas.openxmlformats.org/markup-compatibility/2006"><m:Choice>'
        "<w:t>box</w:t></m:Choice><m:Fallback><w:t>box</w:t></m:Fallback></m:AlternateContent></w:r>"
    )
    seen = "<w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t></w:r>"
    assert (
        text("a.docx", documents.docx_of(f"<w:p>{stops}{deleted}{moved}{field}{twice}{seen}</w:p>")) == "boxa\tb\nc-d\n"
    )


def test_the_pages_of_a_pdf_are_read_in_order() -> None:
    found = text("a.pdf", documents.pdf(f"One. {SENTENCE}", f"Two. {SENTENCE}"))
    assert found.split() == f"One. {SENTENCE} Two. {SENTENCE}".split()


def test_a_pdf_that_is_locked_for_changes_only_is_read() -> None:
    assert SENTENCE in text("a.pdf", documents.pdf(SENTENCE, owner_password="owner"))


# name: (file's name, content, status, what is said)
BAD = {
    "no ending": ("essay", b"a", 415, "Expected a file whose name ends in .txt, .md, .docx or .pdf."),
    "no name": ("", b"a", 415, "Expected a file whose name ends in .txt, .md, .docx or .pdf."),
    "a program": ("a.exe", b"MZ", 415, "Expected a file whose name ends in .txt, .md, .docx or .pdf."),
    "empty": ("a.txt", b"", 422, "The file holds no text"),
    "white space": ("a.md", b" \n", 422, "The file holds no text"),
    "Latin-1": ("a.txt", "Zoë".encode("latin-1"), 422, "not in UTF-8: invalid byte at position 2. Save it in UTF-8."),
    "UTF-16": ("a.txt", "Zoë".encode("utf-16"), 422, "The text is in UTF-16: save it in UTF-8."),
    "binary": ("a.txt", b"a\0b", 422, "no text: it has a NUL character at position 1"),
    "PDF as text": ("a.txt", documents.pdf(SENTENCE), 415, "named as a text but holds a PDF"),
    "Word as text": ("a.md", documents.docx(SENTENCE), 415, "named as a text but holds an archive, such as a Word"),
    "PDF as Word": ("a.docx", documents.pdf(SENTENCE), 415, "named as a Word document (.docx) but holds a PDF"),
    "Word as PDF": (
        "a.pdf",
        documents.docx(SENTENCE),
        415,
        "named as a PDF but holds an archive, such as a Word document",
    ),
    "text as PDF": ("a.pdf", b"The council", 415, "named as a PDF but holds something else"),
    "text as Word": ("a.docx", b"The council", 415, "named as a Word document (.docx) but holds something else"),
    "old Word": ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), 415, "old Office format, or protected by"),
    "sheet": (
        "a.docx",
        documents.docx_of("", relations=documents.RELATIONS.replace("word/document", "xl/workbook")),
        415,
        "Expected a Word document (.docx), found another archive",
    ),
    "torn Word": ("a.docx", documents.docx(SENTENCE)[:2000], 422, "damaged, it cannot be read as a Word document"),
    "torn XML": ("a.docx", documents.docx_of(b"<w:document"), 422, "damaged, it cannot be read as a Word document"),
    "Word without text": ("a.docx", documents.docx_of("<w:p/>"), 422, "The file holds no text"),
    "entities": ("a.docx", documents.docx_of(BILLION_LAUGHS), 422, "damaged"),
    "bomb": ("a.docx", documents.docx_of(b" " * 49_000_000), 413, "unpacks to 49000000 bytes"),
    "big bomb": ("a.docx", documents.docx_of(b" " * 60_000_000), 413, "unpacks to 60000000 bytes"),
    "lying bomb": (
        "a.docx",
        documents.understated(documents.docx_of(b" " * 49_000_000), 49_000_000),
        422,
        "damaged",
    ),
    "crowd": ("a.docx", documents.docx_of("<w:p/>", 2_500), 413, "holds 2502 files, at most 2000 are read"),
    "torn PDF": ("a.pdf", b"%PDF-1.7\nnothing", 422, "damaged, it cannot be read as a PDF"),
    "scanned": ("a.pdf", documents.pdf("", ""), 422, "No text stands on the pages of this PDF (2), it may be scanned"),
    "password": ("a.pdf", documents.pdf(SENTENCE, password="secret"), 422, "protected by a password: save it without"),
    "many pages": ("a.pdf", documents.pdf_of(SHOW, 21), 413, "has 21 pages, at most 20 are read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_the_way_to_mend_it(name: str) -> None:
    file, content, status, detail = BAD[name]
    with pytest.raises(ProblemError) as refused:
        text(file, content)
    assert detail in refused.value.detail
    assert refused.value.status == status


def test_a_file_over_its_bytes_is_refused_unread() -> None:
    with pytest.raises(ProblemError, match="has 11 bytes, at most 10 are read"):
        text("a.pdf", b"%PDF-1.7 ab", CONFIG.model_copy(update={"max_file_bytes": 10}))


@pytest.mark.parametrize(
    "content", [("a.txt", b"ab " * 200), ("a.docx", documents.docx("ab " * 200)), ("a.pdf", documents.pdf("ab " * 200))]
)
def test_more_characters_than_could_ever_be_judged_are_refused(content: tuple[str, bytes]) -> None:
    with pytest.raises(ProblemError, match="more than 400 characters") as refused:
        text(*content, CONFIG.model_copy(update={"max_chars": 100}))
    assert refused.value.status == 413


def test_a_pdf_that_takes_for_ever_is_ended() -> None:
    endless = documents.pdf_of(SHOW * 2_000_000)
    assert len(endless) < 1_000_000
    started = time.monotonic()
    with pytest.raises(ProblemError, match="not read within 2 seconds"):
        text("a.pdf", endless, CONFIG.model_copy(update={"file_timeout_s": 2, "max_chars": 10**9}))
    assert time.monotonic() - started < 6


def test_a_pdf_that_unpacks_to_more_than_is_kept_is_refused() -> None:
    with pytest.raises(ProblemError, match="takes more memory than there is for one"):
        text("a.pdf", documents.pdf_of(SHOW * 5_000_000))


def test_a_file_that_takes_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MEMORY_BYTES", 150_000_000)
    with pytest.raises(ProblemError, match="takes more memory than there is for one"):
        text("a.pdf", documents.pdf_of(SHOW * 2_000_000))


def test_the_parser_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "secret")
    seen = {}
    run = files.subprocess.run
    monkeypatch.setattr(files.subprocess, "run", lambda *a, **k: seen.update(k["env"]) or run(*a, **k))
    text("a.docx", documents.docx(SENTENCE))
    assert set(seen) <= {"PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"}


@pytest.mark.parametrize(
    ("sent", "name"),
    [("a.txt", "a.txt"), ("/etc/a.txt", "a.txt"), (r"C:\Users\me\a.txt", "a.txt"), ("", ""), ("x" * 300, "x" * 255)],
)
def test_of_a_name_no_folder_is_kept(sent: str, name: str) -> None:
    assert file_name(sent) == name


def test_a_full_queue_refuses_parsed_files_only() -> None:
    async def scenario() -> None:
        reader = FileReader(ServeConfig())
        reader._waiting_files = files.MAX_WAITING_FILES
        with pytest.raises(QueueFullError), reader.held(1):
            pass
        with pytest.raises(QueueFullError):
            await reader.texts([Upload("a.pdf", b"")])
        assert await reader.texts([Upload("a.txt", b"a"), Upload("b.md", b"b")]) == ["a", "b"]

    asyncio.run(scenario())


def test_a_replica_holds_a_bounded_number_of_bytes() -> None:
    reader = FileReader(ServeConfig(max_upload_bytes=100))
    with reader.held(700), reader.held(100), pytest.raises(QueueFullError), reader.held(1):
        pass
    with reader.held(1000):  # nothing else is held
        pass
