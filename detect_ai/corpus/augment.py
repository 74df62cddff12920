"""Augmentation: attacked copies of training texts, in the group and shard of their originals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from detect_ai.core.config import CorpusConfig
from detect_ai.corpus.splits import shuffle_key
from detect_ai.text.attacks import ATTACKS
from detect_ai.text.normalize import normalise

Ints = NDArray[np.int64]

COPIED = 0.3  # fraction of the training rows that get an attacked copy


def add_augmented_rows(part: Ints, index: pd.DataFrame, corpus: CorpusConfig, seed: int) -> tuple[Ints, list[str]]:
    """The rows of a shard with copies of some of them, shuffled, and the attack on each ("" for originals).

    Args:
        part: positions of the originals in the index.
        index: of the scan.
        corpus: the attacks.
        seed: draws the originals, the attack on each, and the order.
    """
    if not corpus.augment:
        return part, [""] * len(part)
    rngs = [np.random.default_rng([seed, 1, shuffle_key(seed, str(name))]) for name in index["id"].to_numpy()[part]]
    draws = [(rng.random() < COPIED, int(rng.integers(len(corpus.augment)))) for rng in rngs]
    copies = [position for position, (is_copied, _) in enumerate(draws) if is_copied]
    rows = np.concatenate([part, part[copies]])
    attacks = [""] * len(part) + [corpus.augment[draws[position][1]] for position in copies]
    order = np.random.default_rng([seed, 2, int(part[0])]).permutation(len(rows))
    return rows[order], [attacks[position] for position in order]


def attack_copies(table: pa.Table) -> pa.Table:
    """Attack the texts of the copies (rows whose column `copy` names an attack), and drop that column.

    The random numbers of a copy are drawn from its id: the same text is attacked in the same way.
    """
    attacks = table["copy"].to_pylist()
    table = table.drop(["copy"])
    if not any(attacks):
        return table
    names = ("id", "text", "normalised", "attack")
    columns: dict[str, list[str]] = {name: table[name].to_pylist() for name in names}
    for position, attack in enumerate(attacks):
        if attack:
            row_id = columns["id"][position]
            rng = np.random.default_rng(shuffle_key(0, f"{row_id}\0{attack}"))
            text = ATTACKS[attack](columns["normalised"][position], rng)
            copy = (f"{row_id}+{attack}", text, normalise(text).text, attack)
            for column, value in zip(names, copy, strict=True):
                columns[column][position] = value
    for column, values in columns.items():
        table = table.set_column(table.column_names.index(column), column, pa.array(values, pa.string()))
    return table
