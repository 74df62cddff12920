"""Sources of texts: CSV, JSON lines, Parquet, folders of text files, the Hugging Face hub and the embedded sample.

The one reader for training, scoring and evaluation. `list_pieces` gives what can be read independently, `read_piece`
reads it as tables with `ROW_SCHEMA`, `raw_rows` as rows of the file. A broken row carries a `problem`; a broken file,
or one with more than a tenth of broken rows, raises a CorpusError. Memory is bounded by the longest row. Pure of Ray.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.core.storage import open_uri
from detect_ai.corpus import hub
from detect_ai.corpus.columns import ROW_SCHEMA, ColumnMapper, table_of
from detect_ai.corpus.formats import (
    Row,
    SourceReadError,
    csv_rows,
    is_text,
    json_rows,
    parquet_batches,
    refuse_foreign,
    table_rows,
    text_row,
)
from detect_ai.corpus.presets import with_preset

TABLE_ROWS, TABLE_CHARS = 2000, 8 << 20  # of one table
MAX_BAD_FRACTION = 0.1  # of the rows of a file: more cannot be parsed, and the file has another format
FOLDER_FILES, FOLDER_BYTES = 512, 16 << 20  # of one piece: a folder may hold very many short files
SUFFIXES = {
    "csv": (".csv", ".csv.gz", ".csv.zst"),
    "jsonl": tuple(f"{kind}{end}" for kind in (".jsonl", ".json", ".ndjson") for end in ("", ".gz", ".zst")),
    "parquet": (".parquet",),
    "folder": (".txt", ".md"),
}
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_BAD_ROW_ADVICE = {
    "csv": 'CSV rows (RFC 4180): as many fields as the header, quotes inside a field doubled (""), not escaped by \\',
    "jsonl": "one JSON object on each line, or one JSON array of objects",
}

# Given the column names of a file and where it is; returns the columns to read, or raises a CorpusError.
Select = Callable[[Sequence[str], str], list[str]]


@dataclass(frozen=True)
class Piece:
    """A part of a source that can be read independently.

    Attributes:
        source: with its preset applied.
        root: the source's folder inside its file system.
        files: paths below `root`.
        size: bytes, approximate for the hub.
        part: of a data set of the hub.
        parts: number of parts of that data set.
        unlabelled: a label is not expected.
        alone: it is the only piece of its source, so it may not be empty.
    """

    source: SourceConfig
    root: str = ""
    files: tuple[str, ...] = ()
    size: int = 0
    part: int = 0
    parts: int = 1
    unlabelled: bool = False
    alone: bool = False


def list_pieces(source: SourceConfig, unlabelled: bool = False) -> list[Piece]:
    """The pieces of a source, in order.

    Args:
        source: of any kind, with or without a preset.
        unlabelled: labels are optional.

    Raises:
        CorpusError: the source is missing or empty, or a data set of the hub cannot be loaded.
    """
    source = with_preset(source)
    if source.kind == "sample":
        return [Piece(source, unlabelled=unlabelled, alone=True)]
    if source.kind == "hub":
        if hub.is_local(source.path):  # workers have another working directory
            source = source.model_copy(update={"path": str(Path(source.path).expanduser().absolute())})
        parts, size = hub.count_parts(source)
        part = Piece(source, size=size, parts=parts, unlabelled=unlabelled, alone=parts == 1)
        return [replace(part, part=i) for i in range(parts)]
    listing = _list_files(source)
    groups = list(_small_together(listing.files)) if source.kind == "folder" else [[file] for file in listing.files]
    piece = Piece(source, listing.root, unlabelled=unlabelled, alone=len(groups) == 1)
    return [replace(piece, files=tuple(n for n, _ in g), size=sum(size for _, size in g)) for g in groups]


def read_piece(piece: Piece) -> Iterator[pa.Table]:
    """Rows of a piece as tables with `ROW_SCHEMA`, each at most `TABLE_ROWS` rows or about `TABLE_CHARS` characters.

    Raises:
        CorpusError: a file is broken, a column is missing or of another type, a label is unknown, or the source has no
            rows.
    """
    mapper = ColumnMapper(piece.source, source_name(piece.source), piece.unlabelled)
    where = _where(piece.source, *piece.files)
    batch: list[tuple[Any, ...]] = []
    chars, text = 0, ROW_SCHEMA.get_field_index("text")
    for row in mapper.rows(raw_rows(piece, mapper.select)):
        batch.append(row)
        chars += len(row[text])
        if len(batch) == TABLE_ROWS or chars >= TABLE_CHARS:
            mapper.check(whole=False, where=where)
            yield table_of(batch)
            batch, chars = [], 0
    mapper.check(whole=True, where=where)
    if not mapper.count and piece.alone:
        raise CorpusError(f"source {piece.source.path}: empty, expected rows of text and label")
    if batch:
        yield table_of(batch)


def raw_rows(piece: Piece, select: Select) -> Iterator[tuple[str, Row]]:
    """Rows of a piece with the columns of their file, each with the name of its file.

    Args:
        piece: of any source.
        select: is called with the column names of each file that declares them, and chooses.

    Raises:
        CorpusError: a file is unreadable, or more than `MAX_BAD_FRACTION` of its rows cannot be parsed.
    """
    problems: Counter[str] = Counter()
    total = 0
    for file, row in _rows(piece, select):
        total += 1
        if row.problem:
            problems[row.problem] += 1
            if total >= 1000:
                _refuse_bad(piece, problems, total)
        yield file, row
    _refuse_bad(piece, problems, total)


def _refuse_bad(piece: Piece, problems: Counter[str], total: int) -> None:
    bad = problems.total()
    if not bad or (bad < total and bad <= max(2, MAX_BAD_FRACTION * total)):
        return
    advice = _BAD_ROW_ADVICE.get(piece.source.kind, "readable rows")
    if problems["bad_encoding"] > problems["bad_row"]:
        advice = "UTF-8: convert it, for example by `iconv -f windows-1252 -t utf-8`"
    where = _where(piece.source, *piece.files)
    raise CorpusError(f"{where}: {bad} of {total} rows cannot be read ({dict(problems)}); expected {advice}")


def _rows(piece: Piece, select: Select) -> Iterator[tuple[str, Row]]:
    source = piece.source
    if source.kind == "sample":
        yield from (("sample", Row(values)) for values in _sample_rows(source_name(source)))
    elif source.kind == "hub":
        name = f"part {piece.part}"
        for table in hub.read_tables(source, piece.part, piece.parts):
            yield from ((name, row) for row in table_rows([table], _columns(source, table.schema, select, name)))
    else:
        filesystem, _ = open_uri(source.path)
        for file in piece.files:
            with _wrap_read_errors(source, file):
                yield from ((file, row) for row in _file_rows(source, filesystem, piece.root, file, select))


def _file_rows(
    source: SourceConfig, filesystem: pafs.FileSystem, root: str, file: str, select: Select
) -> Iterator[Row]:
    path = f"{root}/{file}"
    if source.kind == "parquet":
        data = pq.ParquetFile(filesystem.open_input_file(path), buffer_size=1 << 20, pre_buffer=False)
        columns = _columns(source, data.schema_arrow, select, file)
        yield from table_rows(parquet_batches(data, columns), columns) if columns else ()
        return
    with filesystem.open_input_stream(path, compression=_CODECS.get(Path(file.lower()).suffix)) as stream:
        binary = io.BufferedReader(stream, 1 << 20)
        if source.kind == "folder":
            yield text_row(binary, file)
            return
        refuse_foreign(binary.peek(64)[:64])
        if source.kind == "csv":
            yield from csv_rows(binary, lambda names: _select(source, names, select, file))
        else:
            yield from json_rows(binary)


def _select(source: SourceConfig, names: Sequence[str], select: Select, file: str) -> list[str]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise SourceReadError(f"two columns have the name {repeated[0][:40]!r}: expected columns of different names")
    return select(names, _where(source, file))


def _columns(source: SourceConfig, schema: pa.Schema, select: Select, file: str) -> list[str]:
    columns = _select(source, schema.names, select, file)
    if source.text in schema.names and not is_text(kind := schema.field(source.text).type):
        raise CorpusError(f"{_where(source, file)}: column {source.text!r} is of type {kind}; expected string")
    return columns


# Files


class Listing(NamedTuple):
    """Data files of a source: paths below `root` with sizes in bytes, sorted; `is_file`: the source is one file."""

    filesystem: pafs.FileSystem
    root: str
    files: list[tuple[str, int]]
    is_file: bool


def list_files(uri: str) -> Listing:
    """All files of a path or URI except hidden ones (`.name`, `__MACOSX`). Raises CorpusError."""
    filesystem, path = open_uri(uri)
    path = path.rstrip("/")
    with _wrap_read_errors(SourceConfig.model_construct(path=uri, kind="a file or folder"), ""):
        info = filesystem.get_file_info(path)
        is_file = info.type == pafs.FileType.File
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        infos = [info] if is_file else filesystem.get_file_info(selector)
    root = path.rpartition("/")[0] if is_file else path
    named = sorted((f.path.removeprefix(f"{root}/"), f.size) for f in infos if f.type == pafs.FileType.File)
    return Listing(filesystem, root, [f for f in named if is_file or not _is_hidden(f[0])], is_file)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _list_files(source: SourceConfig) -> Listing:
    """The files of a source's kind. Raises CorpusError if there are none, or all are empty."""
    listing = list_files(source.path)
    suffixes = SUFFIXES.get(source.kind, ("",))
    files = [file for file in listing.files if file[0].lower().endswith(suffixes)]
    if not files:
        state = f"no file that ends in {' or '.join(suffixes)}" if listing.files else "no such file or folder"
        raise CorpusError(
            f"source {source.path}: {state}. Under `ray job submit` a relative path is one of the working directory: "
            f"give an absolute path or a gs:// URI that every node can read"
        )
    if not any(size for _, size in files):
        raise CorpusError(f"source {source.path}: empty, expected rows of text and label")
    return listing._replace(files=files)


def _small_together(files: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    group: list[tuple[str, int]] = []
    for file in files:
        if group and (len(group) == FOLDER_FILES or sum(size for _, size in group) >= FOLDER_BYTES):
            yield group
            group = []
        group.append(file)
    yield group


def _where(source: SourceConfig, *files: str) -> str:
    """The source, and the file if it is one of several of its folder, for an error."""
    file = files[0] if len(files) == 1 else ""
    return f"source {source.path}" + (f", {file}" if file and not source.path.endswith(file) else "")


@contextmanager
def _wrap_read_errors(source: SourceConfig, file: str) -> Iterator[None]:
    """Turn the errors of a parser into a CorpusError. Their own messages may hold a part of a text."""
    try:
        yield
    except SourceReadError as error:
        raise CorpusError(f"{_where(source, file)}: {error}") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        raise CorpusError(
            f"{_where(source, file)}: cannot be read as {source.kind} ({type(error).__name__}): expected a whole file "
            f"of that kind; it may be truncated, damaged or not readable by you: copy it again"
        ) from error


def source_name(source: SourceConfig) -> str:
    """The value of the column `source`: the name given, else that of the preset, the file or the folder."""
    last = source.path.partition("?")[0].rstrip("/").rpartition("/")[2]
    return source.name or source.preset or last.partition(".")[0] or source.kind


def source_digest(source: SourceConfig) -> str:
    """sha256 of the content of a source, a part of the corpus's name.

    For a file it covers its bytes, for a folder all names, sizes and bytes (a name may be a label), for a data set of
    the hub its name, subset, split and revision.
    """
    source = with_preset(source)
    if source.kind == "hub" and not hub.is_local(source.path):
        return _sha256([source.path, source.subset, source.hub_split, source.revision])
    if source.kind == "sample":
        return _sha256(text for row in _sample_rows("") for text in (row["id"], row["text"]))
    digest = hashlib.sha256()
    listing = _list_files(source)
    for name, size in listing.files:
        if not listing.is_file:
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        path = f"{listing.root}/{name}"
        with _wrap_read_errors(source, name), listing.filesystem.open_input_stream(path, None) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


# The sample


def _sample_rows(name: str) -> Iterator[dict[str, Any]]:
    """The embedded sample: distinct human stories and one AI mirror for each. Group: the mirror pair."""
    stories = _lee_stories()
    mirrors = (resources.files("detect_ai.corpus") / "sample/ai_mirrors.jsonl").read_text("utf-8").splitlines()
    for mirror in map(json.loads, mirrors):
        group = mirror["mirror_of"]
        common = {"source": name, "domain": "news", "group": group}
        human = stories[int(group.removeprefix("lee-"))]
        yield {"id": group, "text": human, "generator": "", "label": 0, **common}
        yield {"id": mirror["id"], "text": mirror["text"], "generator": "claude", "label": 1, **common}


def _lee_stories() -> list[str]:
    """The human stories, read from the file of the installed package; importing gensim takes seconds."""
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        raise CorpusError(
            "source sample: the human half comes with the package gensim: pip install 'detect-ai[sample]'"
        )
    return (Path(spec.origin).parent / "test/test_data/lee_background.cor").read_text("latin-1").splitlines()
