"""Tasks of the first pass, and tokenising in the second."""

import json

import pyarrow as pa

from detect_ai.core.config import CorpusConfig, SourceConfig
from detect_ai.corpus import shards
from detect_ai.corpus.shards import TOKENIZE_ROWS, tokenize
from detect_ai.models.encoder import load_tokenizer
from detect_ai.text.normalize import normalise
from tests.fixtures import tiny_models

LINE = json.dumps({"text": "A text of some words.", "label": 0}) + "\n"


def folder(path, files, lines):
    path.mkdir()
    for number in range(files):
        (path / f"{number}.jsonl").write_text(LINE * lines)
    return SourceConfig(kind="jsonl", path=str(path), name=path.name)


def test_small_files_share_a_task(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "TASK_BYTES", 10 * len(LINE))
    small, large = folder(tmp_path / "small", 6, 4), folder(tmp_path / "large", 2, 30)
    tasks, size = shards._tasks(CorpusConfig(sources=[small], against=[large]))
    assert [[(piece.source.name, against) for piece, against in task] for task in tasks] == [
        *[[("small", False)] * 2] * 3,
        *[[("large", True)]] * 2,
    ]
    assert size == 84 * len(LINE)


def test_token_ids_are_those_of_the_whole_normalised_text(encoder, tmp_path):
    tokenizer = load_tokenizer(tiny_models.config(encoder, tmp_path).model)
    texts = [str(row["text"]) for row in tiny_models.rows(TOKENIZE_ROWS)] + ["the “council”\u200b " * 200]
    normalised = [normalise(text).text for text in texts]
    table = tokenize(pa.table({"text": texts, "normalised": normalised}), tokenizer)
    expected = [ids.tolist() for ids in tokenizer.encode(normalised)]
    assert table["input_ids"].to_pylist() == expected
    assert table["num_tokens"].to_pylist() == list(map(len, expected))
    assert table["input_ids"].type == pa.list_(pa.int32())
    assert max(map(len, expected)) >= 600
