"""Augmentation: attacked copies of training texts, in the group and shard of their originals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from detect_ai.core.config import CorpusConfig
from detect_ai.corpus.dedup import Ints
from detect_ai.corpus.splits import shuffle_key
from detect_ai.text.attacks import ATTACKS
from detect_ai.text.normalize import normalise

COPIED = 0.3  # fraction of the training rows that get an attacked copy


def add_augmented_rows(part: Ints, index: pd.DataFrame, corpus: CorpusConfig, seed: int) -> tuple[Ints, list[str]]:
    """The rows of a shard and copies of some of them, shuffled, with the attack on each ("" for originals).

    `part`: positions of the originals in the index of the scan. Originals, attacks and order are drawn from the seed.
    """
    if not corpus.augment:
        return part, [""] * len(part)
    copies, attacks = [], [""] * len(part)
    for position, row_id in zip(part, index["id"].to_numpy()[part], strict=True):
        rng = np.random.default_rng([seed, 1, shuffle_key(seed, str(row_id))])
        is_copied, attack = rng.random() < COPIED, int(rng.integers(len(corpus.augment)))
        if is_copied:
            copies.append(position)
            attacks.append(corpus.augment[attack])
    rows = np.concatenate([part, np.asarray(copies, np.int64)])
    order = np.random.default_rng([seed, 2, int(part[0])]).permutation(len(rows))
    return rows[order], [attacks[position] for position in order]


def attack_copies(table: pa.Table) -> pa.Table:
    """Attack the texts of the copies (rows whose column `copy` names an attack), and drop that column.

    The random generator of a copy is seeded with its id and attack, so the result is reproducible.
    """
    schema = table.drop(["copy"]).schema
    rows = table.to_pylist()
    for row in rows:
        if attack := row.pop("copy"):
            rng = np.random.default_rng(shuffle_key(0, f"{row['id']}\0{attack}"))
            text = ATTACKS[attack](row["normalised"], rng)
            row.update(id=f"{row['id']}+{attack}", text=text, normalised=normalise(text).text, attack=attack)
    return pa.Table.from_pylist(rows, schema)
