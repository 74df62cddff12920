import random
import shutil
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from detect_ai.calibration.calibration import Calibration, Domain, Scores
from detect_ai.calibration.conformal import Threshold, p_value
from detect_ai.calibration.length import LengthModel
from detect_ai.calibration.new_domain import fit_domain_effects
from detect_ai.calibration.scaling import Scaling
from detect_ai.core.errors import InputError
from detect_ai.detector.bundle import read_spec, write_spec
from detect_ai.detector.detector import Detector, Scorer
from detect_ai.models.style import Style
from detect_ai.schemas import Label, Reason, Reference, Span
from detect_ai.text.normalize import normalise
from tests.fixtures import tiny_models

LONG = " ".join(tiny_models.text("ai", random.Random(i), 80) for i in range(8))
TEXTS = [tiny_models.text(kind, random.Random(words), words) for kind in ("human", "ai") for words in (12, 40, 90, 300)]
ENOUGH = tiny_models.text("human", random.Random(0), 40)
GERMAN = (
    "Der Rat ging am Dienstag langsam über die alte Brücke, denn es regnete und der Markt war noch geschlossen. " * 3
)


class Fixed:
    """A backend that gives every window the same score and records the windows."""

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
    """A specification whose threshold at 5% is above the score where AI texts become plausible, at 10% below it."""
    length = LengthModel(60)
    texts = Domain("news", Scores((0.0, 0.5, 1.0), (60,) * 3), Scores((2.0,), (60,)))
    thresholds = {0.05: Threshold(1.2, 0.2, 0.95), 0.1: Threshold(0.4, 0.3, 0.95)}
    rest = (0.8, 0.8, length, length, (texts,), None, 0.5, dict.fromkeys(thresholds, 0))
    calibration = Calibration(2.0, -1.0, thresholds, *rest)
    return replace(read_spec(tiny_bundle), calibration=calibration)


def fixed(spec, detector, score):
    return Detector(spec, detector.tokenizer, Fixed(score))


@pytest.mark.parametrize(
    ("target", "lower", "upper", "reason"),
    [(0.05, 0.8, 1.2, Reason.BETWEEN_THRESHOLDS), (0.1, 0.4, 0.8, Reason.UNLIKE_CALIBRATION)],
)
def test_labels_follow_the_thresholds(spec, detector, target, lower, upper, reason):
    def verdict(score):
        return fixed(spec, detector, score).detect([ENOUGH], target)[0]

    assert {verdict(score).label for score in (-5.0, np.nextafter(lower, -np.inf))} == {Label.HUMAN}
    for score in (lower, np.nextafter(upper, -np.inf)):
        assert (verdict(score).label, verdict(score).reasons) == (Label.UNCERTAIN, [reason])
    assert {verdict(score).label for score in (upper, 5.0)} == {Label.AI}


@pytest.mark.parametrize("score", [-5.0, 5.0])
def test_too_short_is_below_the_minimum(spec, detector, score):
    words = "rain " * 12
    num_tokens = len(detector.tokenizer.encode([words.strip()])[0])
    at = fixed(replace(spec, min_tokens=num_tokens), detector, score).detect([words])[0]
    below = fixed(replace(spec, min_tokens=num_tokens + 1), detector, score).detect([words])[0]
    assert (at.label, at.reasons) == (Label.AI if score > 0 else Label.HUMAN, [])
    assert (below.label, below.reasons) == (Label.UNCERTAIN, [Reason.TOO_SHORT])


def test_the_learned_length_holds_at_its_target(spec, detector):
    num_tokens = len(detector.tokenizer.encode([ENOUGH])[0])
    learned = replace(spec.calibration, min_tokens={0.05: num_tokens + 1, 0.1: num_tokens})
    own = fixed(replace(spec, calibration=learned), detector, 5.0)
    assert [own.spec.min_tokens_at(target) for target in own.targets] == [num_tokens + 1, num_tokens]
    at = {target: own.detect([ENOUGH], target)[0] for target in own.targets}
    assert (at[0.05].label, at[0.05].reasons) == (Label.UNCERTAIN, [Reason.TOO_SHORT])
    assert (at[0.1].label, at[0.1].reasons) == (Label.AI, [])
    with_floor = replace(own.spec, min_tokens=num_tokens + 9)
    assert [with_floor.min_tokens_at(target) for target in own.targets] == [num_tokens + 9] * 2


@pytest.mark.parametrize(
    ("text", "content", "reasons"),
    [
        (GERMAN, {"other_language": 1.0}, [Reason.OTHER_LANGUAGE]),
        # The scored text has no line breaks.
        (f"{ENOUGH}\n" + f"> {ENOUGH}\n" * 3, {"prose": 0.25, "quotations": 0.75}, [Reason.MOSTLY_QUOTATIONS]),
        (f"{ENOUGH}\n> {ENOUGH}\n", {"prose": 0.5, "quotations": 0.5}, []),
    ],
)
def test_content_is_reported_and_limited(spec, detector, text, content, reasons):
    verdict = fixed(replace(spec, min_tokens=1), detector, 5.0).detect([text])[0]
    assert (verdict.content, verdict.reasons) == (content, reasons)
    assert verdict.label is (Label.UNCERTAIN if reasons else Label.AI)


@pytest.mark.parametrize("corpus", [{"language": "de"}, {"language": ""}, {}])
def test_the_language_of_the_corpus_is_accepted(spec, detector, corpus):
    verdict = fixed(replace(spec, min_tokens=1, corpus=corpus), detector, 5.0).detect([GERMAN])[0]
    assert (verdict.label, verdict.reasons) == (Label.AI, [])


def test_every_reason_is_given(spec, detector):
    verdict = fixed(spec, detector, 1.0).detect([""])[0]
    assert verdict.reasons == [Reason.TOO_SHORT, Reason.BETWEEN_THRESHOLDS]
    assert verdict.content == {}
    assert (verdict.fpr_upper_bound, verdict.confidence) == (None, None)  # calibration gives none for it
    assert (verdict.num_tokens, verdict.num_windows) == (0, 1)


@pytest.mark.parametrize("target", [0.05, 0.1])
def test_a_verdict_states_its_evidence(spec, detector, target):
    verdict = fixed(spec, detector, 0.9).detect([ENOUGH], target)[0]
    calibration = spec.calibration
    assert verdict.probability == calibration.probability(0.9)
    assert verdict.prevalence == calibration.prevalence == 0.5
    assert verdict.target_fpr == target
    required = calibration.required_scores(np.empty((1, 0)))[0]
    assert verdict.threshold == calibration.probability(calibration.ai_from(verdict.num_tokens, required, target))
    assert verdict.nearest_domain is None
    assert verdict.p_value == p_value([0.0, 0.5, 1.0], 0.9)
    assert (verdict.compared_with, verdict.num_compared) == (Reference.CALIBRATION_TEXTS, 3)
    threshold = calibration.thresholds[target]
    assert (verdict.fpr_upper_bound, verdict.confidence) == (threshold.fpr_bound, threshold.confidence)
    assert verdict.model_version == spec.version
    assert (verdict.spans, verdict.ai_fraction) == (None, None)
    assert (verdict.probability >= verdict.threshold) is (verdict.label is Label.AI)


def test_the_style_of_a_text_decides_what_it_is_compared_with(spec, detector, tiny_bundle, tmp_path):
    """Two kinds of writing that differ in their words: the human scores of the second one are higher."""
    style = Style(np.eye(detector.tokenizer.vocabulary)[:, detector.tokenizer.encode(["bridge tapestry"])[0]])
    rng, words = np.random.default_rng(0), ("bridge", "tapestry")
    human = {f"{word}{i}": rng.normal(5.0 * kind, 1.0, 60) for kind, word in enumerate(words) for i in range(5)}
    styles = {name: np.tile(np.eye(2)[name.startswith("tapestry") * 1], (60, 1)) for name in human}
    ai = Scores.of([9.0], [60], [[1.0, 0.0]])
    domains = tuple(Domain(name, Scores.of(human[name], [60] * 60, styles[name]), ai) for name in human)
    effects = fit_domain_effects(human, styles, [0.05, 0.1], 0.9)
    rest = {"domains": domains, "midpoint": -9.0, "unlike_below": -9.0}
    calibration = replace(spec.calibration, domain_effects=effects, **rest)
    own = Detector(replace(spec, calibration=calibration), detector.tokenizer, Fixed(5.0), style=style)
    low, high = own.detect([f"The {word} " * 60 for word in words], 0.05)
    assert [verdict.nearest_domain[:-1] for verdict in (low, high)] == list(words)
    assert low.p_value <= 0.05 < high.p_value
    assert low.threshold < high.threshold
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    style.save(folder)
    write_spec(folder, replace(spec, calibration=calibration))
    loaded = Detector.load(folder).detect([f"The {word} " * 60 for word in words], 0.05)
    assert [verdict.threshold for verdict in loaded] == [low.threshold, high.threshold]


@pytest.mark.parametrize("score", [-1.0, 0.9, 1.1, 3.0])
@pytest.mark.parametrize("prevalence", [0.05, 0.95])
def test_the_prevalence_changes_probabilities_and_nothing_else(spec, detector, score, prevalence):
    own = fixed(spec, detector, score)
    base, shifted = (own.detect([ENOUGH], 0.05, True, p)[0] for p in (None, prevalence))
    ratio = prevalence / (1 - prevalence)  # ratio of the prior odds, which are 1 at the bundle's prevalence

    def at_prevalence(p):
        return pytest.approx(p * ratio / (p * ratio + 1 - p))

    assert shifted.probability == at_prevalence(base.probability)
    assert shifted.threshold == at_prevalence(base.threshold)
    assert [span.probability for span in shifted.spans] == [at_prevalence(span.probability) for span in base.spans]
    assert (shifted.prevalence, base.prevalence) == (prevalence, 0.5)
    changing = {"probability", "threshold", "spans", "ai_fraction", "prevalence", "ppv"}
    assert shifted.model_dump(exclude=changing) == base.model_dump(exclude=changing)
    assert (shifted.probability >= shifted.threshold) is (shifted.label is Label.AI)
    assert own.detect([ENOUGH], 0.05, True, 0.5) == [base]


def test_the_ppv_is_that_at_the_prevalence(spec, detector):
    own = fixed(replace(spec), detector, 0.0)
    own.spec.detection_rates.update({0.05: 0.55, 0.1: None})  # with FPR bounds of 0.2 and 0.3
    ppv = [own.detect([ENOUGH], 0.05, prevalence=p)[0].ppv for p in (None, 0.05)]
    assert ppv == pytest.approx([0.55 / 0.75, 0.05 * 0.55 / (0.05 * 0.55 + 0.95 * 0.2)])
    assert own.detect([ENOUGH], 0.1)[0].ppv is None


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, float("nan"), 5])
def test_impossible_prevalences_are_refused(detector, prevalence):
    with pytest.raises(InputError, match=f"prevalence={prevalence}: expected a number above 0 and below 1"):
        detector.detect([ENOUGH], prevalence=prevalence)


def test_unknown_targets_are_refused(detector):
    assert detector.targets == [0.05, 0.1]
    with pytest.raises(InputError, match=r"0\.05, 0\.1"):
        detector.detect([ENOUGH], target_fpr=0.01)


def test_sentences_have_the_scaling_of_spans(spec, detector):
    scaling = Scaling(9.0, 0.5)
    own = replace(spec, calibration=replace(spec.calibration, span_scaling=scaling))
    verdict = fixed(own, detector, 1.5).detect([ENOUGH], return_spans=True)[0]
    assert {span.probability for span in verdict.spans} == {float(scaling.probability(1.5))}
    assert verdict.probability == spec.calibration.probability(1.5)
    low = fixed(own, detector, 0.4).detect([ENOUGH], return_spans=True)[0]
    assert (low.ai_fraction, verdict.ai_fraction) == (0.0, 1.0)


def test_long_texts_are_read_in_overlapping_windows(spec, detector):
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


def test_scores_do_not_depend_on_the_batch(detector):
    documents = [document.input_ids for document in detector.read([*TEXTS, LONG])]
    together, backwards = detector.score(documents), detector.score(documents[::-1])[::-1]
    alone = [float(detector.score([ids])[0]) for ids in documents]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(backwards, abs=1e-5)
    assert np.diff(sorted(alone)).min() > 1e-4


def test_a_checkpoint_scores_like_its_bundle(detector, tiny_bundle, encoder, tmp_path):
    scorer = Scorer.from_checkpoint(tiny_bundle, tiny_models.config(encoder, tmp_path).model, "fp32")
    documents = [document.input_ids for document in detector.read(TEXTS)]
    assert np.array_equal(scorer.score(documents), detector.score(documents))


def test_tampering_is_counted(detector):
    text = "The c\u043euncil went t\u043e a bridge in the r\u0430in.\u200b\u200b Then we \uff47\uff4f home and eat."
    verdict = detector.detect([text])[0]
    assert verdict.tampering == {"homoglyph": 3, "invisible": 2, "lookalike_form": 2}
    plain, hidden = detector.detect([ENOUGH, "\u200b".join(ENOUGH)])
    assert plain.tampering == {}
    assert hidden.probability == pytest.approx(plain.probability, abs=1e-6)


def test_spans_point_into_the_text_as_sent(detector):
    sentences = ["The council went to the bridge.", "Rain fell on the old market.", "Bread was near!"]
    sent = "  " + "\n\n".join("\u200b".join(sentence) for sentence in sentences) + "\u200b "
    spans = detector.detect([sent], return_spans=True)[0].spans
    assert [normalise(sent[span.start : span.end]).text for span in spans] == sentences
    assert all(not sent[span.start].isspace() for span in spans)


def test_spans_cover_every_visible_character_once(detector):
    for text in TEXTS:
        spans = detector.detect([text], return_spans=True)[0].spans
        assert "".join(text[span.start : span.end] for span in spans).replace(" ", "") == text.replace(" ", "")
        assert all(before.end <= after.start for before, after in pairwise(spans))
        assert all(0 <= span.probability <= 1 for span in spans)


def test_a_sentence_is_read_with_its_neighbours(detector):
    sentences = ["One is the market.", "Two is the boat.", "Three is the rain.", "Four is the bread."]
    document = detector.read([" ".join(sentences)])[0]
    input_ids = [sentence.input_ids.tolist() for sentence in detector.sentences(document)]
    one, two, three, four = (ids.tolist() for ids in detector.tokenizer.encode(sentences))
    assert input_ids == [one + two, one + two + three, two + three + four, three + four]


def test_a_text_without_sentences_has_no_spans(detector):
    verdicts = detector.detect(["", " \u200b "], return_spans=True)
    assert [(verdict.spans, verdict.ai_fraction) for verdict in verdicts] == [([], 0.0)] * 2
    assert detector.spans(detector.read([""])[0], with_occlusion=True) == detector.detect([]) == []


class Counted:
    """A backend whose score is the number of tokens of a window."""

    has_lanes = False

    def log_odds(self, batch):
        return batch.lengths.astype(float)


def test_occlusion_is_the_loss_of_score_without_a_sentence(spec, detector):
    own = Detector(spec, detector.tokenizer, Counted())
    parts = ["Rain fell.", "The council went to the bridge.", "Bread was near the old market!"]
    document = own.read(["  " + "\n\n".join("\u200b".join(part) for part in parts)])[0]
    assert document.num_windows == 1
    spans = own.spans(document, with_occlusion=True)
    assert [span.effect for span in spans] == [len(ids) for ids in own.tokenizer.encode(parts)]
    plain = own.spans(document)
    assert {span.effect for span in plain} == {None}
    assert [span.model_copy(update={"effect": None}) for span in spans] == plain


@pytest.mark.parametrize(
    ("probabilities", "expected"), [([0.5, 0.49, 0.0], 0.25), ([0.9, 0.5, 0.6], 1.0), ([0.1, 0.2, 0.4], 0.0)]
)
def test_ai_fraction_counts_characters(spec, detector, probabilities, expected):
    places = zip([(0, 10), (11, 26), (30, 45)], probabilities, strict=True)
    spans = [Span(start=start, end=end, probability=p) for (start, end), p in places]
    assert detector.verdict(detector.read([ENOUGH])[0], 0.0, spans, 0.05).ai_fraction == expected


def test_parallel_batches_score_the_same(tiny_bundle, monkeypatch):
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
        scores = detector.window_scores(rows)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert {threads for _, threads in seen} == {1}
    assert threading.current_thread().name not in {name for name, _ in seen}
