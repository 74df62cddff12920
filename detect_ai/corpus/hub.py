"""Data sets of the Hugging Face hub, or of a folder in its format, as Arrow tables. Pure of Ray."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError

_PART_BYTES = 32 << 20
_TABLE_ROWS = 256


def parts_of(source: SourceConfig) -> tuple[int, int]:
    """Into how many parts a data set of the hub falls, and about how many bytes each has.

    Raises:
        CorpusError: the package is missing, the revision is not pinned, or there is no such data set.
    """
    data = _load(source)
    if _streams(source):
        return int(data.num_shards), _PART_BYTES
    size = int(data.data.nbytes)
    parts = max(1, min(len(data), size // _PART_BYTES))
    return parts, size // parts


def tables_of(source: SourceConfig, part: int, parts: int) -> Iterator[pa.Table]:
    """Tables of one part of a data set of the hub, in its order."""
    data = _load(source)
    split = {} if _streams(source) else {"contiguous": True}
    tables = iter(data.shard(num_shards=parts, index=part, **split).with_format("arrow").iter(_TABLE_ROWS))
    while True:
        try:
            table = next(tables)
        except StopIteration:
            return
        except Exception as error:  # as in `_load`; what it says may hold a part of a text
            raise CorpusError(
                f"source {source.path}: part {part} of {parts} cannot be read ({type(error).__name__}): expected whole "
                f"files whose rows have one form"
            ) from error
        yield table


def _load(source: SourceConfig) -> Any:
    local = is_local(source)
    if not local and not re.fullmatch("[0-9a-f]{40}", source.revision):
        raise CorpusError(
            f"source {source.path}: no such folder here, so it is a data set of the hub: expected its "
            f"corpus.sources.N.revision, a commit of 40 hex digits; found {source.revision!r}"
        )
    try:
        import datasets
    except ImportError:
        raise CorpusError(
            f"source {source.path}: kind hub needs the package datasets: pip install 'detect-ai[hub]'"
        ) from None
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            str(Path(source.path).expanduser()) if local else source.path,
            source.subset or None,
            split=source.hub_split,
            revision=None if local else source.revision,
            streaming=_streams(source),
        )
    except Exception as error:  # the library raises what its many back ends raise
        # What it says of a wrong subset or split names those that there are.
        said = f": {str(error).splitlines()[0][:200]}" if isinstance(error, ValueError) and str(error) else ""
        raise CorpusError(
            f"source {source.path}: cannot be loaded from the hub or as a data set in its format "
            f"({type(error).__name__}{said}); asked for subset {source.subset!r}, split {source.hub_split!r}"
        ) from error


def _streams(source: SourceConfig) -> bool:
    """A folder here is always streamed: the cache of `datasets` does not always notice that a file has changed."""
    return source.streaming or is_local(source)


def is_local(source: SourceConfig) -> bool:
    """Whether the path of a source of kind hub is a folder on this machine."""
    return Path(source.path).expanduser().is_dir()
