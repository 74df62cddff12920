"""The TF-IDF baseline: scikit-learn's scores, the detector's calibration, fitted once and on originals only."""

import random

import numpy as np
import pyarrow as pa
import pytest
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from detect_ai.calibration.domains import calibrate, whole_documents
from detect_ai.core.config import CalibrationConfig
from detect_ai.core.storage import Storage, parquet
from detect_ai.corpus.baseline import HASHED_FEATURES, TfidfModel
from detect_ai.corpus.manifest import FORMAT, Corpus, Manifest, Shard
from detect_ai.evaluation import baseline as module
from detect_ai.evaluation.baseline import fit_baseline, score_normalised
from detect_ai.metrics import auroc
from tests.fixtures import tiny_models

SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "label": pa.int8(),
        "weight": pa.float32(),
        **dict.fromkeys(("attack", "domain", "source"), pa.string()),
        "num_tokens": pa.int32(),
    }
)


WINDOW = 100


def rows_of(seed, pairs=30, attack="none", domain=""):
    known = {"attack": attack, "domain": domain, "source": "mine", "num_tokens": 40}
    return [
        {"text": row["text"], "label": row["label"], "weight": 1.0 + row["label"], **known}
        for row in tiny_models.rows(pairs, seed)
    ]


def settings(*targets):
    return CalibrationConfig(target_fprs=[*targets], default_target_fpr=targets[0], guarantee="expectation")


def baseline(corpus, *targets):
    return fit_baseline(corpus, settings(*(targets or (0.1,))), WINDOW)


def columns(rows):
    return [row["label"] for row in rows], [row["text"] for row in rows]


def corpus_of(folder, train, calibration, fingerprint="f" * 64):
    storage = Storage(str(folder))
    shards = []
    for split, rows in (("train", train), ("calibration", calibration)):
        data = parquet(pa.Table.from_pylist(rows, schema=SCHEMA))
        storage.write_bytes(f"corpora/x/{split}/0.parquet", data)
        shards.append(Shard(split, "0.parquet", len(rows), ""))
    known = {"name": "x", "fingerprint": fingerprint, "language": "en", "tokenizer": "", "shards": shards}
    rest = {"sources": [], "seed": 0, "normaliser_version": 1, "rows_read": 0, "dropped": {}, "counts": []}
    return Corpus(storage, "corpora/x", Manifest(**known, **rest, near_duplicates={}, contamination={}, format=FORMAT))


@pytest.fixture
def corpus(tmp_path):
    return corpus_of(tmp_path, rows_of(0), rows_of(1))


def test_scores_match_sklearn(corpus, monkeypatch):
    monkeypatch.setattr(module, "SCORED_AT_ONCE", 7)
    hashing = HashingVectorizer(ngram_range=(1, 2), n_features=HASHED_FEATURES, alternate_sign=False, norm=None)
    regression = LogisticRegression(C=10.0, solver="liblinear", random_state=0)
    model = make_pipeline(hashing, TfidfTransformer(sublinear_tf=True), regression)
    labels, texts = columns(rows_of(0))
    model.fit(texts, labels, logisticregression__sample_weight=[row["weight"] for row in rows_of(0)])
    texts = [*columns(rows_of(2, 10))[1], "", "zzz"]
    scores = score_normalised(baseline(corpus, 0.1)[0], texts)
    assert scores == pytest.approx(model.decision_function(texts), abs=1e-9)


def test_calibration_is_that_of_the_calibration_split(corpus):
    model, calibration = baseline(corpus, 0.05, 0.1)
    labels, texts = columns(rows_of(1))
    scores = score_normalised(model, texts)
    assert calibration == calibrate(whole_documents(labels, scores, 40, "mine"), settings(0.05, 0.1), WINDOW)
    assert auroc(labels, scores) > 0.95


def test_a_corpus_has_one_model_fitted_once(corpus, tmp_path, monkeypatch):
    first, before = baseline(corpus, 0.05)
    swapped = [{**row, "label": 1 - row["label"]} for row in rows_of(0)]
    other = corpus_of(tmp_path, swapped, rows_of(1), fingerprint="e" * 64)
    text = [tiny_models.text("ai", random.Random(0))]
    assert score_normalised(first, text) > 0 > score_normalised(baseline(other, 0.05)[0], text)
    monkeypatch.setattr(TfidfModel, "fit", lambda *_: pytest.fail("it was fitted again"))
    again, calibration = baseline(corpus, 0.05, 0.1)
    assert np.array_equal(first.weights, again.weights)
    assert calibration.thresholds[0.05] == before.thresholds[0.05]


def test_attacked_texts_of_the_calibration_split_count(tmp_path):
    corpus = corpus_of(tmp_path, rows_of(0), [*rows_of(1), *rows_of(2, attack="paraphrase", domain="post")])
    _, calibration = baseline(corpus)
    assert {domain.name: len(domain.human) for domain in calibration.domains} == {"mine": 30, "post": 30}


def test_attacked_copies_are_left_out(tmp_path):
    corpus = corpus_of(tmp_path / "clean", rows_of(0), rows_of(1))
    attacked = [{**row, "label": 1 - row["label"]} for row in rows_of(4, attack="homoglyph")]
    mixed = corpus_of(tmp_path, [*attacked, *rows_of(0)], rows_of(1), fingerprint="e" * 64)
    models = [baseline(source, 0.1)[0] for source in (corpus, mixed)]
    assert np.array_equal(models[0].weights, models[1].weights)
