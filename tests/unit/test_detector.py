import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from detect_ai.bundle import read_spec
from detect_ai.calibration import calibrate, p_value
from detect_ai.detector import Detector, Scorer
from detect_ai.errors import BundleError, InputError
from detect_ai.schemas import Label, Reason
from detect_ai.text import NORMALISER_VERSION, normalise
from tests import tiny

LONG = " ".join(tiny.text("ai", random.Random(i), 80) for i in range(8))
TEXTS = [tiny.text(kind, random.Random(words), words) for kind in ("human", "ai") for words in (12, 40, 90, 300)]
ENOUGH = tiny.text("human", random.Random(0), 40)


class Fixed:
    """A backend that gives every window the same score, and keeps the windows."""

    def __init__(self, score):
        self.score = score
        self.rows = []

    def log_odds(self, batch):
        self.rows += [ids[:length].tolist() for ids, length in zip(batch.input_ids, batch.lengths, strict=True)]
        return np.full(len(batch.lengths), self.score)


@pytest.fixture(scope="module")
def detector(tiny_bundle):
    return Detector.load(tiny_bundle)


@pytest.fixture(scope="module")
def spec(tiny_bundle):
    """A specification whose midpoint lies above the threshold at 10% and below that at 5%."""
    labels = np.repeat([0, 1], 40)
    scores = np.concatenate([np.linspace(-1, 1, 40), np.linspace(0, 2, 40)])
    calibration = calibrate(labels, scores, [0.05, 0.1])
    low, high = (calibration.thresholds[target].score for target in (0.1, 0.05))
    return replace(read_spec(tiny_bundle), calibration=replace(calibration, midpoint=(low + high) / 2))


def fixed(spec, detector, score):
    return Detector(spec, detector.tokenizer, Fixed(score))


# What a score means


@pytest.mark.parametrize("target", [0.05, 0.1])
def test_the_label_is_ai_from_the_upper_bound_human_below_the_lower_and_uncertain_between(spec, detector, target):
    lower, upper = spec.calibration.bounds(target)
    assert lower < upper
    below, within, upto = (np.nextafter(bound, -np.inf) for bound in (lower, upper, upper))
    labels = {}
    for score in (-5.0, below, lower, within, upto, upper, 5.0):
        labels[score] = fixed(spec, detector, score).detect([ENOUGH], target)[0].label
    assert labels == {
        -5.0: Label.HUMAN,
        below: Label.HUMAN,
        lower: Label.UNCERTAIN,
        within: Label.UNCERTAIN,
        upper: Label.AI,
        5.0: Label.AI,
    }


def test_a_score_between_the_bounds_is_uncertain_for_that_reason(spec, detector):
    verdict = fixed(spec, detector, spec.calibration.bounds(0.05)[0]).detect([ENOUGH])[0]
    assert (verdict.label, verdict.reasons) == (Label.UNCERTAIN, [Reason.BETWEEN_THRESHOLDS])


@pytest.mark.parametrize("score", [-5.0, 5.0])
def test_a_text_is_too_short_below_the_minimum_and_not_at_it(spec, detector, score):
    words = "rain " * 12
    num_tokens = len(detector.tokenizer.encode([words.strip()])[0])
    at = fixed(replace(spec, min_tokens=num_tokens), detector, score).detect([words])[0]
    below = fixed(replace(spec, min_tokens=num_tokens + 1), detector, score).detect([words])[0]
    assert (at.label, at.reasons) == (Label.AI if score > 0 else Label.HUMAN, [])
    assert (below.label, below.reasons) == (Label.UNCERTAIN, [Reason.TOO_SHORT])


@pytest.mark.parametrize("score", [-5.0, 5.0])
@pytest.mark.parametrize("text", ["Все счастливые семьи похожи друг на друга. " * 3, "1234 5678 !!! ... " * 10])
def test_a_text_that_is_not_in_latin_letters_gets_no_verdict(spec, detector, text, score):
    verdict = fixed(replace(spec, min_tokens=1), detector, score).detect([text])[0]
    assert (verdict.label, verdict.reasons) == (Label.UNCERTAIN, [Reason.OTHER_SCRIPT])


def test_every_reason_is_given(spec, detector):
    verdict = fixed(spec, detector, spec.calibration.bounds(0.05)[0]).detect([""])[0]
    assert verdict.reasons == [Reason.TOO_SHORT, Reason.OTHER_SCRIPT, Reason.BETWEEN_THRESHOLDS]
    assert (verdict.num_tokens, verdict.num_windows) == (0, 1)


@pytest.mark.parametrize("target", [0.05, 0.1])
def test_a_verdict_states_what_it_stands_on(spec, detector, target):
    verdict = fixed(spec, detector, 0.7).detect([ENOUGH], target)[0]
    calibration = spec.calibration
    assert verdict.probability == calibration.probability(0.7)
    assert verdict.prevalence == calibration.prevalence == 0.5
    assert verdict.target_fpr == target
    assert verdict.threshold == calibration.probability(calibration.bounds(target)[1])
    assert verdict.p_value == p_value(calibration.human_scores, 0.7)
    assert verdict.model_version == spec.version
    assert verdict.spans is None
    assert (verdict.probability >= verdict.threshold) is (verdict.label is Label.AI)


def test_the_default_target_is_the_bundles(spec, detector):
    verdict = fixed(replace(spec, default_target_fpr=0.1), detector, 0.0).detect([ENOUGH])[0]
    assert verdict.target_fpr == 0.1


def test_a_target_without_threshold_is_refused_with_those_that_there_are(detector):
    assert detector.targets == [0.05, 0.1]
    with pytest.raises(InputError) as refused:
        detector.detect([ENOUGH], target_fpr=0.01)
    assert str(refused.value) == "target_fpr=0.01: this model has thresholds for 0.05, 0.1"


def test_a_bundle_of_another_normaliser_is_refused(spec, detector):
    with pytest.raises(BundleError) as refused:
        fixed(replace(spec, normaliser_version=NORMALISER_VERSION + 1), detector, 0.0)
    assert str(refused.value) == (
        f"bundle made with normaliser version {NORMALISER_VERSION + 1}, this is {NORMALISER_VERSION}: train it again"
    )


# Reading


def test_a_long_text_is_read_whole_in_overlapping_windows(spec, detector):
    own = fixed(spec, detector, 0.0)
    verdict = own.detect([LONG])[0]
    ids = detector.tokenizer.encode([LONG])[0].tolist()
    windows = sorted((row[1:-1] for row in own.backend.rows), key=lambda row: find(ids, row))
    assert (verdict.num_tokens, verdict.num_windows) == (len(ids), len(windows))
    assert len(windows) > 5
    end = overlap = 0
    for window in windows:
        start = find(ids, window)
        assert start <= end
        overlap += end - start
        end = start + len(window)
    assert end == len(ids)
    assert overlap > 0
    assert {(row[0], row[-1]) for row in own.backend.rows} == {
        (detector.tokenizer.prefix[0], detector.tokenizer.suffix[0])
    }
    assert max(map(len, own.backend.rows)) == spec.window


def find(ids, part):
    return next(i for i in range(len(ids)) if ids[i : i + len(part)] == part)


def test_the_end_of_a_long_text_counts(detector):
    changed = LONG[: -len("journey journey journey.")] + "train bread rain"
    scores = detector.score([document.input_ids for document in detector.read([LONG, changed])])
    assert abs(scores[0] - scores[1]) > 1e-4


def test_a_text_gets_the_same_score_alone_and_in_any_batch(detector):
    documents = [document.input_ids for document in detector.read([*TEXTS, LONG])]
    together, backwards = detector.score(documents), detector.score(documents[::-1])[::-1]
    alone = [float(detector.score([ids])[0]) for ids in documents]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(backwards, abs=1e-5)
    assert np.diff(sorted(alone)).min() > 1e-4


def test_the_budget_of_a_batch_changes_no_score(detector, tiny_bundle):
    small = Detector.load(tiny_bundle, batch_tokens=64)
    expected = [verdict.probability for verdict in detector.detect(TEXTS)]
    assert [verdict.probability for verdict in small.detect(TEXTS)] == pytest.approx(expected, abs=1e-5)


def test_a_checkpoint_scores_like_the_bundle_made_from_it(detector, tiny_bundle, encoder, tmp_path):
    scorer = Scorer.of_checkpoint(tiny_bundle, tiny.config(encoder, tmp_path).model)
    documents = [document.input_ids for document in detector.read(TEXTS)]
    assert np.array_equal(scorer.score(documents), detector.score(documents))


def test_no_texts_give_no_verdicts(detector):
    assert detector.detect([]) == []


def test_a_batch_is_within_its_budget_of_padded_tokens(spec, detector):
    own = Detector(spec, detector.tokenizer, Fixed(0.0), batch_tokens=128)
    sizes = []
    inner = own.backend.log_odds
    own.backend.log_odds = lambda batch: (sizes.append(batch.input_ids.size), inner(batch))[1]
    own.detect([*TEXTS, LONG])
    assert max(sizes) <= 128


# Normalising


def test_a_text_reads_the_same_with_what_nobody_sees_in_it(detector):
    hidden = "\u200b".join(ENOUGH).replace(" ", "\u00a0 ")
    plain, odd = detector.detect([ENOUGH, hidden])
    assert odd.probability == pytest.approx(plain.probability, abs=1e-6)
    assert odd.num_tokens == plain.num_tokens


def test_tampering_is_counted(detector):
    text = "The c\u043euncil went t\u043e a bridge in the r\u0430in.\u200b\u200b Then we \uff47\uff4f home and eat."
    verdict = detector.detect([text])[0]
    assert verdict.tampering == {"homoglyph": 3, "invisible": 2, "lookalike_form": 2}
    assert detector.detect([ENOUGH])[0].tampering == {}


# Sentences


def test_spans_point_into_the_text_as_sent(detector):
    sentences = ["The council went to the bridge.", "Rain fell on the old market.", "Bread was near!"]
    sent = "  " + "\n\n".join("\u200b".join(sentence) for sentence in sentences) + "\u200b "
    spans = detector.detect([sent], return_spans=True)[0].spans
    assert [normalise(sent[span.start : span.end]).text for span in spans] == sentences
    assert all(not sent[span.start].isspace() for span in spans)


def test_spans_cover_every_visible_character_once_in_order(detector):
    for text in TEXTS:
        spans = detector.detect([text], return_spans=True)[0].spans
        assert "".join(text[span.start : span.end] for span in spans).replace(" ", "") == text.replace(" ", "")
        assert all(before.end <= after.start for before, after in pairwise(spans))
        assert all(0 <= span.probability <= 1 for span in spans)


def test_a_sentence_is_read_with_its_neighbours(detector):
    document = detector.read(["One is the market. Two is the boat. Three is the rain. Four is the bread."])[0]
    found = [sentence.input_ids.tolist() for sentence in detector.sentences(document)]
    parts = [
        ids.tolist() for ids in detector.tokenizer.encode(document.normalised.text.replace(". ", ".\n").split("\n"))
    ]
    assert found == [
        parts[0] + parts[1],
        parts[0] + parts[1] + parts[2],
        parts[1] + parts[2] + parts[3],
        parts[2] + parts[3],
    ]


def test_the_score_of_a_sentence_is_that_of_what_it_is_read_with(detector):
    document = detector.read([TEXTS[2]])[0]
    expected = detector.score([sentence.input_ids for sentence in detector.sentences(document)])
    spans = detector.detect([TEXTS[2]], return_spans=True)[0].spans
    assert [span.probability for span in spans] == pytest.approx(
        detector.spec.calibration.probability(expected), abs=1e-6
    )


def test_a_text_without_sentences_has_no_spans(detector):
    assert [verdict.spans for verdict in detector.detect(["", " \u200b "], return_spans=True)] == [[], []]


def test_spans_change_no_verdict(detector):
    plain = detector.detect(TEXTS)
    with_spans = detector.detect(TEXTS, return_spans=True)
    assert [verdict.model_copy(update={"spans": None}) for verdict in with_spans] == plain
