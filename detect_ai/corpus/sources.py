"""Sources to rows of one form. Every label is 0 (human) or 1 (ai) behind this door. Pure of Ray.

`pieces` says what can be read apart, `read_piece` reads it as a stream of tables with `ROW_SCHEMA`. What is wrong with
one row stands in its `problem`; what is wrong with a source is a CorpusError.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs as pafs

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import open_uri
from detect_ai.corpus import formats, hub
from detect_ai.corpus.formats import Row, UnreadableError
from detect_ai.corpus.presets import applied, preset_of
from detect_ai.corpus.standardise import ROW_SCHEMA, Standard, StandardRow, table_of

TABLE_ROWS = 2000
TABLE_CHARS = 8 << 20  # of text
_TEXT = ROW_SCHEMA.get_field_index("text")

_COMPRESSED = ("", ".gz", ".zst")
_SUFFIXES = {
    "csv": tuple(f".csv{end}" for end in _COMPRESSED),
    "jsonl": tuple(f"{kind}{end}" for kind in (".jsonl", ".json", ".ndjson") for end in _COMPRESSED),
    "parquet": (".parquet",),
}
_FOLDER_FILES, _FOLDER_BYTES = 512, 16 << 20  # of one piece: a folder may hold very many short files
_LEE = "test/test_data/lee_background.cor"


@dataclass(frozen=True)
class Piece:
    """What can be read apart from the rest of its source.

    Attributes:
        source: with its preset applied.
        root: the source's folder, inside its file system.
        files: paths below `root`.
        size: bytes, for the hub about.
        part: of a data set of the hub that has `parts`.
        parts: see `part`.
        unlabelled: a label is not expected.
        alone: it is the only one of its source, so it may not be without rows.
    """

    source: SourceConfig
    root: str = ""
    files: tuple[str, ...] = ()
    size: int = 0
    part: int = 0
    parts: int = 1
    unlabelled: bool = False
    alone: bool = False


def pieces(source: SourceConfig, unlabelled: bool = False) -> list[Piece]:
    """What can be read apart, in order.

    Args:
        source: any kind, with or without a preset.
        unlabelled: take what labels there are and miss none.

    Raises:
        CorpusError: the source is missing or empty, or a data set of the hub cannot be loaded.
    """
    source = applied(source)
    if source.kind == "sample":
        return [Piece(source, unlabelled=unlabelled, alone=True)]
    if source.kind == "hub":
        if hub.is_local(source):  # a worker stands in another folder
            source = replace(source, path=str(Path(source.path).expanduser().absolute()))
        parts, size = hub.parts_of(source)
        part = Piece(source, size=size, parts=parts, unlabelled=unlabelled, alone=parts == 1)
        return [replace(part, part=i) for i in range(parts)]
    listing = _listed(source)
    groups = list(_together(listing.files)) if preset_of(source).layout else [[file] for file in listing.files]
    piece = Piece(source, listing.root, unlabelled=unlabelled, alone=len(groups) == 1)
    return [replace(piece, files=tuple(n for n, _ in g), size=sum(size for _, size in g)) for g in groups]


def read_piece(piece: Piece) -> Iterator[pa.Table]:
    """Rows of a piece as tables with `ROW_SCHEMA`, of at most `TABLE_ROWS` rows or about `TABLE_CHARS` characters.

    Raises:
        CorpusError: a file is broken or cut off, a column is missing or of another type, a label is unknown, or the
            source has no rows.
    """
    standard = Standard(piece.source, source_name(piece.source), piece.unlabelled)
    batch: list[StandardRow] = []
    chars = 0
    for row in _rows(piece, standard):
        batch.append(row)
        chars += len(row[_TEXT])
        if len(batch) == TABLE_ROWS or chars >= TABLE_CHARS:
            standard.check(whole=False)
            yield table_of(batch)
            batch, chars = [], 0
    standard.check(whole=True)
    if not standard.count and piece.alone:
        raise CorpusError(f"source {piece.source.path}: empty, expected rows of text and label")
    if batch:
        yield table_of(batch)


def _rows(piece: Piece, standard: Standard) -> Iterator[StandardRow]:
    source = piece.source
    if source.kind == "sample":
        yield from standard.rows(map(Row, _sample_rows(source_name(source))), "sample")
    elif source.kind == "hub":
        yield from standard.rows(_of_hub(piece, standard), f"part {piece.part}")
    else:
        filesystem, _ = open_uri(source.path)
        for file in piece.files:
            with readable(source, file):
                yield from standard.rows(_of_file(piece, filesystem, file, standard), file)


def _of_hub(piece: Piece, standard: Standard) -> Iterator[Row]:
    for table in hub.tables_of(piece.source, piece.part, piece.parts):
        yield from formats.table_rows([table], standard.columns(table.schema))


def _of_file(piece: Piece, filesystem: pafs.FileSystem, file: str, standard: Standard) -> Iterator[Row]:
    kind, path, layout = piece.source.kind, f"{piece.root}/{file}", preset_of(piece.source).layout
    if layout:
        yield from layout.read(filesystem, piece.root, file)
    elif kind == "parquet":
        data = formats.parquet_file(filesystem, path)
        columns = standard.columns(data.schema_arrow)
        yield from formats.table_rows(formats.parquet_tables(data, columns), columns)
    else:
        with filesystem.open_input_stream(path) as stream:
            is_csv = kind == "csv"
            yield from formats.csv_rows(stream, standard.header) if is_csv else formats.json_rows(stream, file)


def suffixes() -> dict[str, tuple[str, ...]]:
    """How the names of the files of each kind end."""
    return dict(_SUFFIXES)


def source_name(source: SourceConfig) -> str:
    """What stands in the column `source`: the name given, else that of the preset, the file or the folder."""
    last = source.path.partition("?")[0].rstrip("/").rpartition("/")[2]
    return source.name or source.preset or last.partition(".")[0] or source.kind


def source_digest(source: SourceConfig) -> str:
    """sha256 of a source: other bytes, another corpus.

    Of a file it is that of its bytes, of a folder that of all names, sizes and bytes, for a name may be a label. Of a
    data set of the hub it is that of its name, subset, split and revision.
    """
    source = applied(source)
    if source.kind == "hub" and not hub.is_local(source):
        return _sha256([source.path, source.subset, source.hub_split, source.revision])
    if source.kind == "sample":
        return _sha256(text for row in _sample_rows("") for text in (row["id"], row["text"]))
    digest = hashlib.sha256()
    listing = _listed(source)
    for name, size in listing.files:
        if not listing.is_file:
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with readable(source, name), listing.filesystem.open_input_stream(f"{listing.root}/{name}", None) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


# Files


class _Listing(NamedTuple):
    """Files with rows: paths below `root` with sizes in bytes, sorted; `is_file`: the source is one file."""

    filesystem: pafs.FileSystem
    root: str
    files: list[tuple[str, int]]
    is_file: bool


def _listed(source: SourceConfig) -> _Listing:
    """The files of a source. Raises CorpusError when there is none, or none with a byte in it."""
    filesystem, path = open_uri(source.path)
    path = path.rstrip("/")
    with readable(source, ""):
        info = filesystem.get_file_info(path)
        is_file = info.type == pafs.FileType.File
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        found = [info] if is_file else filesystem.get_file_info(selector)
    root = path.rpartition("/")[0] if is_file else path
    named = sorted((f.path.removeprefix(f"{root}/"), f.size) for f in found if f.type == pafs.FileType.File)
    files = [(name, size) for name, size in named if _accepts(source, name)]
    if not files:
        state = f"no {_expected(source)}" if found else "no such file or folder"
        raise CorpusError(
            f"source {source.path}: {state}. Under `ray job submit` a relative path is one of the working directory: "
            f"give an absolute path or a gs:// URI that every node can read"
        )
    if not any(size for _, size in files):
        raise CorpusError(f"source {source.path}: empty, expected rows of text and label")
    return _Listing(filesystem, root, files, is_file)


def _accepts(source: SourceConfig, name: str) -> bool:
    if source.kind == "hub":  # a download leaves times of its own in .cache
        return not any(part.startswith(".") for part in name.split("/"))
    layout = preset_of(source).layout
    return layout.accepts(name) if layout else name.lower().endswith(_SUFFIXES[source.kind])


def _expected(source: SourceConfig) -> str:
    layout = preset_of(source).layout
    if layout:
        return layout.expected
    return f"file that ends in {' or '.join(_SUFFIXES[source.kind])}" if source.kind in _SUFFIXES else "file"


def _together(files: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    group: list[tuple[str, int]] = []
    for file in files:
        if group and (len(group) == _FOLDER_FILES or sum(size for _, size in group) >= _FOLDER_BYTES):
            yield group
            group = []
        group.append(file)
    yield group


@contextmanager
def readable(source: SourceConfig, file: str) -> Iterator[None]:
    """Turn what goes wrong in a reader into a CorpusError. A reader's own words may hold a part of a text."""
    where = f"source {source.path}" + (f", {file}" if file and not source.path.endswith(file) else "")
    try:
        yield
    except UnreadableError as error:
        raise CorpusError(f"{where}: {error}") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        raise CorpusError(
            f"{where}: cannot be read as {source.kind} ({type(error).__name__}): expected a whole file of that kind; "
            f"it may be cut off, damaged or not open to you: copy it again"
        ) from error


# The sample


def _sample_rows(name: str) -> Iterator[dict[str, Any]]:
    """The embedded sample: distinct human stories, and one AI mirror for each. Group: the mirror pair."""
    stories = _lee_stories()
    mirrors = (resources.files("detect_ai.corpus") / "sample/ai_mirrors.jsonl").read_text("utf-8").splitlines()
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
