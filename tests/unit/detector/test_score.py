"""Scores of corpus documents and of their spans, without Ray."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from detect_ai.core.config import ScoreConfig
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage
from detect_ai.detector.dataset import Text, parts
from detect_ai.detector.detector import Detector
from detect_ai.detector.score import (
    ScoringActor,
    score_documents,
    score_in_memory,
    score_part_in_memory,
    score_split,
    score_texts,
    verdict_rows,
)
from detect_ai.models.style import Style
from detect_ai.release.export import make
from detect_ai.text.windows import MIN_SPAN_TOKENS
from tests.fixtures import tiny_models


class Lengths:
    """A scorer whose score is the length of a document."""

    def score(self, documents):
        return np.asarray([float(len(ids)) for ids in documents])


def score(rows, lengths=(), spanned=1.0):
    names, documents = zip(*rows, strict=True)
    ids = pa.array([list(document) for document in documents], pa.list_(pa.int32()))
    domains = [name if name == "first" else "" for name in names]
    known = {"label": [1] * len(names), "domain": domains, "source": ["mine"] * len(names)}
    style = Style([[3.0, 4.0], [0.0, 2.0], *[[1.0, 0.0]] * 298])
    (table,) = score_documents(Lengths(), pa.table({"id": names, **known, "input_ids": ids}), lengths, spanned, style)
    return table.to_pylist()


def test_a_bundle_for_cpus_is_refused_on_a_gpu(tiny_bundle, tmp_path):
    make("torch-int8", tiny_bundle, tmp_path / "child")
    storage, config = Storage(str(tmp_path)), ScoreConfig(use_gpu=True)
    with pytest.raises(ConfigError, match=r"for CPUs only: set score\.use_gpu=false, or use its parent, [0-9a-f]{16}"):
        score_texts("texts.csv", (storage, "child"), config, (storage, "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="for CPUs only"):
        score_in_memory("texts.csv", (storage, "child"), config)
    with pytest.raises(ConfigError, match="for CPUs only"):
        score_split(SimpleNamespace(storage=storage), "test", "child", Detector.load, config)


def test_spans_come_before_their_document():
    rows = score([("first", np.zeros(200)), ("second", np.ones(10)), ("third", [])], (64, 128))
    assert [(row["id"], row["is_whole"], row["domain"]) for row in rows] == [
        ("first", False, "first"),
        ("first", False, "first"),
        ("first", True, "first"),
        ("second", True, "mine"),
        ("third", True, "mine"),
    ]
    assert [row["style"] for row in rows] == [[0.6, 0.8]] * 3 + [[0.0, 1.0], [0.0, 0.0]]
    assert MIN_SPAN_TOKENS <= rows[0]["num_tokens"] < 64 <= rows[1]["num_tokens"] < 128
    assert [row["num_tokens"] for row in rows][2:] == [200, 10, 0]
    assert [row["score"] for row in rows] == [row["num_tokens"] for row in rows]
    assert {row["label"] for row in rows} == {1}


def test_a_document_has_the_same_spans_in_any_batch():
    rows = [(f"text {i}", np.arange(300)) for i in range(3)]
    assert [row["is_whole"] for row in score(rows)] == [True] * 3
    together = score(rows, (64, 128))
    alone = [row for document in rows[::-1] for row in score([document], (64, 128))]
    assert sorted(map(str, together)) == sorted(map(str, alone))
    assert len({row["num_tokens"] for row in together}) > 4
    many = [(f"text {i}", np.arange(300)) for i in range(400)]
    assert sum(not row["is_whole"] for row in score(many, (64, 128), spanned=0.25)) == pytest.approx(200, abs=60)


def test_an_actor_loads_once_and_works_on_every_batch(tmp_path):
    (tmp_path / "weights").mkdir()
    loaded = []

    def load(folder, device):
        loaded.append((folder, device))
        return 10

    def work(scorer, batch):
        yield pa.table({"texts": [batch.num_rows + scorer]})

    actor = ScoringActor(str(tmp_path), "weights", load, work, ScoreConfig(threads_per_worker=1))
    batch = pa.table({"id": ["a", "b"]})
    assert [table["texts"].to_pylist() for _ in range(2) for table in actor(batch)] == [[12], [12]]
    assert loaded == [(tmp_path / "weights", "cpu")]


def texts(*contents):
    return [Text(f"0-{i}", str(i), content, None, {}) for i, content in enumerate(contents)]


def test_rows_are_at_the_prevalence(tiny_bundle):
    detector, some = Detector.load(tiny_bundle), texts("The council met near the bridge. " * 9)
    for prevalence in (None, 0.05):
        [row] = verdict_rows(detector, some, ScoreConfig(prevalence=prevalence, spans="windows"))
        [verdict] = detector.detect([some[0].text], return_spans=True, prevalence=prevalence)
        assert {name: row[name] for name in ("probability", "threshold", "ppv", "ai_fraction")} == pytest.approx(
            verdict.model_dump(include={"probability", "threshold", "ppv", "ai_fraction"})
        )
        assert row["prevalence"] == (prevalence or 0.5)
        assert json.loads(row["spans"])[0]["probability"] == pytest.approx(verdict.spans[0].probability)


def test_texts_out_of_scope_or_too_short_have_a_reason(tiny_bundle, tmp_path):
    some = ["The council met near the bridge. " * 9, "Too short.", "def rain(train):\n    return train + 1\n" * 20]
    [part] = parts(str(tiny_models.write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in some])), ScoreConfig())
    [table] = score_part_in_memory(Detector.load(tiny_bundle), pa.table({"part": [pickle.dumps(part)]}))
    assert table["reason"].to_pylist() == ["", "too_short", "mostly_code"]


def test_non_finite_scores_name_the_row(tiny_bundle, monkeypatch):
    detector = Detector.load(tiny_bundle)
    monkeypatch.setattr(detector, "score", lambda ids: np.asarray([0.0, np.nan]))
    with pytest.raises(InputError) as error:
        verdict_rows(detector, texts("A secret text.", "Another secret text."), ScoreConfig())
    assert "0-1" in str(error.value)
    assert "secret" not in str(error.value)
