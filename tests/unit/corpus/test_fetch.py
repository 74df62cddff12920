"""Download of published sources, against a local server with files in the published formats."""

from __future__ import annotations

import hashlib
import json
import threading
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
from detect_ai.corpus.published import load_sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def essay(seed: int) -> str:
    """An English text of over 50 words, different for every seed, that does not repeat itself."""
    days = range(seed * 10, seed * 10 + 6)
    return " ".join(f"On day {day} they went to house {day} and it was there." for day in days)


ESSAYS = ("file,student,model\r\n" + "".join(f'{i},"{essay(i)}","{essay(i + 50)}"\r\n' for i in range(4))).encode()
HUMAN_LINES = "".join(json.dumps({"body": essay(i + 200)}) + "\n" for i in range(3)).encode()
AI_LINES = json.dumps([essay(i + 300) for i in range(3)]).encode()


class Server(ThreadingHTTPServer):
    """Serves `files` by path and records the requested paths. `statuses` are sent, one per request, before them."""

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
        "convert": {"format": "text_columns", "topic": "file", "columns": {"student": "human", "model": "gpt-4"}},
        "rows": {"human": 4, "ai": 4},
        "tolerance": 0.0,
    }
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(values | changes), encoding="utf-8")


LINES = {
    "files": [
        {"path": "h.jsonl", "sha256": hashlib.sha256(HUMAN_LINES).hexdigest(), "text": "body"},
        {"path": "a.json", "sha256": hashlib.sha256(AI_LINES).hexdigest(), "generator": "gpt-3", "rows": "0 2"},
    ],
    "convert": {"format": "parallel_json"},
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
    convert = {"format": "parallel_json"}
    described(tmp_path / "sources", "essays", convert=convert)
    with pytest.raises(CorpusError, match="parallel_json") as caught:
        fetch(*configured(tmp_path, server))
    assert "council" not in str(caught.value)


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
    flags = {"--list": ("fetch.dry_run=true", "list")}
    assert run_job("fetch", fetch, [*arguments, "--list"], flags=flags) == 0
    source = json.loads(capsys.readouterr().out)["sources"][0]
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
    assert {source.folder for source in sources} <= {"prose2", "calibration_humans"}
    # A licence that restricts use, or none, needs consent.
    restricted = [
        s for s in sources if "none stated" in s.licence or "NC" in s.licence or "non-commercial" in s.licence
    ]
    assert all(source.accept for source in restricted)
