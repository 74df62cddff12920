"""The bag of words beside the detector: it is scikit-learn's, calibrated, learnt once and of originals alone."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from detect_ai.calibration.calibration import calibrate
from detect_ai.core.storage import Storage
from detect_ai.corpus.manifest import FORMAT, Corpus, Manifest, Shard
from detect_ai.corpus.shards import parquet
from detect_ai.evaluation import baseline as module
from detect_ai.evaluation.baseline import baseline_of
from detect_ai.metrics import auroc
from tests.fixtures import tiny_models

SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "label": pa.int8(),
        "weight": pa.float32(),
        "source": pa.string(),
        "attack": pa.string(),
    }
)


def rows_of(seed, pairs=30, attack="none", source="news"):
    rows = [
        {"text": row["text"], "label": row["label"], "weight": 1.0 + row["label"]}
        for row in tiny_models.rows(pairs, seed)
    ]
    return [{**row, "source": source, "attack": attack} for row in rows]


def corpus_of(folder, train, calibration, fingerprint="f" * 64):
    storage = Storage(str(folder))
    shards = []
    for split, rows in (("train", train), ("calibration", calibration)):
        data = parquet(pa.Table.from_pylist(rows, schema=SCHEMA), SCHEMA)
        storage.write_bytes(f"corpora/x/{split}/0.parquet", data)
        shards.append(Shard(split, "0.parquet", len(rows), ""))
    known = {"name": "x", "fingerprint": fingerprint, "language": "en", "tokenizer": "", "shards": shards}
    rest = {"sources": [], "seed": 0, "normaliser_version": 1, "rows_read": 0, "dropped": {}, "counts": []}
    return Corpus(storage, "corpora/x", Manifest(**known, **rest, near_duplicates={}, contamination={}, format=FORMAT))


@pytest.fixture
def corpus(tmp_path):
    return corpus_of(tmp_path, rows_of(0), rows_of(1))


def sklearn_model(rows):
    hashing = HashingVectorizer(ngram_range=(1, 2), n_features=module.HASHED_FEATURES, alternate_sign=False, norm=None)
    regression = LogisticRegression(C=10.0, solver="liblinear", random_state=0)
    model = make_pipeline(hashing, TfidfTransformer(sublinear_tf=True), regression)
    weights = [row["weight"] for row in rows]
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    return model.fit(texts, labels, logisticregression__sample_weight=weights)


def test_scores_are_those_of_scikit_learn(corpus, monkeypatch):
    monkeypatch.setattr(module, "SCORED_AT_ONCE", 7)
    texts = [str(row["text"]) for row in tiny_models.rows(10, seed=2)] + ["", "zzz"]
    expected = sklearn_model(rows_of(0)).decision_function(texts)
    assert baseline_of(corpus, [0.1]).score(texts) == pytest.approx(expected, abs=1e-9)


def test_it_tells_the_made_up_classes_apart(corpus):
    rows = tiny_models.rows(20, seed=3)
    scores = baseline_of(corpus, [0.1]).score(str(row["text"]) for row in rows)
    assert auroc([row["label"] for row in rows], scores) > 0.95


def test_it_is_calibrated_on_the_calibration_split(corpus):
    made = baseline_of(corpus, [0.05, 0.1])
    rows = rows_of(1)
    scores = made.score(row["text"] for row in rows)
    assert made.calibration == calibrate([row["label"] for row in rows], scores, [0.05, 0.1])


def test_thresholds_are_by_predicted_domain(tmp_path):
    """Texts whose domain the classifier does not know set no threshold, whatever their source."""
    letters = [{**row, "label": 1 - row["label"]} for row in rows_of(2, source="letters")]
    corpus = corpus_of(tmp_path, rows_of(0), [*rows_of(1), *letters])
    domains = np.asarray(["press"] * len(rows_of(1)) + ["post"] * (len(letters) - 4) + [""] * 4)
    for made in (baseline_of(corpus, [0.1], 0, domains), baseline_of(corpus, [0.1], 0, domains)):
        for domain, rows in (("press", rows_of(1)), ("post", letters[:-4])):
            labels, scores = [row["label"] for row in rows], made.score(row["text"] for row in rows)
            own = calibrate(labels, scores, [0.1])
            known, unknown = np.full(len(rows), domain), np.full(len(rows), "")
            expected = np.where(scores >= own.bounds(0.1)[1], 1, np.where(scores < own.bounds(0.1)[0], 0, -1))
            assert made.calls(scores, known, 0.1).tolist() == expected.tolist()
            assert made.probabilities(scores, known) == pytest.approx(own.probability(scores))
            strictest = max(group.bounds(0.1)[1] for group in made.calibration.domains)
            assert (made.calls(scores, unknown, 0.1) == 1).tolist() == (scores >= strictest).tolist()


def test_too_few_texts_of_a_domain_give_one_threshold(tmp_path):
    few = rows_of(2, pairs=3, source="letters")
    corpus = corpus_of(tmp_path, rows_of(0), [*rows_of(1), *few])
    domains = np.asarray(["press"] * len(rows_of(1)) + ["post"] * len(few))
    assert not baseline_of(corpus, [0.1], 0, domains).calibration.domains


def test_what_was_learnt_once_is_read_and_gets_the_thresholds_asked_for(corpus, monkeypatch):
    first = baseline_of(corpus, [0.05])
    monkeypatch.setattr(module, "_learn", lambda *_: pytest.fail("it was learnt again"))
    again = baseline_of(corpus, [0.05, 0.1])
    assert np.array_equal(first.weights, again.weights)
    assert first.bias == again.bias
    assert again.calibration.thresholds[0.05] == first.calibration.thresholds[0.05]
    assert sorted(again.calibration.thresholds) == [0.05, 0.1]


def test_another_corpus_has_a_baseline_of_its_own(corpus, tmp_path):
    texts = [tiny_models.text("ai", random.Random(0))]
    first = baseline_of(corpus, [0.1]).score(texts)[0]
    turned = [{**row, "label": 1 - row["label"]} for row in rows_of(0)]
    other = corpus_of(tmp_path, turned, rows_of(1), fingerprint="e" * 64)
    assert first > 0 > baseline_of(other, [0.1]).score(texts)[0]


def test_copies_under_an_attack_are_not_learnt_from(tmp_path):
    corpus = corpus_of(tmp_path / "clean", rows_of(0), rows_of(1))
    attacked = [{**row, "label": 1 - row["label"]} for row in rows_of(4, attack="homoglyph")]
    mixed = corpus_of(tmp_path, [*attacked, *rows_of(0)], rows_of(1), fingerprint="e" * 64)
    assert np.array_equal(baseline_of(mixed, [0.1]).weights, baseline_of(corpus, [0.1]).weights)


def test_it_learns_from_the_leading_texts_of_a_large_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_TEXTS", 60)
    long = corpus_of(tmp_path / "long", [*rows_of(0), *rows_of(5)], rows_of(1))
    short = corpus_of(tmp_path / "short", rows_of(0), rows_of(1))
    assert np.array_equal(baseline_of(long, [0.1]).weights, baseline_of(short, [0.1]).weights)
