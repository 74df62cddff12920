"""Sources of texts: CSV, JSON lines, Parquet, folders of text files, the Hugging Face hub and the embedded sample.

The only reader for training, scoring and evaluation. `list_pieces` lists the parts that can be read independently,
`read_piece` reads one as tables with `ROW_SCHEMA`, `raw_rows` as rows of the file. A broken row has a `problem`. A
broken file, or one with over 10% broken rows, raises CorpusError. The longest row bounds memory. Does not use Ray.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError, StorageError
from detect_ai.core.storage import open_uri, read_stream, storage_error
from detect_ai.corpus.columns import ROW_SCHEMA, ColumnMapper
from detect_ai.corpus.formats import Row, SourceReadError, csv_rows, json_rows, refuse_foreign, text_row
from detect_ai.corpus.presets import with_preset

TABLE_ROWS, TABLE_CHARS = 2000, 8 << 20  # of one table
ARROW_ROWS = 256  # per read, which bounds memory for long texts
MAX_BAD_FRACTION = 0.1  # of the rows of a file; with more, the file probably has another format
FOLDER_FILES = 512  # per piece: a folder may hold very many short files
HUB_PIECE_BYTES = 32 << 20  # unknown before reading
SUFFIXES = {
    "csv": (".csv", ".csv.gz", ".csv.zst"),
    "jsonl": tuple(f"{kind}{end}" for kind in (".jsonl", ".json", ".ndjson") for end in ("", ".gz", ".zst")),
    "parquet": (".parquet",),
    "folder": (".txt", ".md"),
}
_HIDDEN = re.compile(r"(?:^|/)(?:\.|__MACOSX/)")
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_BAD_ROW_ADVICE = {
    "csv": 'CSV rows (RFC 4180): as many fields as the header, quotes inside a field doubled (""), not escaped by \\',
    "jsonl": "one JSON object on each line, or one JSON array of objects",
}

# Takes the column names and the location of a file; returns the columns to read, or raises CorpusError.
Select = Callable[[Sequence[str], str], list[str]]


@dataclass(frozen=True)
class Piece:
    """A part of a source that can be read independently."""

    source: SourceConfig  # with its preset applied
    files: tuple[str, ...]  # paths below `root`; for the hub, the name of the part
    root: str = ""  # the source's folder in its file system
    size: int = 0  # bytes, approximate for the hub
    data: Any = None  # a part of a hub data set (`datasets.IterableDataset`)
    unlabelled: bool = False  # labels are optional
    alone: bool = True  # the only piece of its source, so it must not be empty


def list_pieces(source: SourceConfig, unlabelled: bool = False) -> list[Piece]:
    """The pieces of a source, in order. With `unlabelled`, labels are optional.

    Raises CorpusError if the source is missing or empty, or a hub data set cannot be loaded.
    """
    source = with_preset(source)
    if source.kind == "sample":
        pieces = [Piece(source, ("sample",))]
    elif source.kind == "hub":
        data = _load_hub(source)
        parts = [data.shard(data.num_shards, i) for i in range(data.num_shards)]
        pieces = [Piece(source, (f"part {i}",), size=HUB_PIECE_BYTES, data=part) for i, part in enumerate(parts)]
    else:
        root, files = _list_files(source)
        step = FOLDER_FILES if source.kind == "folder" else 1
        groups = [files[start : start + step] for start in range(0, len(files), step)]
        pieces = [Piece(source, tuple(n for n, _ in g), root, sum(size for _, size in g)) for g in groups]
    return [replace(piece, unlabelled=unlabelled, alone=len(pieces) == 1) for piece in pieces]


def read_piece(piece: Piece) -> Iterator[pa.Table]:
    """Rows of a piece as tables with `ROW_SCHEMA`, each at most `TABLE_ROWS` rows or about `TABLE_CHARS` characters.

    Raises CorpusError for a broken file, a missing column or one of the wrong type, an unknown label, or no rows.
    """
    mapper = ColumnMapper(piece.source, source_name(piece.source), piece.unlabelled)
    where = _where(piece.source, *piece.files)
    batch: list[dict[str, Any]] = []
    chars = 0
    for row in mapper.rows(raw_rows(piece, mapper.select)):
        batch.append(row)
        chars += len(row["text"])
        if len(batch) == TABLE_ROWS or chars >= TABLE_CHARS:
            mapper.check(whole=False, where=where)
            yield pa.Table.from_pylist(batch, ROW_SCHEMA)
            batch, chars = [], 0
    mapper.check(whole=True, where=where)
    if not mapper.count and piece.alone:
        raise CorpusError(f"source {piece.source.path}: empty, expected rows of text and label")
    if batch:
        yield pa.Table.from_pylist(batch, ROW_SCHEMA)


def raw_rows(piece: Piece, select: Select) -> Iterator[tuple[str, Row]]:
    """Rows of a piece, each with the name of its file. `select` chooses the columns of files that declare them.

    Raises CorpusError if a file is unreadable, or more than `MAX_BAD_FRACTION` of its rows cannot be parsed.
    """
    problems: Counter[str] = Counter()
    total = 0
    for file in piece.files:
        with _wrap_read_errors(_where(piece.source, file)):
            for row in read_stream(piece.source.path, partial(_file_rows, piece, file, select)):
                total += 1
                if row.problem:
                    problems[row.problem] += 1
                yield file, row
    bad = problems.total()
    if bad and (bad == total or bad > max(2, MAX_BAD_FRACTION * total)):
        advice = _BAD_ROW_ADVICE.get(piece.source.kind, "readable rows")
        if problems["bad_encoding"] > problems["bad_row"]:
            advice = "UTF-8: convert it, for example by `iconv -f windows-1252 -t utf-8`"
        where = _where(piece.source, *piece.files)
        raise CorpusError(f"{where}: {bad} of {total} rows cannot be read ({dict(problems)}); expected {advice}")


def _file_rows(piece: Piece, file: str, select: Select) -> Iterator[Row]:
    source = piece.source
    columns = partial(_columns, source, file, select)
    if source.kind == "sample":
        yield from map(Row, _sample_rows())
        return
    if source.kind == "hub":
        for table in piece.data.with_format("arrow").iter(ARROW_ROWS):
            yield from map(Row, table.select(columns(table.schema)).to_pylist())
        return
    filesystem, _ = open_uri(source.path)
    path = f"{piece.root}/{file}"
    if source.kind == "parquet":
        data = pq.ParquetFile(filesystem.open_input_file(path), buffer_size=1 << 20, pre_buffer=False)
        for batch in data.iter_batches(ARROW_ROWS, columns=columns(data.schema_arrow), use_threads=False):
            yield from map(Row, batch.to_pylist())
        return
    with filesystem.open_input_stream(path, compression=_CODECS.get(Path(file.lower()).suffix)) as stream:
        binary = io.BufferedReader(stream, 1 << 20)
        if source.kind == "folder":
            yield text_row(binary, file)
            return
        refuse_foreign(binary.peek(64)[:64])
        yield from csv_rows(binary, columns) if source.kind == "csv" else json_rows(binary)


def _columns(source: SourceConfig, file: str, select: Select, header: Sequence[str] | pa.Schema) -> list[str]:
    """The columns to read from a file with a header or schema."""
    names = header.names if isinstance(header, pa.Schema) else header
    if len(set(names)) < len(names):
        repeated = Counter(names).most_common(1)[0][0]
        raise SourceReadError(f"two columns have the name {repeated[:40]!r}: expected columns of different names")
    if isinstance(header, pa.Schema) and source.text in names:
        kind = header.field(source.text).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if str(values) not in ("string", "large_string", "string_view"):
            raise SourceReadError(f"column {source.text!r} is of type {kind}; expected string")
    return select(names, _where(source, file))


# Files


def list_files(uri: str) -> tuple[str, list[tuple[str, int]]]:
    """The folder of a path or URI and its sorted visible files (path below it, bytes). Raises CorpusError."""
    filesystem, path = open_uri(uri)
    path = path.rstrip("/")
    with _wrap_read_errors(f"source {uri}"):
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            root, _, name = path.rpartition("/")
            return root, [(name, info.size)]
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    files = sorted((f.path.removeprefix(f"{path}/"), f.size) for f in infos if f.type == pafs.FileType.File)
    return path, [file for file in files if not _HIDDEN.search(file[0])]


def _list_files(source: SourceConfig) -> tuple[str, list[tuple[str, int]]]:
    """The folder of a source and its files of the source's kind. Raises CorpusError if none exists or all are empty."""
    root, listed = list_files(source.path)
    suffixes = SUFFIXES.get(source.kind, ("",))
    files = [file for file in listed if file[0].lower().endswith(suffixes)]
    if not files:
        state = f"no file that ends in {' or '.join(suffixes)}" if listed else "no such file or folder"
        raise CorpusError(
            f"source {source.path}: {state}. Under `ray job submit` a relative path is one of the working directory: "
            f"give an absolute path or a gs:// URI that every node can read"
        )
    if not any(size for _, size in files):
        raise CorpusError(f"source {source.path}: empty, expected rows of text and label")
    return root, files


def _where(source: SourceConfig, *files: str) -> str:
    """The source, and the file if its folder has several, for an error message."""
    file = files[0] if len(files) == 1 else ""
    return f"source {source.path}" + (f", {file}" if file and not source.path.endswith(file) else "")


@contextmanager
def _wrap_read_errors(where: str) -> Iterator[None]:
    """Convert errors of any parser or back end to CorpusError. Their own messages may contain document text."""
    try:
        yield
    except CorpusError:
        raise
    except SourceReadError as error:
        raise CorpusError(f"{where}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and (known := storage_error(error)):
            raise StorageError(f"{where}: {known}") from error
        raise CorpusError(
            f"{where}: cannot be read ({type(error).__name__}): expected a whole file of its kind; it may be "
            f"truncated, damaged or not readable by you: copy it again"
        ) from error


def source_name(source: SourceConfig) -> str:
    """The value of the column `source`: the configured name, else the name of the preset, file or folder."""
    last = source.path.partition("?")[0].rstrip("/").rpartition("/")[2]
    return source.name or source.preset or last.partition(".")[0] or source.kind


def source_digest(source: SourceConfig) -> str:
    """sha256 of the content of a source, an input of the corpus's name.

    For a file it covers the bytes, for a folder all names, sizes and bytes (a name may be a label), for a hub data set
    the name, subset, split and revision.
    """
    source = with_preset(source)
    if source.kind == "sample":
        texts = [text for row in _sample_rows() for text in (row["id"], row["text"])]
        return hashlib.sha256("\0".join([*texts, ""]).encode()).hexdigest()
    if source.kind == "hub" and not Path(source.path).expanduser().is_dir():
        names = [source.path, source.subset, source.hub_split, source.revision, ""]
        return hashlib.sha256("\0".join(names).encode()).hexdigest()
    digest = hashlib.sha256()
    root, files = _list_files(source)
    filesystem, path = open_uri(source.path)
    for name, size in files:
        if path != f"{root}/{name}":  # of a folder
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with _wrap_read_errors(_where(source, name)):
            for chunk in read_stream(source.path, partial(_chunks, filesystem, f"{root}/{name}")):
                digest.update(chunk)
    return digest.hexdigest()


def _chunks(filesystem: pafs.FileSystem, path: str) -> Iterator[bytes]:
    with filesystem.open_input_stream(path, None) as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


# The hub and the sample


def _load_hub(source: SourceConfig) -> Any:
    """Stream a hub data set at a pinned revision, or a local folder in the same format. Raises CorpusError."""
    import datasets

    folder = Path(source.path).expanduser().absolute()
    if not folder.is_dir() and not re.fullmatch("[0-9a-f]{40}", source.revision):
        raise CorpusError(
            f"source {source.path}: no such folder, so it is a data set of the hub: expected its "
            f"corpus.sources.N.revision, a commit of 40 hex digits; found {source.revision!r}"
        )
    path, revision = (str(folder), None) if folder.is_dir() else (source.path, source.revision)
    try:
        return datasets.load_dataset(
            path, source.subset or None, split=source.hub_split, revision=revision, streaming=True
        )
    except Exception as error:  # of any back end
        # The message for a wrong subset or split lists the existing ones.
        detail = f": {str(error).splitlines()[0][:200]}" if isinstance(error, ValueError) and str(error) else ""
        raise CorpusError(
            f"source {source.path}: cannot be loaded from the hub or as a data set in its format "
            f"({type(error).__name__}{detail}); requested subset {source.subset!r}, split {source.hub_split!r}"
        ) from error


def _sample_rows() -> Iterator[dict[str, Any]]:
    """The embedded sample: distinct human stories and one AI mirror of each. Each mirror pair is a group."""
    # Read the stories from the file of the installed package, because importing gensim takes seconds.
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        raise CorpusError("source sample: its human half comes with gensim: pip install 'detect-ai[sample]'")
    stories = (Path(spec.origin).parent / "test/test_data/lee_background.cor").read_text("latin-1").splitlines()
    mirrors = (resources.files("detect_ai.corpus") / "sample/ai_mirrors.jsonl").read_text("utf-8").splitlines()
    for mirror in map(json.loads, mirrors):
        group = mirror["mirror_of"]
        common = {"domain": "news", "group": group}
        yield {"id": group, "text": stories[int(group.removeprefix("lee-"))], "generator": "", "label": 0, **common}
        yield {"id": mirror["id"], "text": mirror["text"], "generator": "claude", "label": 1, **common}
