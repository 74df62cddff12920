"""Sources to rows of one form. Every label is 0 (human) or 1 (ai) behind this door."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from detect_ai.config import SourceConfig
from detect_ai.errors import CorpusError, DetectAIError, ours
from detect_ai.storage import open_uri

if TYPE_CHECKING:
    from ray.data import Dataset

TEXT_COLUMNS = ("id", "text", "source", "domain", "generator", "group")
_LEE = "test/test_data/lee_background.cor"
_SUFFIXES = {"csv": (".csv",), "jsonl": (".jsonl", ".json"), "parquet": (".parquet",)}


def read_source(source: SourceConfig) -> Dataset:
    """Rows of a source with the columns of `TEXT_COLUMNS` and `label` (int8).

    Raises:
        CorpusError: the source is missing or empty, lacks a column, or cannot be parsed. A label that is not 0 or 1
            raises it when the rows are read.
    """
    import ray

    if source.kind == "sample":
        return ray.data.from_arrow(pa.Table.from_pylist(list(_sample_rows(source.name or "sample"))))
    filesystem, files = source_files(source)
    reader = {"csv": ray.data.read_csv, "jsonl": ray.data.read_json, "parquet": ray.data.read_parquet}[source.kind]
    with readable(source):
        rows: Dataset = reader([path for path, _ in files], filesystem=filesystem)
        schema = rows.schema()
    _check_columns(source, list(schema.names) if schema is not None else [])
    return rows.map_batches(partial(_standardise, source=source), batch_format="pyarrow")


def source_files(source: SourceConfig) -> tuple[pafs.FileSystem, list[tuple[str, int]]]:
    """The files of a source with their sizes in bytes, sorted by path. Raises CorpusError when there is none."""
    filesystem, path = open_uri(source.path)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        found = [info]
    else:
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    suffixes = _SUFFIXES[source.kind]
    files = [f for f in found if f.type == pafs.FileType.File and f.path.lower().endswith(suffixes)]
    if not files:
        state = "no such file or folder" if not found else f"no file that ends in {' or '.join(suffixes)}"
        raise CorpusError(
            f"source {source.path}: {state}. Under `ray job submit` a relative path is one of the working directory: "
            f"give an absolute path or a gs:// URI that every node can read"
        )
    if all(f.size == 0 for f in files):
        raise CorpusError(f"source {source.path}: empty, expected rows of text and label")
    return filesystem, sorted((f.path, f.size) for f in files)


def source_digest(source: SourceConfig) -> str:
    """sha256 over the bytes of a source: other bytes, another corpus."""
    digest = hashlib.sha256()
    if source.kind == "sample":
        for row in _sample_rows(source.name):
            digest.update(f"{row['id']}\0{row['text']}\0".encode())
        return digest.hexdigest()
    filesystem, files = source_files(source)
    for path, _ in files:
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def readable(source: SourceConfig) -> Iterator[None]:
    """Turn what goes wrong in a reader into a CorpusError. A reader's own words may hold a part of a text."""
    try:
        yield
    except Exception as error:
        cause = ours(error)
        if isinstance(cause, DetectAIError):
            raise CorpusError(str(cause).split("\n")[0]) from error  # Ray adds advice of its own behind it
        raise CorpusError(
            f"source {source.path}: cannot be read as {source.kind} ({type(cause).__name__}): "
            f"expected a whole file in UTF-8 whose rows have one form"
        ) from error


def _check_columns(source: SourceConfig, names: list[str]) -> None:
    if not names:
        raise CorpusError(f"source {source.path}: empty, expected rows of text and label")
    wanted = [c for c in (source.text, source.label, source.id, source.group, source.domain, source.generator) if c]
    missing = [c for c in wanted if c not in names]
    if missing:
        raise CorpusError(
            f"source {source.path}: no column {', '.join(map(repr, missing))}; found {', '.join(map(repr, names))}. "
            f"Map yours with corpus.sources.N.text=…, .label=…"
        )


def _standardise(table: pa.Table, source: SourceConfig) -> pa.Table:
    """Map a source's columns to ours. The text itself never stands in an error."""
    text = table[source.text].cast(pa.string())
    digests = [hashlib.sha256((t or "").encode("utf-8", "replace")).hexdigest()[:16] for t in text.to_pylist()]
    name = source.name or Path(source.path).stem
    own = pa.array([f"{name}-{d}" for d in digests], pa.string())
    ids = _filled(table, source.id, own)
    columns: dict[str, Any] = {
        "id": ids,
        "text": text,
        "source": pa.array([name] * len(table), pa.string()),
        "domain": _column(table, source.domain),
        "generator": _column(table, source.generator),
        "group": _filled(table, source.group, ids),
        "label": _labels(table, source),
    }
    return pa.table(columns)


def _filled(table: pa.Table, name: str, default: Any) -> Any:
    """A column as text; where a row has no value (or there is no such column), the row's default."""
    if not name:
        return default
    values = table[name].cast(pa.string())
    given = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(values), ""), False)
    return pc.if_else(given, values, default)


def _column(table: pa.Table, name: str) -> Any:
    if not name:
        return pa.array([""] * len(table), pa.string())
    return pc.fill_null(table[name].cast(pa.string()), "")


def _labels(table: pa.Table, source: SourceConfig) -> pa.Array:
    values = table[source.label].to_pylist()
    known = {0: 0, 1: 1, "0": 0, "1": 1}
    wrong = next((v for v in values if not isinstance(v, int | float | str) or v not in known), ...)
    if wrong is not ...:
        found = repr(str(wrong)) if len(str(wrong)) <= 20 else f"a value of {len(str(wrong))} characters"
        raise CorpusError(
            f"source {source.path}: column {source.label!r} holds {found}; expected 0 (human) or 1 (ai) in every row"
        )
    return pa.array([known[v] for v in values], pa.int8())


def _sample_rows(name: str) -> Iterator[dict[str, Any]]:
    """The embedded sample: distinct human stories, and one AI mirror for each. Group: the mirror pair."""
    stories = _lee_stories()
    mirrors = (resources.files("detect_ai") / "data/sample/ai_mirrors.jsonl").read_text("utf-8").splitlines()
    for mirror in map(json.loads, mirrors):
        group = mirror["mirror_of"]
        common = {"source": name, "domain": "news", "group": group}
        human = stories[int(group.removeprefix("lee-"))]
        yield {"id": group, "text": human, "generator": "", "label": 0, **common}
        yield {"id": mirror["id"], "text": mirror["text"], "generator": "claude", "label": 1, **common}


def _lee_stories() -> list[str]:
    """The human stories, read from the installed package's file; importing gensim would cost seconds."""
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        raise CorpusError(
            "source sample: the human half comes with the package gensim: pip install 'detect-ai[sample]'"
        )
    return (Path(spec.origin).parent / _LEE).read_text("latin-1").splitlines()
