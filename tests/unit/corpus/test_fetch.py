"""Download of published sources, against a local server with files in the published formats."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tenacity
import yaml

from detect_ai.core.compose import CONFIG_DIR
from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, CorpusError, InputError
from detect_ai.core.job import run_job
from detect_ai.core.storage import Storage
from detect_ai.corpus import fetch as fetch_stage
from detect_ai.corpus.fetch import fetch
from detect_ai.corpus.published import load_folders, load_sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def essay(seed: int) -> str:
    """An English text of over 50 words without repetition, different for every seed."""
    days = range(seed * 10, seed * 10 + 6)
    return " ".join(f"On day {day} they went to house {day} and it was there." for day in days)


ESSAYS = ("file,student,model\r\n" + "".join(f'{i},"{essay(i)}","{essay(i + 50)}"\r\n' for i in range(4))).encode()
HUMAN_LINES = "".join(json.dumps({"body": essay(i + 200)}) + "\n" for i in range(3)).encode()
AI_LINES = json.dumps([essay(i + 300) for i in range(3)]).encode()


class Server(ThreadingHTTPServer):
    """Serves `files` by path and records the requested paths. It first sends `statuses`, one per request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.statuses: list[int] = []
        self.requested: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        content = self.server.files.get(self.path)
        status = self.server.statuses.pop(0) if self.server.statuses else 200 if content is not None else 404
        self.send_response(status)
        body = content if content is not None and status == 200 else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch_stage, "_BACKOFF", tenacity.wait_none())
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        base = f"/some/data/{COMMIT}"
        server.files = {f"{base}/my%20essays.csv": ESSAYS, f"{base}/h.jsonl": HUMAN_LINES, f"{base}/a.json": AI_LINES}
        yield server
        server.shutdown()
        thread.join()


def described(directory: Path, name: str, **changes: Any) -> None:
    """Write the description of a source."""
    values: dict[str, Any] = {
        "name": name,
        "title": "Essays",
        "repository": "some/data",
        "commit": COMMIT,
        "licence": "MIT",
        "folder": "prose",
        "domain": "student_essay",
        "split": "train",
        "files": [{"path": "my essays.csv", "sha256": hashlib.sha256(ESSAYS).hexdigest()}],
        "convert": {"format": "records", "topic": "file", "columns": {"student": "human", "model": "gpt-4"}},
        "rows": {"human": 4, "ai": 4},
        "tolerance": 0.0,
    }
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(values | changes), encoding="utf-8")


def zipped(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def tagged(text: str) -> str:
    """A text in the format of the Brown Corpus."""
    return re.sub(r"(\w+)", r"\1/nn", text).replace(".", " ./.")


def sheet(rows: list[list[str]]) -> bytes:
    """An XLSX file with shared strings."""
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    strings = "".join(f"<si><t>{cell}</t></si>" for row in rows for cell in row)
    body = ""
    for i, row in enumerate(rows):
        cells = (f'<c r="{chr(65 + j)}{i + 1}" t="s"><v>{i * len(row) + j}</v></c>' for j in range(len(row)))
        body += f"<row>{''.join(cells)}</row>"
    return zipped(
        {
            "xl/sharedStrings.xml": f"<sst {main}>{strings}</sst>",
            "xl/worksheets/sheet1.xml": f"<worksheet {main}><sheetData>{body}</sheetData></worksheet>",
        }
    )


def converted(tmp_path: Path, server: Server, path: str, content: bytes, convert: dict[str, Any], **file: Any) -> list:
    """The rows of a source with one file."""
    server.files[f"/some/data/{COMMIT}/{path}"] = content
    files = [{"path": path, "sha256": hashlib.sha256(content).hexdigest(), **file}]
    described(tmp_path / "sources", "one", files=files, convert=convert, rows={"human": 9, "ai": 0}, tolerance=0.99)
    fetch(*configured(tmp_path, server))
    return pq.read_table(tmp_path / "data/prose/one.parquet").to_pylist()


LINES = {
    "files": [
        {"path": "h.jsonl", "sha256": hashlib.sha256(HUMAN_LINES).hexdigest(), "text": "body"},
        {"path": "a.json", "sha256": hashlib.sha256(AI_LINES).hexdigest(), "generator": "gpt-3", "rows": "0 2"},
    ],
    "convert": {"format": "records"},
    "rows": {"human": 3, "ai": 2},
}


def configured(tmp_path: Path, server: Server, **settings: Any) -> tuple[Config, Storage]:
    values = {"data": str(tmp_path / "data"), "sources": str(tmp_path / "sources"), "base_url": server.url, **settings}
    corpus = {"sources": [{"kind": "parquet", "path": str(tmp_path / "data" / name)} for name in ("prose", "other")]}
    return Config.model_validate({"fetch": values, "corpus": corpus}), Storage(str(tmp_path / "storage"))


def test_writes_the_rows_of_each_source(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "essays")
    described(tmp_path / "sources", "lines", **LINES)
    result = fetch(*configured(tmp_path, server))
    assert result["not_described"] == ["other"]
    assert [(s["name"], s["human"], s["ai"], s["downloaded"]) for s in result["sources"]] == [
        ("essays", 4, 4, 1),
        ("lines", 3, 2, 2),
    ]
    rows = pq.read_table(tmp_path / "data/prose/essays.parquet").to_pylist()
    assert {(r["label"], r["generator"]) for r in rows} == {(0, "human"), (1, "gpt-4")}
    assert {r["text"] for r in rows} == {essay(i) for i in (0, 1, 2, 3, 50, 51, 52, 53)}
    assert {r["topic"] for r in rows} == {f"essays_{i}" for i in range(4)}
    lines = pq.read_table(tmp_path / "data/prose/lines.parquet").to_pylist()
    assert [r["topic"] for r in lines if r["label"]] == ["lines_0", "lines_2"]


def test_documents_in_a_zip_file(tmp_path: Path, server: Server) -> None:
    content = zipped({"c/a1": tagged(essay(1)), "c/a2": tagged(essay(2)), "c/b1": tagged(essay(3)), "README": essay(4)})
    convert = {"format": "documents", "markup": "tagged"}
    rows = converted(tmp_path, server, "c.zip", content, convert, members="^c/", rows="0 2")
    assert {r["topic"]: r["text"] for r in rows} == {"one_c/a1": essay(1), "one_c/b1": essay(3)}


def test_documents_are_cut_to_windows(tmp_path: Path, server: Server) -> None:
    text = " ".join(essay(i) for i in range(6))
    convert = {"format": "documents", "windows": 3, "shortest": 60, "longest": 90}
    rows = converted(tmp_path, server, "t.txt", text.encode(), convert)
    assert {r["topic"] for r in rows} == {"one_t.txt"}
    assert len(rows) == 3
    assert all(50 <= len(r["text"].split()) <= 90 and r["text"] in text and r["text"].endswith(".") for r in rows)


def test_documents_of_a_report_in_html(tmp_path: Path, server: Server) -> None:
    story = "<div><b>{}</b><p>{} They said &quot;no&quot;.</p><p>not this</p></div>".format
    content = "<html>" + "".join(story(f"Prompt {i % 2}", essay(i)) for i in range(3))
    convert = {
        "format": "documents",
        "separator": "<div>",
        "topic": "<b>(.*?)</b>",
        "extract": "</b><p>(.*?)</p>",
        "markup": "xml",
    }
    rows = converted(tmp_path, server, "r.html", content.encode(), convert)
    assert [r["text"] for r in rows] == [f'{essay(i)} They said "no".' for i in range(3)]
    assert rows[0]["topic"] == rows[2]["topic"] != rows[1]["topic"]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("t.xlsx", sheet([["Title", "Text"], ["a", essay(1)], ["b", essay(2)]])),
        ("t.json", json.dumps({"Title": ["a", "b"], "Text": [essay(1), essay(2)]}, indent=1).encode()),
    ],
)
def test_records_of_other_formats(tmp_path: Path, server: Server, path: str, content: bytes) -> None:
    convert = {"format": "records", "topic": "Title", "text": "Text"}
    rows = converted(tmp_path, server, path, content, convert, group="g")
    assert {r["topic"]: r["text"] for r in rows} == {"one_g_a": essay(1), "one_g_b": essay(2)}


def test_lengths_are_matched_to_those_of_the_other_class(tmp_path: Path, server: Server) -> None:
    text = " ".join(essay(i) for i in range(6))
    convert = {"format": "documents", "match_lengths": True, "lengths": {"student_essay": [55, 55]}}
    (row,) = converted(tmp_path, server, "t.txt", text.encode(), convert)
    assert len(row["text"].split()) == 60  # up to the first sentence end after 50 words


def test_second_run_downloads_only_what_is_missing(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "lines", **LINES)
    fetch(*configured(tmp_path, server))
    kept, lost = (tmp_path / "data/downloads/lines" / file["sha256"] for file in LINES["files"])
    before = (tmp_path / "data/prose/lines.parquet").read_bytes()
    lost.unlink()
    server.requested.clear()
    fetch(*configured(tmp_path, server))
    assert server.requested == [f"/some/data/{COMMIT}/a.json"]
    assert (tmp_path / "data/prose/lines.parquet").read_bytes() == before
    kept.write_bytes(b"damaged")
    fetch(*configured(tmp_path, server))
    assert kept.read_bytes() == HUMAN_LINES


def test_failing_source_does_not_stop_the_others(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "absent", files=[{"path": "absent.csv", "sha256": "0" * 64}])
    described(tmp_path / "sources", "essays")
    with pytest.raises(CorpusError, match=r"1 of 2 sources failed.*source absent, absent\.csv.*404"):
        fetch(*configured(tmp_path, server))
    assert [path.name for path in (tmp_path / "data/prose").iterdir()] == ["essays.parquet"]
    assert server.requested.count(f"/some/data/{COMMIT}/absent.csv") == 1


def test_wrong_content_is_refused_and_not_kept(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "essays", files=[{"path": "my essays.csv", "sha256": "0" * 64}])
    with pytest.raises(CorpusError, match=f"{hashlib.sha256(ESSAYS).hexdigest()}; expected {'0' * 64}"):
        fetch(*configured(tmp_path, server))
    assert not (tmp_path / "data").exists()


def test_transient_errors_are_retried(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "essays")
    server.statuses = [503, 429]
    assert fetch(*configured(tmp_path, server))["sources"][0]["ai"] == 4
    assert len(server.requested) == 3


def test_restricted_licence_has_to_be_accepted(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "essays", accept=True, licence="none stated")
    with pytest.raises(CorpusError, match="--accept-licence"):
        fetch(*configured(tmp_path, server))
    assert server.requested == []
    assert fetch(*configured(tmp_path, server, accept_licence=True))["sources"][0]["human"] == 4


def test_other_number_of_rows_is_refused(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "essays", rows={"human": 5, "ai": 4}, tolerance=0.1)
    with pytest.raises(CorpusError, match="4 human texts after conversion; expected 5"):
        fetch(*configured(tmp_path, server))


def test_other_format_is_reported_without_text(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "essays", convert={"format": "records", "text": "absent"})
    with pytest.raises(CorpusError, match="records") as caught:
        fetch(*configured(tmp_path, server))
    assert "house" not in str(caught.value)


def test_only_chooses_sources(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "essays")
    described(tmp_path / "sources", "lines", **LINES)
    assert [s["name"] for s in fetch(*configured(tmp_path, server, only=["lines"]))["sources"]] == ["lines"]
    with pytest.raises(InputError, match=r"fetch\.only=unknown"):
        fetch(*configured(tmp_path, server, only=["unknown"]))


def test_corpus_without_described_folder_is_refused(tmp_path: Path, server: Server) -> None:
    described(tmp_path / "sources", "essays", folder="elsewhere")
    with pytest.raises(ConfigError, match="elsewhere"):
        fetch(*configured(tmp_path, server))


def test_list_downloads_nothing(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    described(tmp_path / "sources", "essays", accept=True)
    arguments = [
        f"storage.root={tmp_path}/storage",
        f"fetch.sources={tmp_path}/sources",
        f"fetch.base_url={server.url}",
        "fetch.only=[essays]",
    ]
    folders = {"prose": {"human": 9, "ai": 4, "missing": {"other": "not converted"}}, "empty": {"human": 0, "ai": 0}}
    (tmp_path / "sources/folders.yaml").write_text(yaml.safe_dump(folders), encoding="utf-8")
    flags = {"--list": ("fetch.dry_run=true", "list")}
    assert run_job("fetch", fetch, [*arguments, "--list"], flags=flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(f["folder"], f["complete"], f["described_human"]) for f in result["folders"]] == [
        ("empty", True, 0),
        ("prose", False, 4),
    ]
    source = result["sources"][0]
    assert (source["name"], source["licence"], source["accept"], source["human"]) == ("essays", "MIT", True, 4)
    assert source["url"] == f"https://github.com/some/data/tree/{COMMIT}"
    assert server.requested == []
    assert run_job("fetch", fetch, arguments, flags=flags) == 2


def test_description_is_checked(tmp_path: Path) -> None:
    described(tmp_path / "sources", "essays", commit="main")
    with pytest.raises(ConfigError, match=r"essays\.yaml: commit"):
        load_sources(tmp_path / "sources")


def test_shipped_descriptions_are_valid() -> None:
    sources = load_sources(CONFIG_DIR / "sources")
    assert len({source.name for source in sources}) == len(sources) > 0
    folders = load_folders(CONFIG_DIR / "sources")
    assert {source.folder for source in sources} <= set(folders)
    assert not {source.name for source in sources} & {name for folder in folders.values() for name in folder.missing}
    # A licence that restricts use, or none, needs consent.
    restricted = [s for s in sources if re.search(r"none stated|\bNC\b|non-commercial|research use", s.licence)]
    assert all(source.accept for source in restricted)
