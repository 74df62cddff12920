"""Normalise every text, and decide which rows stay: no empty text, no duplicate, no text with both labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai.errors import CorpusError
from detect_ai.text import normalise


def add_normalised(table: pa.Table) -> pa.Table:
    """Add `normalised` (string) and `digest` (sha256 of the normalised, case-folded text) to rows with `text`."""
    texts = [normalise(text).text if text else "" for text in table["text"].to_pylist()]
    digests = [hashlib.sha256(text.casefold().encode()).hexdigest() for text in texts]
    table = table.append_column("normalised", pa.array(texts, pa.string()))
    return table.append_column("digest", pa.array(digests, pa.string()))


@dataclass(frozen=True)
class Kept:
    """Which rows stay, and how many fell for which reason: the counts add up to the rows read."""

    mask: NDArray[Any]
    dropped: dict[str, int]


def keep(index: pd.DataFrame) -> Kept:
    """Decide over all rows at once.

    Args:
        index: one row a text, with `id`, `digest`, `label` and `empty` (bool).

    Returns:
        A mask in the index's order. Of duplicates the one with the smallest id stays; of a text that carries both
        labels none does.
    """
    empty = index["empty"].to_numpy()
    full = index[~empty]
    both = full.groupby("digest")["label"].transform("nunique") > 1
    first = full.sort_values("id", kind="stable").drop_duplicates("digest").index
    conflict = index.index.isin(full.index[both])
    duplicate = ~empty & ~conflict & ~index.index.isin(first)
    mask = ~(empty | conflict | duplicate)
    unique = index[mask].drop_duplicates(["id", "digest"])["id"]
    if unique.duplicated().any():
        twice = unique[unique.duplicated()].iloc[0]
        raise CorpusError(f"two different texts have the id {twice!r}: expected ids that are unique over all sources")
    counts = {"empty": empty, "both_labels": conflict, "duplicate": duplicate}
    return Kept(mask, {reason: int(rows.sum()) for reason, rows in counts.items()})
