"""Give every group to one split, by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pandas as pd

from detect_ai.errors import CorpusError


def assign_splits(groups: pd.Series, shares: Mapping[str, float], seed: int) -> pd.Series:
    """The split of every row: groups in an order drawn from the seed, cut at the cumulative shares of the groups.

    Args:
        groups: the group of each row.
        shares: share of each split, in order; they add up to 1.
        seed: decides the order of the groups.
    """
    names = sorted(groups.unique(), key=lambda group: shuffle_key(seed, group))
    cuts = np.rint(np.cumsum(list(shares.values())) * len(names)).astype(int)
    owner: dict[str, str] = {}
    for split, start, stop in zip(shares, [0, *cuts[:-1]], cuts, strict=True):
        owner.update(dict.fromkeys(names[start:stop], split))
    return groups.map(owner)


def require_both_classes(labels: pd.Series, splits: pd.Series, shares: Mapping[str, float]) -> None:
    """Raise CorpusError for a split that lacks a class: no figure of it would mean anything."""
    for split in shares:
        found = labels[splits == split].value_counts()
        human, ai = int(found.get(0, 0)), int(found.get(1, 0))
        if not human or not ai:
            raise CorpusError(
                f"split '{split}' has {human} human and {ai} AI texts: expected both classes in every split. "
                f"Add texts or groups of the missing class, or give the split a larger share in corpus.split"
            )


def shuffle_key(seed: int, name: str) -> str:
    """A key that orders names at random, the same on every machine."""
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()
