"""Which kind of writing a text is, and spans of a corpus scored with it."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from detect_ai.calibration.domain_classifier import FILE, SURE, Registers, fit
from detect_ai.core.errors import BundleError
from detect_ai.detector.scoring import ScoreBatch
from detect_ai.text.windows import MIN_SPAN_TOKENS

VOCABULARY = 90
# A register draws half of its tokens from thirty of its own, the other half from all.
OWN = {"essays": 0, "news": 30, "prose": 60}


def document(rng, register, tokens=60):
    own = rng.integers(OWN[register], OWN[register] + 30, tokens)
    ids = np.where(rng.random(tokens) < 0.5, own, rng.integers(0, VOCABULARY, tokens))
    return ids.astype(np.int32)


def texts(rng, names, each=40):
    registers = [name for name in names for _ in range(each)]
    return [document(rng, name) for name in registers], registers


def features(documents):
    """Damped counts by token, of length one, as a dense matrix."""
    counts = np.log1p([np.bincount(ids, minlength=VOCABULARY) for ids in documents])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def shares(registers, documents):
    logits = features(documents) @ registers.weights + registers.bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def told():
    """Three registers, learnt."""
    return fit(*texts(np.random.default_rng(0), OWN), VOCABULARY)


def of_bias(*bias):
    """Registers that no word tells apart."""
    return Registers(("a", "b"), np.zeros((VOCABULARY, 2), np.float32), np.asarray(bias, np.float32))


# Learning


@pytest.mark.parametrize("names", [("essays", "prose"), ("essays", "news", "prose")])
def test_a_new_text_is_told_by_its_words(names):
    rng = np.random.default_rng(0)
    found = fit(*texts(rng, names), VOCABULARY)
    documents, registers = texts(rng, names, 50)
    answers = found.of(documents)
    assert found.names == names
    assert np.mean([answer == register for answer, register in zip(answers, registers, strict=True)]) > 0.95
    assert all(answer in (register, "") for answer, register in zip(answers, registers, strict=True))


@pytest.mark.parametrize("names", [("essays", "prose"), ("essays", "news", "prose")])
def test_the_probabilities_are_those_of_logistic_regression(names):
    rng = np.random.default_rng(1)
    documents, registers = texts(rng, names)
    documents, registers = documents[5:], registers[5:]  # one register has fewer texts
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200).fit(features(documents), registers)
    found = fit(documents, registers, VOCABULARY)
    # Mixed texts, of which some are unsure.
    new = [np.concatenate([document(rng, names[0], n), document(rng, names[1], 40 - n)]) for n in range(0, 41, 2)]
    expected = model.predict_proba(features(new))
    assert list(model.classes_) == list(found.names)
    assert shares(found, new) == pytest.approx(expected, abs=2e-3)
    names_expected = [
        found.names[row.argmax()] if row.max() >= SURE else "" for row in expected if abs(row.max() - SURE) > 5e-3
    ]
    answers = [answer for answer, row in zip(found.of(new), expected, strict=True) if abs(row.max() - SURE) > 5e-3]
    assert answers == names_expected
    assert {"", names[0], names[1]} <= set(answers)


def test_every_register_is_as_heavy_as_the_others():
    """A text that could be of either is told to be of neither, however many texts of one were learnt."""
    rng = np.random.default_rng(2)
    many, few = texts(rng, ["essays"], 300)[0], texts(rng, ["prose"], 15)[0]
    found = fit([*many, *few], ["essays"] * 300 + ["prose"] * 15, VOCABULARY)
    either = [np.concatenate([document(rng, "essays", 30), document(rng, "prose", 30)]) for _ in range(50)]
    assert shares(found, either)[:, 0].mean() == pytest.approx(0.5, abs=0.12)


def test_the_order_of_the_training_texts_says_nothing():
    documents, registers = texts(np.random.default_rng(3), OWN)
    order = np.random.default_rng(4).permutation(len(documents))
    first = fit(documents, registers, VOCABULARY)
    second = fit([documents[i] for i in order], [registers[i] for i in order], VOCABULARY)
    assert second.names == first.names == tuple(sorted(OWN))
    assert shares(second, documents) == pytest.approx(shares(first, documents), abs=2e-3)


# Telling


def test_neither_the_order_of_the_tokens_nor_that_of_the_texts_says_anything(told):
    rng = np.random.default_rng(5)
    documents = texts(rng, OWN, 10)[0]
    answers = told.of(documents)
    assert told.of([rng.permutation(ids) for ids in documents]) == answers
    assert told.of(documents[::-1]) == answers[::-1]
    assert [told.of([ids])[0] for ids in documents] == answers


def test_no_texts_have_no_registers(told):
    assert told.of([]) == []


def test_an_empty_text_is_of_no_register_whatever_is_likely(told):
    empty, any_text = np.empty(0, np.int32), np.arange(5, dtype=np.int32)
    assert told.of([empty]) == [""]
    assert of_bias(9.0, -9.0).of([empty, any_text, empty]) == ["", "a", ""]


@pytest.mark.parametrize(
    ("lead", "expected"), [(np.log(4) + 1e-3, "a"), (np.log(4) - 1e-3, ""), (0.0, ""), (-np.log(4) - 1e-3, "b")]
)
def test_below_four_in_five_no_register_is_sure(lead, expected):
    assert of_bias(lead, 0.0).of([np.arange(5, dtype=np.int32)]) == [expected]


def test_great_weights_do_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        assert of_bias(2000.0, 1000.0).of([np.arange(5, dtype=np.int32)]) == ["a"]


# On disk


def test_registers_read_back_as_they_were_learnt(told, tmp_path):
    told.save(tmp_path)
    found = Registers.load(tmp_path, list(told.names))
    assert found.names == told.names
    assert np.array_equal(found.weights, told.weights)
    assert np.array_equal(found.bias, told.bias)
    assert (found.weights.dtype, found.bias.dtype) == (np.float32, np.float32)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("names", [["essays", "prose"], ["a", "b", "c", "d"]])
def test_another_number_of_registers_is_refused(told, tmp_path, names):
    told.save(tmp_path)
    expected = f"{tmp_path / FILE}: expected {len(names)} registers, found weights of (90, 3)"
    with pytest.raises(BundleError, match=re.escape(expected)):
        Registers.load(tmp_path, names)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weights": np.zeros((VOCABULARY, 2), np.float32), "bias": np.zeros(3, np.float32)},
        {"weights": np.zeros(2, np.float32), "bias": np.zeros(2, np.float32)},
        {"weights": np.zeros((VOCABULARY, 2), np.float32)},
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(BundleError, match=re.escape(f"{tmp_path / FILE}: expected ")):
        Registers.load(tmp_path, ["a", "b"])


@pytest.mark.parametrize("content", [None, b"", b"no tensors at all"])
def test_a_file_that_is_missing_or_damaged_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(BundleError, match="expected weights and bias of registers"):
        Registers.load(tmp_path, ["a", "b"])


# Spans of a corpus


class Lengths:
    """A scorer whose score is the length of a document."""

    def score(self, documents):
        return np.asarray([float(len(ids)) for ids in documents])


def score_batch(tmp_path, rows, edges=(), registers=None):
    (tmp_path / "model").mkdir(exist_ok=True)
    batch = ScoreBatch(str(tmp_path), "model", lambda folder: Lengths(), 1, edges, registers)
    names, documents = zip(*rows, strict=True)
    ids = pa.array([ids.tolist() for ids in documents], pa.list_(pa.int32()))
    return batch(pa.table({"id": names, "label": [1] * len(names), "input_ids": ids})).to_pylist()


def test_a_batch_gives_each_document_its_spans_and_then_its_whole(tmp_path, told):
    rng = np.random.default_rng(6)
    rows = [
        ("first", document(rng, "essays", 200)),
        ("second", document(rng, "prose", 10)),
        ("third", rng.permutation(0)),
    ]
    found = score_batch(tmp_path, rows, (64, 128), told)
    assert [(row["id"], row["whole"]) for row in found] == [
        ("first", False),
        ("first", False),
        ("first", True),
        ("second", True),
        ("third", True),
    ]
    assert [row["num_tokens"] for row in found][2:] == [200, 10, 0]
    assert MIN_SPAN_TOKENS <= found[0]["num_tokens"] < 64 <= found[1]["num_tokens"] < 128
    assert [row["score"] for row in found] == [row["num_tokens"] for row in found]
    assert [row["register"] for row in found][2:] == [*told.of([ids for _, ids in rows])]
    assert {row["label"] for row in found} == {1}


def test_a_document_has_the_same_spans_in_any_batch(tmp_path):
    rng = np.random.default_rng(7)
    rows = [(f"text {i}", document(rng, "essays", 300)) for i in range(3)]
    together = score_batch(tmp_path, rows, (64, 128))
    alone = [row for each in rows[::-1] for row in score_batch(tmp_path, [each], (64, 128))]
    assert sorted(map(str, together)) == sorted(map(str, alone))
    assert len({row["num_tokens"] for row in together}) > 4
    assert {row["register"] for row in together} == {""}


def test_without_edges_a_batch_scores_whole_documents(tmp_path):
    rows = [("a", np.arange(300)), ("b", np.arange(3))]
    assert [(row["num_tokens"], row["whole"]) for row in score_batch(tmp_path, rows)] == [(300, True), (3, True)]
