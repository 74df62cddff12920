"""Domain classifier: fitting, predictions and its file."""

import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from detect_ai.calibration.domain_classifier import FILE, MIN_PROBABILITY, DomainClassifier, fit
from detect_ai.core.errors import BundleError

VOCABULARY = 90
# A domain draws half of its tokens from thirty of its own, the other half from all.
OWN = {"essays": 0, "news": 30, "prose": 60}


def document(rng, domain, tokens=60):
    own = rng.integers(OWN[domain], OWN[domain] + 30, tokens)
    ids = np.where(rng.random(tokens) < 0.5, own, rng.integers(0, VOCABULARY, tokens))
    return ids.astype(np.int32)


def texts(rng, names, count=40):
    domains = [name for name in names for _ in range(count)]
    return [document(rng, name) for name in domains], domains


def features(documents):
    """Damped counts by token, scaled to length one, as a dense matrix."""
    counts = np.log1p([np.bincount(ids, minlength=VOCABULARY) for ids in documents])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def probabilities(classifier, documents):
    logits = features(documents) @ classifier.weights + classifier.bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def classifier():
    return fit(*texts(np.random.default_rng(0), OWN), VOCABULARY)


def with_bias(*bias):
    """A classifier that ignores words."""
    return DomainClassifier(("a", "b"), np.zeros((VOCABULARY, 2), np.float32), np.asarray(bias, np.float32))


@pytest.mark.parametrize("names", [("essays", "prose"), ("essays", "news", "prose")])
def test_probabilities_match_scikit_learn(names):
    rng = np.random.default_rng(1)
    documents, domains = texts(rng, names)
    documents, domains = documents[5:], domains[5:]  # one domain has fewer texts
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200).fit(features(documents), domains)
    fitted = fit(documents, domains, VOCABULARY)
    # Mixed texts, some of them of no known domain.
    new = [np.concatenate([document(rng, names[0], n), document(rng, names[1], 40 - n)]) for n in range(0, 41, 2)]
    expected = model.predict_proba(features(new))
    assert list(model.classes_) == list(fitted.names)
    assert probabilities(fitted, new) == pytest.approx(expected, abs=2e-3)
    clear = [i for i, row in enumerate(expected) if abs(row.max() - MIN_PROBABILITY) > 5e-3]
    answers = fitted.predict([new[i] for i in clear])
    assert answers == [
        fitted.names[expected[i].argmax()] if expected[i].max() >= MIN_PROBABILITY else "" for i in clear
    ]
    assert {"", names[0], names[1]} <= set(answers)


def test_prediction_ignores_order_and_batch(classifier):
    rng = np.random.default_rng(5)
    documents, domains = texts(rng, OWN, 10)
    answers = classifier.predict(documents)
    assert np.mean([answer == domain for answer, domain in zip(answers, domains, strict=True)]) > 0.95
    assert classifier.predict([rng.permutation(ids) for ids in documents]) == answers
    assert [classifier.predict([ids])[0] for ids in documents[::-1]] == answers[::-1]


def test_empty_texts_have_no_domain(classifier):
    empty, any_text = np.empty(0, np.int32), np.arange(5, dtype=np.int32)
    assert classifier.predict([]) == []
    assert with_bias(9.0, -9.0).predict([empty, any_text, empty]) == ["", "a", ""]


@pytest.mark.parametrize(
    ("lead", "expected"),
    [(np.log(4) + 1e-3, "a"), (np.log(4) - 1e-3, ""), (0.0, ""), (-np.log(4) - 1e-3, "b"), (1000.0, "a")],
)
def test_below_a_probability_of_80_percent_the_domain_is_unknown(lead, expected):
    with np.errstate(all="raise", under="ignore"):
        assert with_bias(lead, 0.0).predict([np.arange(5, dtype=np.int32)]) == [expected]


def test_classifier_survives_saving(classifier, tmp_path):
    classifier.save(tmp_path)
    read = DomainClassifier.load(tmp_path, list(classifier.names))
    assert read.names == classifier.names
    assert np.array_equal(read.weights, classifier.weights)
    assert np.array_equal(read.bias, classifier.bias)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "tensors",
    [
        {"weights": np.zeros((VOCABULARY, 2), np.float32), "bias": np.zeros(3, np.float32)},
        {"weights": np.zeros((VOCABULARY, 3), np.float32), "bias": np.zeros(3, np.float32)},
        {"weights": np.zeros(2, np.float32), "bias": np.zeros(2, np.float32)},
        {"weights": np.zeros((VOCABULARY, 2), np.float32)},
        b"no tensors at all",
        None,
    ],
)
def test_malformed_files_are_refused(tmp_path, tensors):
    if isinstance(tensors, dict):
        save_file(tensors, tmp_path / FILE)
    elif tensors is not None:
        (tmp_path / FILE).write_bytes(tensors)
    with pytest.raises(BundleError, match=re.escape(str(tmp_path / FILE))):
        DomainClassifier.load(tmp_path, ["a", "b"])
