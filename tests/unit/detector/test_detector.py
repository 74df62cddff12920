import random
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from detect_ai.calibration.calibration import Category, calibrate
from detect_ai.calibration.conformal import Threshold, p_value
from detect_ai.core.errors import BundleError, InputError
from detect_ai.detector.bundle import read_spec
from detect_ai.detector.detector import Detector, Scorer
from detect_ai.schemas import Label, Reason, Span
from detect_ai.text.normalize import NORMALISER_VERSION, normalise
from tests.fixtures import tiny_models

LONG = " ".join(tiny_models.text("ai", random.Random(i), 80) for i in range(8))
TEXTS = [tiny_models.text(kind, random.Random(words), words) for kind in ("human", "ai") for words in (12, 40, 90, 300)]
ENOUGH = tiny_models.text("human", random.Random(0), 40)
GERMAN = (
    "Der Rat ging am Dienstag langsam über die alte Brücke, denn es regnete und der Markt war noch geschlossen. " * 3
)


class Fixed:
    """A backend that gives every window the same score, and keeps the windows."""

    has_lanes = False

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


def test_the_least_length_that_was_learnt_holds_at_its_target_alone(spec, detector):
    num_tokens = len(detector.tokenizer.encode([ENOUGH])[0])
    learnt = replace(spec.calibration, min_tokens={0.05: num_tokens + 1, 0.1: num_tokens})
    own = fixed(replace(spec, calibration=learnt), detector, 5.0)
    assert [own.spec.min_tokens_at(target) for target in own.targets] == [num_tokens + 1, num_tokens]
    at = {target: own.detect([ENOUGH], target)[0] for target in own.targets}
    assert (at[0.05].label, at[0.05].reasons) == (Label.UNCERTAIN, [Reason.TOO_SHORT])
    assert (at[0.1].label, at[0.1].reasons) == (Label.AI, [])


def test_nothing_learnt_goes_below_the_floor(spec, detector):
    learnt = replace(spec.calibration, min_tokens={0.05: 3})
    own = fixed(replace(spec, calibration=learnt, min_tokens=7), detector, 5.0)
    assert [own.spec.min_tokens_at(target) for target in own.targets] == [7, 7]


@pytest.mark.parametrize("score", [-5.0, 5.0])
@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("Все счастливые семьи похожи друг на друга. " * 3, [Reason.OTHER_SCRIPT]),
        ("1234 5678 !!! ... " * 10, [Reason.OTHER_SCRIPT, Reason.MOSTLY_TABLES]),
        (GERMAN, [Reason.OTHER_LANGUAGE]),
        ("def rain(train):\n    return train + 1\n\n" * 8, [Reason.MOSTLY_CODE]),
        ("| town | bridge |\n" * 12, [Reason.MOSTLY_TABLES]),
        # Line breaks are gone from what is scored.
        ("He wrote:\n" + "> The council went to the bridge on Tuesday.\n" * 6, [Reason.MOSTLY_QUOTATIONS]),
    ],
)
def test_a_text_that_is_no_prose_in_the_language_of_the_corpus_gets_no_verdict(spec, detector, text, reasons, score):
    verdict = fixed(replace(spec, min_tokens=1), detector, score).detect([text])[0]
    assert (verdict.label, verdict.reasons) == (Label.UNCERTAIN, reasons)


@pytest.mark.parametrize("corpus", [{"language": "de"}, {"language": ""}, {}])
def test_a_text_in_the_language_of_the_corpus_or_where_that_has_none_is_judged(spec, detector, corpus):
    verdict = fixed(replace(spec, min_tokens=1, corpus=corpus), detector, 5.0).detect([GERMAN])[0]
    assert (verdict.label, verdict.reasons) == (Label.AI, [])


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
    assert (verdict.compared_with, verdict.num_compared) == ("", 40)
    assert verdict.model_version == spec.version
    assert (verdict.spans, verdict.ai_fraction) == (None, None)
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


# What a text is compared with


class Told:
    """Tells every text to be of one register."""

    def __init__(self, name):
        self.name = name

    def of(self, documents):
        return [self.name] * len(documents)


def category(register, human, low=0, high=None, **scores):
    """Thresholds by target, as `at05=2.0`."""
    thresholds = {float(f"0.{name[2:]}"): Threshold(score, 0.0, 0.0) for name, score in scores.items()}
    return Category(2.0, -1.0, tuple(map(float, range(human))), thresholds, (), register, low, high)


@pytest.fixture(scope="module")
def parted(spec):
    """Prose is stricter at 5%, essays are at 10%; texts of both below and from 20 tokens."""
    categories = (
        category("essays", 30, 0, 20, at05=3.0, at1=3.0),
        category("essays", 31, 20, None, at05=1.0, at1=1.0),
        category("prose", 32, 0, 20, at05=4.0, at1=2.5),
        category("prose", 33, 20, None, at05=2.0, at1=0.5),
    )
    return replace(spec, min_tokens=1, calibration=replace(spec.calibration, categories=categories))


def told(parted, detector, name, score=0.0):
    return Detector(parted, detector.tokenizer, Fixed(score), registers=Told(name))


@pytest.mark.parametrize(("name", "humans", "threshold"), [("essays", 31, 1.0), ("prose", 33, 2.0)])
def test_a_text_is_compared_with_the_human_texts_of_its_register_and_length(parted, detector, name, humans, threshold):
    verdict = told(parted, detector, name, 1.5).detect([ENOUGH])[0]
    own = next(each for each in parted.calibration.categories if len(each.human_scores) == humans)
    assert (verdict.compared_with, verdict.num_compared) == (name, humans)
    assert verdict.p_value == p_value(own.human_scores, 1.5)
    assert verdict.probability == own.probability(1.5)
    assert verdict.threshold == own.probability(threshold)
    assert verdict.label is (Label.AI if name == "essays" else Label.UNCERTAIN)
    assert told(parted, detector, name).detect(["Rain fell near the market."])[0].num_compared == humans - 1


@pytest.mark.parametrize("name", ["", "letters"])
def test_a_text_of_an_unknown_register_meets_the_strictest_thresholds_at_each_target(parted, detector, name):
    own = told(parted, detector, name)
    strict, lax = own.verdicts(own.read([ENOUGH])[0], 0.7, None, [0.05, 0.1])
    assert (strict.compared_with, strict.num_compared) == ("", 33)
    assert (lax.compared_with, lax.num_compared) == ("", 31)
    assert (strict.target_fpr, lax.target_fpr) == (0.05, 0.1)


def test_several_targets_give_the_verdicts_of_each(parted, detector):
    own = told(parted, detector, "prose")
    document = own.read([ENOUGH])[0]
    assert own.verdicts(document, 0.7, None, own.targets) == [
        own.verdict(document, 0.7, None, target) for target in own.targets
    ]
    assert [verdict.label for verdict in own.verdicts(document, 0.7, None, [0.05, 0.1])] == [Label.UNCERTAIN, Label.AI]


def test_a_sentence_is_compared_with_texts_of_its_own_length(parted, detector):
    short = replace(parted.calibration.categories[0], temperature=9.0)
    calibration = replace(parted.calibration, categories=(short, *parted.calibration.categories[1:]))
    own = told(replace(parted, calibration=calibration), detector, "essays", 1.5)
    document = own.read(["It was near. " + ENOUGH])[0]
    lengths = [len(sentence.input_ids) for sentence in own.sentences(document)]
    assert min(lengths) < 20 <= max(lengths)
    expected = [float(calibration.reference("essays", length).probability(1.5)) for length in lengths]
    assert [span.probability for span in own.spans(document)] == expected
    assert len(set(expected)) == 2


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
    scorer = Scorer.of_checkpoint(tiny_bundle, tiny_models.config(encoder, tmp_path).model)
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
    assert [verdict.model_copy(update={"spans": None, "ai_fraction": None}) for verdict in with_spans] == plain


class Counted:
    """A backend whose score is the number of tokens of a window."""

    has_lanes = False

    def log_odds(self, batch):
        return batch.lengths.astype(float)


def test_the_effect_of_a_sentence_is_what_the_score_of_the_text_loses_without_it(spec, detector):
    own = Detector(spec, detector.tokenizer, Counted())
    parts = ["Rain fell.", "The council went to the bridge.", "Bread was near the old market!"]
    document = own.read(["  " + "\n\n".join("\u200b".join(part) for part in parts)])[0]
    assert document.num_windows == 1
    found = own.spans(document, "occlusion")
    assert [span.effect for span in found] == [len(ids) for ids in own.tokenizer.encode(parts)]
    plain = own.spans(document)
    assert {span.effect for span in plain} == {None}
    assert [span.model_copy(update={"effect": None}) for span in found] == plain


def test_without_its_only_sentence_a_text_is_empty(spec, detector):
    own = Detector(spec, detector.tokenizer, Counted())
    document = own.read(["Rain fell near the market."])[0]
    assert [span.effect for span in own.spans(document, "occlusion")] == [len(document.input_ids)]
    assert own.spans(own.read([""])[0], "occlusion") == []


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([0.5, 0.49, 0.0], 0.25), ([0.9, 0.5, 0.6], 1.0), ([0.1, 0.2, 0.4], 0.0), ([0.0, 0.0, 1.0], 0.375)],
)
def test_the_ai_fraction_counts_the_characters_of_sentences_more_likely_ai_than_not(
    spec, detector, probabilities, expected
):
    places = zip([(0, 10), (11, 26), (30, 45)], probabilities, strict=True)
    spans = [Span(start=start, end=end, probability=p) for (start, end), p in places]
    assert detector.verdict(detector.read([ENOUGH])[0], 0.0, spans, 0.05).ai_fraction == expected


def test_the_ai_fraction_of_a_text_without_sentences_is_nothing(detector):
    assert detector.detect([""], return_spans=True)[0].ai_fraction == 0.0


def test_batches_run_in_a_thread_each_and_score_the_same(tiny_bundle, monkeypatch):
    detector, seen = Detector.load(tiny_bundle, batch_tokens=64), set()
    rows = [np.arange(5, 5 + n, dtype=np.int32) for n in (40, 3, 17, 62, 8, 30)]
    expected = detector.window_scores(rows)
    log_odds = detector.backend.log_odds

    def watched(batch):
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return log_odds(batch)

    monkeypatch.setattr(detector.backend, "log_odds", watched)
    torch.set_num_threads(2)
    try:
        found = detector.window_scores(rows)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert {threads for _, threads in seen} == {1}
    assert threading.current_thread().name not in {name for name, _ in seen}
