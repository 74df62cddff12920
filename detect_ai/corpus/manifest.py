"""Manifest of a corpus, the last file that `prepare` writes, and access to the shards of a finished corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detect_ai.core.errors import CorpusError
from detect_ai.core.job import read_result
from detect_ai.core.storage import Storage, read_stream

FORMAT = 2
READ_AT_ONCE = 256  # rows of a table
ORIGINAL = "none"  # value of the column `attack` for texts that are not attacked
QUARANTINE = "quarantine"  # folder of the dropped rows, next to the folders of the splits


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split."""

    split: str
    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Description of a corpus: its inputs, counts and shards."""

    name: str
    fingerprint: str
    sources: list[dict[str, Any]]
    language: str
    seed: int
    tokenizer: str
    normaliser_version: int
    rows_read: int
    dropped: dict[str, int]
    counts: list[dict[str, Any]]  # rows by split, label, source, domain, generator and attack
    shards: list[Shard]  # of the splits and of the quarantine
    near_duplicates: dict[str, int]  # numbers of clusters and of texts in them, size of the largest
    contamination: dict[str, int]  # rows with a near duplicate in an evaluation set, by name of the set
    format: int = FORMAT


@dataclass(frozen=True)
class Corpus:
    """A finished corpus in storage."""

    storage: Storage
    key: str
    manifest: Manifest

    @classmethod
    def open(cls, storage: Storage, key: str) -> Corpus:
        """Open a finished corpus. Raises CorpusError if its manifest is missing or of another format."""
        where = f"corpus {key} under {storage.root}"
        try:
            data = storage.read_json(f"{key}/manifest.json")
        except FileNotFoundError:
            raise CorpusError(f"{where}: no manifest.json, it is not finished: run jobs/prepare.py") from None
        if data.get("format") != FORMAT:
            raise CorpusError(f"{where}: manifest format {data.get('format')}, expected {FORMAT}: prepare it again")
        return cls(storage, key, Manifest(**{**data, "shards": [Shard(**s) for s in data["shards"]]}))

    @classmethod
    def of_run(cls, storage: Storage, run: str) -> Corpus:
        """Open the corpus that `prepare` wrote under a run name. Raises ConfigError if `prepare` has not run."""
        return cls.open(storage, read_result(storage, run, "prepare")["corpus"])

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split, or of the quarantine, in order."""
        return [shard for shard in self.manifest.shards if shard.split == split]

    def split_fingerprint(self, split: str) -> str:
        """Fingerprint of the texts and labels of a split."""
        return ",".join(shard.sha256 for shard in self.shards(split))

    def shard_key(self, shard: Shard) -> str:
        """Key of a shard."""
        return f"{self.key}/{shard.split}/{shard.name}"

    def num_rows(self, split: str) -> int:
        """Number of documents in a split."""
        return sum(shard.rows for shard in self.shards(split))

    def read(self, split: str, columns: list[str]) -> Any:
        """Columns of a whole split as one Arrow table, in the corpus's order. For small columns."""
        return self.storage.read_table([self.shard_key(shard) for shard in self.shards(split)], columns)

    def tables(self, split: str, columns: list[str]) -> Iterator[pa.Table]:
        """The rows of a split in order, a few at a time. Shards are opened when they are needed."""

        def batches(shard: Shard) -> Iterator[pa.Table]:
            with self.storage.filesystem.open_input_file(self.storage.path(self.shard_key(shard))) as file:
                for batch in pq.ParquetFile(file).iter_batches(READ_AT_ONCE, columns=columns):
                    yield pa.Table.from_batches([batch])

        for shard in self.shards(split):
            yield from read_stream(self.storage.root, partial(batches, shard))

    def domains(self, split: str) -> NDArray[np.str_]:
        """Domain of each text of a split (its source if it has no domain), in the corpus's order; shape (n,)."""
        domains, sources = (column.to_numpy().astype(str) for column in self.read(split, ["domain", "source"]).columns)
        return np.asarray(np.where(domains == "", sources, domains), np.str_)

    def labels(self, split: str) -> NDArray[np.int64]:
        """Labels of a split: 0 human, 1 ai; shape (rows,)."""
        labels: NDArray[np.int64] = self.read(split, ["label"])["label"].to_numpy().astype(np.int64)
        return labels

    def verify(self) -> None:
        """Verify the checksum of every shard. Raises CorpusError for a missing or altered shard."""
        for shard in self.manifest.shards:
            key = self.shard_key(shard)
            try:
                digest = hashlib.sha256(self.storage.read_bytes(key)).hexdigest()
            except FileNotFoundError:
                raise CorpusError(f"corpus {self.key}: shard {key} is missing: prepare it again") from None
            if digest != shard.sha256:
                raise CorpusError(f"corpus {self.key}: shard {key} has sha256 {digest}, expected {shard.sha256}")


def content_fingerprint(shards: list[Shard], tokenizer: str, normaliser_version: int) -> str:
    """A sha256 over the content of a corpus."""
    content = [[asdict(shard) for shard in shards], tokenizer, normaliser_version]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
