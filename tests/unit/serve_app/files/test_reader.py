"""Text extraction from files: content, hidden text, rejections and resource limits."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from detect_ai.core.config import ServeConfig
from detect_ai.schemas import Verdict
from serve_app.api.uploads import file_name, report_hidden
from serve_app.errors import ProblemError, QueueFullError
from serve_app.files import reader
from serve_app.files.reader import FileReader, FileText, Upload, read_file
from tests.fixtures import documents
from tests.fixtures.fake_service import verdict

CONFIG = ServeConfig()
SENTENCE = "The council met on Tuesday to vote on the bridge."
BILLION_LAUGHS = (
    b'<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b'<w:document xmlns:w="%b"><w:p><w:r><w:t>&b;</w:t></w:r></w:p></w:document>' % documents.WORD.encode()
)
SHOW = b"BT /F1 9 Tf (ha) Tj ET\n"


def text(name: str, content: bytes, config: ServeConfig = CONFIG) -> str:
    return read_file(Upload(name, content), config).text


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "b.md", "c.d.md"])
@pytest.mark.parametrize("content", ["Zoë said «no».", "\ufeffZoë said «no»."])
def test_utf8_text_is_read_with_or_without_a_mark(name: str, content: str) -> None:
    assert text(name, content.encode()) == "Zoë said «no»."


def test_word_paragraphs_are_lines() -> None:
    assert text("a.docx", documents.docx("First – «one».", "Second.")).split("\n")[:2] == ["First – «one».", "Second."]


def test_visible_text_of_a_word_document_is_read_once() -> None:
    deleted = "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
    moved = "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>"
    field = "<w:r><w:instrText>PAGE</w:instrText></w:r>"
    stops = '<w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr>'
    twice = (
        '<w:r><m:AlternateContent xmlns:m="http://schemas.openxmlformats.org/markup-compatibility/2006"><m:Choice>'
        "<w:t>box</w:t></m:Choice><m:Fallback><w:t>box</w:t></m:Fallback></m:AlternateContent></w:r>"
    )
    seen = "<w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t></w:r>"
    content = documents.docx_of(f"<w:p>{stops}{deleted}{moved}{field}{twice}{seen}</w:p>")
    assert text("a.docx", content) == "boxa\tb\nc-d\n"


def test_pdf_pages_are_read_in_order() -> None:
    pages = text("a.pdf", documents.pdf(f"One. {SENTENCE}", f"Two. {SENTENCE}"))
    assert pages.split() == f"One. {SENTENCE} Two. {SENTENCE}".split()


def test_pdf_with_an_owner_password_is_read() -> None:
    assert SENTENCE in text("a.pdf", documents.pdf(SENTENCE, owner_password="owner"))


VISIBLE = b"BT /F1 12 Tf 50 700 Td (Shown.) Tj ET\n"
HIDDEN_PDF = {
    "invisible mode": b"BT /F1 12 Tf 3 Tr 50 600 Td (Secret) Tj ET\n",
    "white": b"q 1 1 1 rg BT /F1 12 Tf 50 600 Td (Secret) Tj ET Q\n",
    "white in CMYK": b"q 0 0 0 0 k BT /F1 12 Tf 50 600 Td [(Sec) -10 (ret)] TJ ET Q\n",
    "off the page": b"BT /F1 12 Tf 1 0 0 1 2000 600 Tm (Secret) Tj ET\n",
    "below the page": b"BT /F1 12 Tf 50 20 Td 900 TL T* (Secret) Tj ET\n",
    "transparent": b"q /Clear gs BT /F1 12 Tf 50 600 Td (Secret) Tj ET Q\n",
    "tiny": b"BT /F1 1 Tf 50 600 Td (Secret) Tj ET\n",
    "scaled down": b"q 0.1 0 0 0.1 0 0 cm BT /F1 12 Tf 500 600 Td (Secret) Tj ET Q\n",
}
HIDDEN_DOCX = {
    "vanish": "<w:vanish/>",
    "webHidden": '<w:webHidden w:val="true"/>',
    "white": '<w:color w:val="FFFFFF"/>',
    "tiny": '<w:sz w:val="2"/>',
}


@pytest.mark.parametrize("name", HIDDEN_PDF)
def test_hidden_pdf_text_is_left_out(name: str) -> None:
    content = documents.pdf_of(VISIBLE + HIDDEN_PDF[name] + b"0 Tr " + VISIBLE.replace(b"700", b"500"))
    file = read_file(Upload("a.pdf", content), CONFIG)
    assert (file.text.split(), file.hidden) == (["Shown.", "Shown."], 6)


def test_text_layer_of_a_scan_is_read() -> None:
    layer = b"q 600 0 0 800 0 0 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x80 EI Q\n" + HIDDEN_PDF["invisible mode"]
    assert read_file(Upload("a.pdf", documents.pdf_of(layer)), CONFIG) == ("Secret\n\n", 0)
    mixed = read_file(Upload("a.pdf", documents.pdf_of(VISIBLE + layer)), CONFIG)
    assert (mixed.text.split(), mixed.hidden) == (["Shown."], 6)


def test_size_of_a_type3_font_does_not_hide_its_text() -> None:
    content = documents.pdf_of(b"BT /F1 1 Tf 50 600 Td (aaa) Tj ET\n", font=documents.TYPE3)
    assert read_file(Upload("a.pdf", content), CONFIG) == ("aaa\n\n", 0)


@pytest.mark.parametrize("name", HIDDEN_DOCX)
def test_hidden_word_text_is_left_out(name: str) -> None:
    hidden = f"<w:r><w:rPr>{HIDDEN_DOCX[name]}</w:rPr><w:t>Secret</w:t></w:r>"
    shown = '<w:r><w:rPr><w:vanish w:val="0"/><w:sz w:val="24"/></w:rPr><w:t>Shown.</w:t></w:r>'
    white = '<w:r><w:rPr><w:color w:val="FFFFFF"/><w:shd w:fill="000000"/></w:rPr><w:t>Box</w:t></w:r>'
    content = documents.docx_of(f"<w:p>{shown}{hidden}<w:r><w:t>More.</w:t></w:r>{white}</w:p>")
    assert read_file(Upload("a.docx", content), CONFIG) == ("Shown.More.Box\n", 6)


@pytest.mark.parametrize(
    "use", ['<w:r><w:rPr><w:rStyle w:val="{}"/></w:rPr>', '<w:pPr><w:pStyle w:val="{}"/></w:pPr><w:r>']
)
def test_word_text_hidden_by_a_style_is_left_out(use: str) -> None:
    styles = '<w:style w:styleId="B"><w:basedOn w:val="A"/></w:style><w:style w:styleId="C"/>'
    styles += '<w:style w:styleId="A"><w:rPr><w:vanish/></w:rPr></w:style>'
    body = "".join(f"<w:p>{use.format(style)}<w:t>{style}</w:t></w:r></w:p>" for style in "ABC")
    assert "".join(read_file(Upload("a.docx", documents.docx_of(body, styles=styles)), CONFIG).text.split()) == "C"


@pytest.mark.parametrize(("hidden", "label"), [(0, "human"), (5, "human"), (500, "uncertain")])
def test_much_hidden_text_makes_a_verdict_uncertain(hidden: int, label: str) -> None:
    before = Verdict.model_validate(verdict("x"))
    after = report_hidden(before, FileText("x" * 500, hidden))
    assert after.label == label
    assert after.tampering == ({"hidden": hidden} if hidden else {})
    assert after.reasons == (["hidden_text"] if label == "uncertain" else [])


def test_word_text_is_separated_as_it_is_shown() -> None:
    box = "<w:r><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p></w:txbxContent></w:r>"
    row = "<w:r><w:t>left</w:t><w:ptab/><w:t>right</w:t><w:sym/></w:r>"
    deleted_mark = "<w:pPr><w:rPr><w:del/></w:rPr></w:pPr>"  # joins its paragraph with the next one
    joined = f"<w:p>{deleted_mark}<w:r><w:t>sen</w:t></w:r></w:p><w:p><w:r><w:t>tence</w:t></w:r></w:p>"
    body = f"<w:p><w:r><w:t>before</w:t></w:r>{box}<w:r><w:t>after</w:t></w:r></w:p><w:p>{row}</w:p>{joined}"
    assert text("a.docx", documents.docx_of(body)) == "before\nbox\nafter\nleft\tright•\nsentence\n"


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("/Word/Document.xml", "word/document.xml"),
        ("word\\document.xml", "word/document.xml"),
        ("word/my%20document.xml", "word/my document.xml"),
        ("./other/main.xml", "other/main.xml"),
    ],
)
def test_main_part_is_found_by_any_allowed_name(target: str, part: str) -> None:
    relations = documents.RELATIONS.replace("word/document.xml", target)
    content = documents.docx_of("<w:p><w:r><w:t>Shown.</w:t></w:r></w:p>", relations, part)
    assert text("a.docx", content) == "Shown.\n"


# name: (file name, content, status, part of the message)
BAD = {
    "no suffix": ("essay", b"a", 415, ".txt, .md, .docx or .pdf"),
    "a program": ("a.exe", b"MZ", 415, ".txt, .md, .docx or .pdf"),
    "empty": ("a.txt", b"", 422, "empty"),
    "many bytes": ("a.pdf", bytes(10_000_001), 413, "10000001 bytes"),
    "white space": ("a.md", b" \n", 422, "no text"),
    "zero-width space": ("a.md", "\u200b\ufeff".encode(), 422, "no text"),
    "Latin-1": ("a.txt", "Zoë".encode("latin-1"), 422, "position 2"),
    "binary": ("a.txt", b"a\0b", 422, "position 1"),
    "PDF as text": ("a.txt", documents.pdf(SENTENCE), 415, "a PDF"),
    "Word as text": ("a.md", documents.docx(SENTENCE), 415, "a ZIP archive"),
    "RTF as text": ("a.txt", rb"{\rtf1\ansi}", 415, "RTF"),
    "HTML as PDF": ("a.pdf", b"<!DOCTYPE html><p>", 415, "HTML"),
    "text as PDF": ("a.pdf", b"The council", 415, "plain text"),
    "old Word": ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), 415, "old Office"),
    "sheet": ("a.docx", documents.docx_of(b"<workbook/>"), 415, "another archive"),
    "other archive": ("a.docx", documents.docx_of("", relations="<r/>"), 415, "another archive"),
    "embedded document": ("a.docx", documents.docx_of("<w:altChunk/>"), 422, "altChunk"),
    "truncated Word": ("a.docx", documents.docx(SENTENCE)[:2000], 422, "damaged"),
    "truncated XML": ("a.docx", documents.docx_of(b"<w:document"), 422, "damaged"),
    "Word without text": ("a.docx", documents.docx_of("<w:p/>"), 422, "no text"),
    "entities": ("a.docx", documents.docx_of(BILLION_LAUGHS), 422, "damaged"),
    "bomb": ("a.docx", documents.docx_of(f"<w:p><w:r><w:t>{'a' * 49_000_000}</w:t></w:r></w:p>"), 413, "characters"),
    "truncated PDF": ("a.pdf", b"%PDF-1.7\nnothing", 422, "damaged"),
    "scanned": ("a.pdf", documents.pdf("", ""), 422, "scanned"),
    "password": ("a.pdf", documents.pdf(SENTENCE, password="secret"), 422, "password"),
    "many pages": ("a.pdf", documents.pdf_of(SHOW, 501), 413, "501 pages"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_with_its_problem(name: str) -> None:
    file, content, status, detail = BAD[name]
    with pytest.raises(ProblemError) as refused:
        text(file, content)
    assert detail in refused.value.detail
    assert refused.value.status == status


@pytest.mark.parametrize(
    "content", [("a.txt", b"ab " * 200), ("a.docx", documents.docx("ab " * 200)), ("a.pdf", documents.pdf("ab " * 200))]
)
def test_too_many_characters_are_refused(content: tuple[str, bytes]) -> None:
    with pytest.raises(ProblemError, match="more than 400 characters") as refused:
        text(*content, CONFIG.model_copy(update={"max_chars": 100}))
    assert refused.value.status == 413


def test_endless_pdf_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "TIMEOUT_S", 2)
    endless = documents.pdf_of(SHOW * 300_000, 20)
    assert len(endless) < 1_000_000
    started = time.monotonic()
    with pytest.raises(ProblemError, match="within 2 seconds"):
        text("a.pdf", endless, CONFIG.model_copy(update={"max_chars": 2_000_000}))
    assert time.monotonic() - started < 6


def test_pdf_that_unpacks_to_too_much_is_refused() -> None:
    with pytest.raises(ProblemError, match="memory limit"):
        text("a.pdf", documents.pdf_of(SHOW * 5_000_000))


def test_word_document_that_unpacks_to_too_much_is_refused() -> None:
    with pytest.raises(ProblemError, match="unpacks to 50"):
        text("a.docx", documents.docx_of("<w:p/>" + " " * 50_000_000))


def test_parser_gets_no_other_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "secret")
    seen: dict[str, str] = {}
    start = reader.subprocess.Popen
    monkeypatch.setattr(reader.subprocess, "Popen", lambda *a, **k: seen.update(k["env"]) or start(*a, **k))
    text("a.docx", documents.docx(SENTENCE))
    assert set(seen) <= {"PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"}


def test_output_of_the_parser_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = [sys.executable, "-c", "import sys\nwhile True: sys.stdout.write('x' * 65536)"]
    start = reader.subprocess.Popen
    monkeypatch.setattr(reader.subprocess, "Popen", lambda command, **k: start(endless, **k))
    with pytest.raises(ProblemError) as refused:
        text("a.docx", documents.docx(SENTENCE))
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("sent", "name"),
    [("a.txt", "a.txt"), ("/etc/a.txt", "a.txt"), (r"C:\Users\me\a.txt", "a.txt"), ("", ""), ("x" * 300, "x" * 255)],
)
def test_directories_of_a_name_are_dropped(sent: str, name: str) -> None:
    assert file_name(sent) == name


def test_full_queue_refuses_parsed_files_only() -> None:
    async def scenario() -> None:
        files = FileReader(ServeConfig())
        files._waiting_files["k"] = reader.MAX_WAITING_FILES // 2
        with files.held(1, "other"):
            pass
        with pytest.raises(QueueFullError), files.held(1, "k"):
            pass
        with pytest.raises(QueueFullError):
            await files.texts([Upload("a.pdf", b"")], "k")
        assert await files.texts([Upload("a.txt", b"a"), Upload("b.md", b"b")], "k") == [("a", 0), ("b", 0)]

    asyncio.run(scenario())


def test_held_bytes_are_bounded() -> None:
    files = FileReader(ServeConfig(max_upload_bytes=100))
    with files.held(700, "a"), files.held(100, "b"), pytest.raises(QueueFullError), files.held(1, "c"):
        pass
    with files.held(400, "a"), files.held(1, "b"), pytest.raises(QueueFullError), files.held(1, "a"):
        pass
    with files.held(1000, "a"):  # nothing else is held
        pass
