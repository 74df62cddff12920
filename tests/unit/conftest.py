"""Fixtures of several unit tests: rows of a source, any text, an encoder's configuration, the log of a replica.

Parallel unit tests share two cores: a tiny model is faster on one thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import strategies as st

from detect_ai.core.config import ModelConfig, SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.sources import list_pieces, read_piece

any_text = st.text(st.characters(exclude_categories=()))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def tables(path, unlabelled=False, **given):
    kind = given.pop("kind", "jsonl")
    pieces = list_pieces(SourceConfig(kind=kind, path=str(path), **given), unlabelled)
    return [table for piece in pieces for table in read_piece(piece)]


def rows(path, unlabelled=False, **given):
    return [row for table in tables(path, unlabelled, **given) for row in table.to_pylist()]


def some(records, *names):
    return [tuple(row[name] for name in names) for row in records]


def refusal(call, *arguments, **options):
    with pytest.raises(CorpusError) as refused:
        call(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


def config_of(folder, **changes):
    return ModelConfig(name="tiny", path=str(folder), window=64, stride=48).model_copy(update=changes)


@pytest.fixture
def serve_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", False)  # as Ray sets it when Serve is imported
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
