"""Data sets of the Hugging Face hub, or of a local folder in its format, as Arrow tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError

PART_BYTES = 32 << 20
TABLE_ROWS = 256


def is_local(path: str) -> bool:
    """Whether the path of a source of kind hub is a local folder in the hub's format."""
    return Path(path).expanduser().is_dir()


def count_parts(source: SourceConfig) -> tuple[int, int]:
    """Number of parts of a data set, and the approximate bytes of each.

    Raises:
        CorpusError: the revision is not pinned, or there is no such data set.
    """
    data = _load(source)
    if is_local(source.path):
        return int(data.num_shards), PART_BYTES
    size = int(data.data.nbytes)
    parts = max(1, min(len(data), size // PART_BYTES))
    return parts, size // parts


def read_tables(source: SourceConfig, part: int, parts: int) -> Iterator[pa.Table]:
    """Tables of one part of a data set, in its order. Raises CorpusError."""
    contiguous = {} if is_local(source.path) else {"contiguous": True}
    shard = _load(source).shard(num_shards=parts, index=part, **contiguous)
    try:
        yield from shard.with_format("arrow").iter(TABLE_ROWS)
    except Exception as error:  # of any back end; its message may hold a part of a text
        raise CorpusError(
            f"source {source.path}: part {part} of {parts} cannot be read ({type(error).__name__}): expected whole "
            f"files whose rows have one form"
        ) from error


def _load(source: SourceConfig) -> Any:
    path, subset, split, revision = source.path, source.subset, source.hub_split, source.revision
    if is_local(path):  # streamed: the cache of `datasets` does not always notice that a local file has changed
        return _load_dataset(str(Path(path).expanduser()), subset, split, streaming=True)
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise CorpusError(
            f"source {path}: no such folder, so it is a data set of the hub: expected its corpus.sources.N.revision, a "
            f"commit of 40 hex digits; found {revision!r}"
        )
    return _load_pinned(path, subset, split, revision)


@cache  # once for each worker process, not for each part
def _load_pinned(path: str, subset: str, split: str, revision: str) -> Any:
    return _load_dataset(path, subset, split, revision=revision)


def _load_dataset(path: str, subset: str, split: str, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path, subset or None, split=split, **options)
    except Exception as error:  # of any back end
        # The message for a wrong subset or split names the existing ones.
        detail = f": {str(error).splitlines()[0][:200]}" if isinstance(error, ValueError) and str(error) else ""
        raise CorpusError(
            f"source {path}: cannot be loaded from the hub or as a data set in its format "
            f"({type(error).__name__}{detail}); requested subset {subset!r}, split {split!r}"
        ) from error
