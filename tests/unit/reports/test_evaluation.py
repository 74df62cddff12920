"""The pages of the evaluation and of the comparison, of figures that `metrics` makes of drawn scores."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from detect_ai import metrics
from detect_ai.evaluation import summary
from detect_ai.reports import evaluation_plots
from detect_ai.reports.evaluation import comparison_report, evaluation_report

EVIL = "$x$ <script>alert(1)</script> & \"so\" 'on'"
LONG = "a source with a name that is far too long for a table and for a figure alike " * 2
UPPER = {0.01: 2.5, 0.05: 1.8}
DOMAINS = ["news", "essays", "reviews", EVIL]
GENERATORS = ["gpt-4o", "llama-3-8b", "mistral-7b"]
BOUNDS = [(1, 64), (64, 128), (128, 256), (256, None)]
NOT_CLOSED = {"meta", "br"}  # elements of HTML that have no end
COUNTED = (
    "targets",
    "default_target",
    "uncertain",
    "roc",
    "baseline_roc",
    "edges",
    "human",
    "ai",
    "count",
    "low",
    "high",
)
Change = Callable[[dict[str, Any]], dict[str, Any]]


def drawn(humans: int = 900, ais: int = 500, seed: int = 3, apart: float = 2.6) -> dict[str, Any]:
    """Labels, scores, probabilities, calls, domains, generators and tokens of texts of one detector."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [humans, ais])
    domains = rng.choice(DOMAINS, labels.size)
    scores = rng.normal(apart * labels, 1.0) + 0.6 * (domains == "essays")
    return {
        "labels": labels,
        "scores": scores,
        "probabilities": 1 / (1 + np.exp(-apart * (scores - apart / 2))),
        "calls": {target: metrics.calls_at(scores, upper - 0.4, upper) for target, upper in UPPER.items()},
        "domain": domains,
        "generator": np.where(labels == 1, rng.choice(GENERATORS, labels.size), ""),
        "tokens": rng.integers(20, 400, labels.size),
    }


def figures_of(texts: dict[str, Any], kept: Any = slice(None), rounds: int = 0) -> dict[str, Any]:
    calls = {target: made[kept] for target, made in texts["calls"].items()}
    three = (texts[name][kept] for name in ("labels", "scores", "probabilities"))
    return summary.report(*three, calls, 0.05, rounds=rounds)


@cache
def _made(humans: int, ais: int) -> dict[str, Any]:
    texts, plain = drawn(humans, ais), drawn(humans, ais, seed=4, apart=1.7)
    labels, p, tokens = texts["labels"], texts["probabilities"], texts["tokens"]
    both = 0 < labels.sum() < labels.size
    edges = np.linspace(0, 1, 21)
    slices = [
        {"column": column, "value": value, **figures_of(texts, texts[column] == value)}
        for column, values in (("domain", DOMAINS), ("generator", GENERATORS))
        for value in values
        if (texts[column] == value).any()
    ]
    slices.append({"column": "source", "value": LONG, **figures_of(texts)})
    lengths = [(low, high, (tokens >= low) & (tokens < (high or 10**9))) for low, high in BOUNDS]
    clean = figures_of(texts)
    return {
        "bundle": {
            "version": "20261124-e5",
            "base_model": "made/base",
            "corpus": {"name": "essays", "fingerprint": "f00d" * 16, "language": "en", "licences": ["CC0", "MIT"]},
            "targets": list(UPPER),
            "default_target": 0.05,
            "min_tokens_by_target": {"0.01": 48, "0.05": 24},
        },
        "data": {
            "name": "held-out essays",
            "rows": humans + ais + 19,
            "skipped": {"no_text": 12, "bad_row": 7},
            "one_class": not both,
            "contaminated": 3,
            "contamination_checked": True,
            "other_corpus": True,
            "fingerprint": "beef" * 16,
        },
        "overall": figures_of(texts, rounds=20),
        "baseline": figures_of(plain, rounds=20),
        "slices": slices,
        "lengths": [{"low": low, "high": high, **figures_of(texts, kept)} for low, high, kept in lengths],
        "attacks": [
            {"attack": "none", **clean, "tpr_ratio": 1.0, "fpr_ratio": 1.0},
            {"attack": "homoglyph", **clean, "tpr_ratio": 0.31, "fpr_ratio": 4.25},
            {"attack": "article_deletion", **clean, "tpr_ratio": 0.94, "fpr_ratio": None},
        ],
        "curves": {
            "roc": metrics.roc(labels, texts["scores"]) if both else None,
            "baseline_roc": metrics.roc(plain["labels"], plain["scores"]) if both else None,
            "reliability": metrics.reliability(labels, p),
            "histogram": {
                "edges": edges.tolist(),
                "human": np.histogram(p[labels == 0], edges)[0].tolist(),
                "ai": np.histogram(p[labels == 1], edges)[0].tolist(),
            },
        },
        "uncertain": {"too_short": 41, "between_thresholds": 163},
        "worst": [
            {
                "id": f"essays-{EVIL}",
                "domain": EVIL,
                "source": LONG,
                "probability": 0.991,
                "p_value": 0.0004,
                "num_tokens": 318,
                "sentences": [
                    {"text": "In conclusion, technology plays an important role in our lives.", "probability": 0.97},
                    {"text": f"My aunt said {EVIL} and left the room.", "probability": 0.12},
                    {"text": "It is therefore important to consider both sides of this question.", "probability": 0.74},
                    {"text": "This one has no figure.", "probability": None},
                ],
            },
            {
                "id": "hidden",
                "domain": "",
                "source": "letters",
                "probability": 0.93,
                "p_value": None,
                "num_tokens": 77,
                "sentences": [],
            },
        ],
        "explanation": {
            "n_documents": 120,
            "sentence_auroc_windows": 0.81,
            "sentence_auroc_occlusion": 0.74,
            "ai_fraction_error": 0.13,
        },
        "exchangeability": [f"The source {EVIL} is not in the calibration split."],
        "seconds": 83.4,
        "created": "2026-11-24T13:00:00Z",
    }


def made(humans: int = 900, ais: int = 500) -> dict[str, Any]:
    return copy.deepcopy(_made(humans, ais))


def undrawn() -> dict[str, Any]:
    """A report without what is drawn, for tests of the rest."""
    curves = {"roc": None, "baseline_roc": None, "reliability": [], "histogram": None}
    return made() | {"curves": curves, "slices": [], "lengths": []}


def compared() -> dict[str, Any]:
    """A report of three detectors, one with a hostile name, and a baseline."""
    report = made()
    names = {"champion": 2.6, EVIL: 2.5, "someone-else/roberta": 1.9}
    bundles = [
        {"name": name, "version": version, "published": version is None, **figures_of(drawn(apart=apart), rounds=20)}
        for (name, apart), version in zip(names.items(), ("20261124-e5", "20261120-a1", None), strict=True)
    ]
    few = ("auroc", "fpr_at_target_1", "tpr_at_target_1")
    return {
        "data": report["data"],
        "bundles": bundles,
        "pairs": [
            {
                "a": "champion",
                "b": EVIL,
                "auroc_difference": 0.004,
                "low": -0.003,
                "high": 0.011,
                "p_value": 0.262,
                "mcnemar": {"only_a": 31, "only_b": 27, "p_value": 0.694},
                "target": 0.01,
                "fpr_difference": -0.002,
                "fpr_low": -0.006,
                "fpr_high": 0.001,
            },
            {
                "a": "champion",
                "b": "someone-else/roberta",
                "auroc_difference": 0.061,
                "low": 0.044,
                "high": 0.078,
                "p_value": 1e-9,
                "mcnemar": None,
                "fpr_difference": None,
            },
        ],
        "slices": [
            {
                "column": "domain",
                "value": domain,
                "figures": {bundle["name"]: {name: bundle[name] for name in few} for bundle in bundles},
            }
            for domain in DOMAINS
        ],
        "baseline": report["baseline"],
    }


class Seen(HTMLParser):
    """What a browser would make of a page: tags with their attributes, words, ends that fit no beginning."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.astray: list[str] = []
        self.said: list[str] = []
        self.feed(page)
        self.close()
        self.words = " ".join("".join(self.said).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in NOT_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.astray.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.said.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def without(value: Any, keep: tuple[str, ...] = ()) -> Any:
    """A report whose figures are None: all numbers but those of the keys to keep, and what stands in a list of them."""
    if isinstance(value, dict):
        return {key: each if key in keep else without(each, keep) for key, each in value.items()}
    if isinstance(value, list):
        return [without(each, keep) for each in value]
    return None if isinstance(value, int | float) and not isinstance(value, bool) else value


def emptied(report: dict[str, Any]) -> dict[str, Any]:
    """A report of which every list and every count by name is empty, and what may be absent is."""
    empty = {key: type(value)() if isinstance(value, list) else value for key, value in report.items()}
    return empty | {"baseline": None} | ({"uncertain": {}, "explanation": None} if "uncertain" in report else {})


@pytest.fixture(scope="module")
def evaluation() -> str:
    return evaluation_report(made())


@pytest.fixture(scope="module")
def comparison() -> str:
    return comparison_report(compared())


def test_the_first_sentence_says_who_was_accused_and_what_was_found() -> None:
    report = undrawn()
    figures = {"fpr_at_target_1": 0.023, "fpr_at_target_1_low": 0.017, "fpr_at_target_1_high": 0.031}
    figures |= {"tpr_at_target_1": 0.71, "tpr_at_target_1_low": 0.68, "tpr_at_target_1_high": 0.74}
    figures |= {"n_human": 4507, "n_ai": 1414, "uncertain_share_at_1": 0.12}
    report["overall"] |= figures
    report["baseline"] |= figures | {"fpr_at_target_1": 0.019, "uncertain_share_at_1": None}
    words = Seen(evaluation_report(report)).words
    ours = (
        "At the 1% target it called 2.3% (95%: 1.7 to 3.1%) of 4,507 human texts AI, and 71% (95%: 68 to 74%) of 1,414 "
        "AI texts; 12% got no verdict."
    )
    theirs = "At the 1% target it called 1.9% (95%: 1.7 to 3.1%) of 4,507 human texts AI, and 71% (95%: 68 to 74%)"
    assert words.index("Detector") < words.index(ours) < words.index("Baseline") < words.index(theirs)
    assert words.index(theirs) < words.index("Warnings")


def test_the_default_target_has_a_sentence_of_its_own() -> None:
    report = undrawn()
    assert Seen(evaluation_report(report)).words.count("At the 5% target it called") == 2
    report["bundle"]["default_target"] = 0.01
    assert "At the 5% target it called" not in Seen(evaluation_report(report)).words


EVALUATION = [
    "Warnings",
    "Key figures",
    "Who is accused, and what is found",
    "Length",
    "Attacks",
    "No verdict, and how sure it is of the others",
    "Worst false accusations",
    "How far to trust the marks on sentences",
    "How each figure is made",
]
COMPARISON = ["Warnings", "Side by side", "Pair by pair", "By slice", "How each figure is made"]


def headings(page: str) -> list[str]:
    return [Seen(found).words for found in re.findall(r"<h2 id=.*?</h2>", page)]


def figures_drawn(page: str) -> set[str]:
    """Names of the figures, which mark their identifiers."""
    return set(re.findall(r'<g id="([a-z-]+)-figure_1"', page))


def test_every_section_and_figure_stands_on_the_page_of_an_evaluation(evaluation: str) -> None:
    assert headings(evaluation) == EVALUATION
    assert figures_drawn(evaluation) == {"roc", "reliability", "histogram", "fpr", "tpr", "by-length", "uncertain"}


def test_every_section_and_figure_stands_on_the_page_of_a_comparison(comparison: str) -> None:
    assert headings(comparison) == COMPARISON
    assert figures_drawn(comparison) == {"differences"}


def rows_of(page: str, caption: str) -> list[list[str]]:
    """The cells of the table with that caption, row by row."""
    table = next(each for each in re.findall(r"<figcaption>.*?</table>", page, re.DOTALL) if caption in each)
    body = table[table.index("<tbody>") :]
    return [
        [Seen(cell).words for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    ]


def test_key_figures_stand_with_their_intervals_beside_those_of_the_baseline() -> None:
    report = undrawn()
    report["overall"] |= {"auroc": 0.9991, "auroc_low": 0.9876, "auroc_high": 0.9999}
    report["baseline"] |= {"auroc": 0.875, "auroc_low": None, "auroc_high": None}
    rows = {row[0]: row[1:] for row in rows_of(evaluation_report(report), "With 95% intervals")}
    assert rows["AUROC2"] == ["0.9990.988–0.999", "0.875"]
    assert len(rows) == 21


def test_slices_stand_by_column_and_those_accused_beyond_chance_are_marked() -> None:
    report = made()
    rates = {"fpr_at_target_1": 0.08, "fpr_at_target_1_low": 0.04, "fpr_at_target_1_high": 0.12}
    report["slices"][0] |= rates
    report["slices"][1] |= rates | {"fpr_at_target_1_low": 0.009}
    page = evaluation_report(report)
    rows = rows_of(page, "By slice.")
    assert [row[0] for row in rows][:4] == ["domain", "news", "essays", "reviews"]
    assert rows[1][5] == "8.0% 4.0–12%"
    assert re.search(r'<td class="hot">8\.0% <small>4\.0', page)
    assert re.search(r"<td>8\.0% <small>0\.9", page)


def test_of_many_slices_the_largest_are_shown_and_the_rest_counted() -> None:
    report = made()
    one = report["slices"][0]
    report["slices"] = [{**one, "value": f"slice-{i}", "n_human": 100 + i, "n_ai": 0} for i in range(60)]
    rows = rows_of(evaluation_report(report), "By slice.")
    assert "20 more stand in the JSON" in rows[0][0]
    assert [row[0] for row in rows[1:]] == [f"slice-{i}" for i in range(20, 60)]


def test_attacks_stand_with_what_they_cost(evaluation: str) -> None:
    rows = rows_of(evaluation, "changed to escape")
    assert [(row[0], row[6], row[8]) for row in rows] == [
        ("none: the same texts clean", "–", "–"),
        ("homoglyph", "0.31×", "4.25×"),
        ("article deletion", "0.94×", "–"),
    ]


def test_lengths_stand_in_tokens(evaluation: str) -> None:
    rows = rows_of(evaluation, "By length in tokens")
    assert [row[0] for row in rows] == ["1–63", "64–127", "128–255", "256 and more"]


def test_sentences_are_tinted_by_their_probability_and_say_it_in_words(evaluation: str) -> None:
    marks = re.findall(
        r"<mark style=.*?var\(--ai\) (\d+)%, transparent\)\"(?: title=\"([^\"]*)\")?>(.*?)</mark>", evaluation
    )
    assert [(int(tint), title) for tint, title, _ in marks] == [
        (53, "probability of AI: 97%"),
        (7, "probability of AI: 12%"),
        (41, "probability of AI: 74%"),
        (0, ""),
    ]
    assert marks[1][2].startswith("My aunt said $x$ &lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;so&#34;")
    assert "in our lives. 97% My aunt said" in Seen(evaluation).words
    assert "Its text is not shown." in evaluation


def test_a_long_text_is_cut_after_some_sentences() -> None:
    report = undrawn()
    report["worst"][0]["sentences"] = [{"text": f"Sentence {i}.", "probability": 0.5} for i in range(43)]
    words = Seen(evaluation_report(report)).words
    assert "Sentence 39." in words
    assert "Sentence 40." not in words
    assert "and 3 more sentences" in words


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"one_class": True}, "these texts are all human or all AI"),
        ({"contaminated": 3}, "3 of these texts have a near duplicate in what the detector learnt from"),
        ({"contaminated": 1}, "1 of these texts has a near duplicate"),
        ({"contaminated": None, "contamination_checked": False}, "is not known"),
        ({"other_corpus": True}, "come from elsewhere than those that the thresholds were set on"),
    ],
)
def test_a_warning_says_what_is_wrong_with_the_data(change: dict[str, Any], warning: str) -> None:
    fine = {"one_class": False, "contaminated": 0, "contamination_checked": True, "other_corpus": False}
    report = undrawn() | {"exchangeability": []}
    report["data"] |= fine
    page = evaluation_report(report)
    assert not warnings_of(page)
    assert "No text of it has a near duplicate" in page
    report["data"] |= change
    (found,) = warnings_of(evaluation_report(report))
    assert warning in found


def warnings_of(page: str) -> list[str]:
    found = re.search(r'<ul class="warnings">.*?</ul>', page, re.DOTALL)
    return [Seen(item).words for item in re.findall(r"<li.*?</li>", found[0], re.DOTALL)] if found else []


def test_what_breaks_the_guarantee_is_a_warning(evaluation: str) -> None:
    assert any(f"The source {EVIL} is not in the calibration split." in each for each in warnings_of(evaluation))


def test_a_baseline_that_is_as_good_is_a_warning() -> None:
    report = undrawn()
    assert not any("as well or better" in each for each in warnings_of(evaluation_report(report)))
    report["baseline"]["auroc"] = report["overall"]["auroc"]
    assert any("as well or better" in each for each in warnings_of(evaluation_report(report)))


def test_detectors_of_several_corpora_are_warned_of_in_other_words(comparison: str) -> None:
    found = " ".join(warnings_of(comparison))
    assert "the detectors learnt from different corpora" in found
    assert "thresholds were set on" not in found


@pytest.mark.parametrize(("low", "red"), [(0.011, True), (0.009, False)])
def test_a_slice_accused_beyond_chance_is_drawn_in_red(low: float, red: bool) -> None:
    figures = {"n_human": 300, "n_ai": 0, "fpr_at_target_1": 0.02, "fpr_at_target_1_low": low}
    one = {**figures, "fpr_at_target_1_high": 0.03, "column": "domain", "value": "news"}
    svg = evaluation_plots.rates_by_slice("fpr", {}, [one], [0.01])
    assert ("var(--warn)" in svg) == red
    assert {"news", "all texts", "at the 1% target"} <= set(re.findall(r">([^<>]+)</text>", svg))


def test_a_slice_of_few_texts_is_not_drawn() -> None:
    one = {"n_human": 19, "fpr_at_target_1": 0.02, "column": "domain", "value": "news"}
    assert evaluation_plots.rates_by_slice("fpr", {}, [one], [0.01]) == ""
    assert evaluation_plots.rates_by_slice("fpr", {}, [one | {"n_human": 20}], [0.01])


@pytest.mark.parametrize(("low", "filled"), [(0.001, True), (-0.001, False)])
def test_a_difference_beyond_chance_is_drawn_filled(low: float, filled: bool) -> None:
    pair = {"a": "one", "b": "other", "auroc_difference": 0.01, "low": low, "high": 0.02}
    svg = evaluation_plots.differences([pair])
    assert ("fill: var(--page)" in svg) != filled
    assert "one − other" in svg


def test_the_roc_curve_names_its_thresholds_and_the_baseline() -> None:
    curve = {"fpr": [0.0, 0.02, 1.0], "tpr": [0.1, 0.7, 1.0]}
    overall = {"fpr_at_target_1": 0.02, "tpr_at_target_1": 0.7}
    words = evaluation_plots.roc(curve, curve, overall, [0.01, 0.05])
    assert "1% target" in words
    assert "5% target" not in words  # not measured
    assert ">baseline<" in words
    assert ">baseline<" not in evaluation_plots.roc(curve, None, overall, [0.01])


def test_the_leader_is_named_and_whether_chance_may_have_made_it() -> None:
    report = compared()
    for bundle, auroc in zip(report["bundles"], (0.95, 0.94, 0.9), strict=True):
        bundle["auroc"] = auroc
    report["bundles"][1]["name"] = report["pairs"][0]["b"] = "challenger"
    said = "champion has the highest AUROC, 0.950; challenger follows with 0.940. That difference"
    assert f"{said} may be chance." in comparison_report(report)
    report["pairs"][0] |= {"low": 0.002}
    assert f"{said} is more than chance." in comparison_report(report)
    # The same pair the other way round says the same.
    report["pairs"][0] |= {"a": "challenger", "b": "champion", "low": -0.02, "high": -0.002}
    assert f"{said} is more than chance." in comparison_report(report)


def test_detectors_stand_side_by_side_with_the_best_figures_marked() -> None:
    report = compared()
    for bundle, auroc, ece in zip(report["bundles"], (0.95, 0.94, None), (0.2, 0.1, 0.3), strict=True):
        bundle |= {"auroc": auroc, "auroc_low": None, "ece": ece, "ece_low": None}
    report["baseline"] |= {"auroc": 0.9, "auroc_low": None, "ece": 0.4, "ece_low": None}
    page = comparison_report(report)
    rows = {row[0]: row[1:] for row in rows_of(page, "The same texts for all")}
    assert rows["Version"] == ["20261124-e5", "20261120-a1", "–published", "–"]
    assert rows["AUROC2"] == ["0.950", "0.940", "–", "0.900"]
    best = re.findall(r"<td><b>(.*?)</b>", page)
    assert "0.950" in best  # the highest AUROC
    assert "0.100" in best  # the lowest calibration error
    assert not {"0.940", "0.900", "0.200", "0.300", "0.400"} & set(best)


def test_the_targets_of_a_comparison_are_those_that_its_detectors_name() -> None:
    report = compared()
    for bundle in report["bundles"]:
        bundle["fpr_at_target_0_1"] = 0.002
    labels = [row[0] for row in rows_of(comparison_report(report), "The same texts for all")]
    found = [match[1] for label in labels if (match := re.match(r"Human texts called AI at the (.*) target", label))]
    assert found == ["0.1%", "1%", "5%"]


def test_pairs_stand_with_their_tests(comparison: str) -> None:
    rows = rows_of(comparison, "McNemar")
    assert rows[0][2:] == ["+0.004−0.003 to +0.011", "0.262", "−0.002−0.006 to +0.001", "31", "27", "0.694"]
    assert rows[1][2:] == ["+0.061+0.044 to +0.078", "<0.001", "–", "–", "–", "–"]


@pytest.fixture(params=["evaluation", "comparison"])
def page(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


def test_hostile_names_are_shown_as_they_are_and_run_nothing(page: str) -> None:
    assert "<script" not in page
    assert EVIL in Seen(page).words
    for _, attributes in Seen(page).tags:
        assert not any(name.startswith("on") for name in attributes)


def test_every_name_of_a_report_is_escaped() -> None:
    report = made()
    for holder, name in (("bundle", "version"), ("bundle", "base_model"), ("data", "name")):
        report[holder][name] = f"{holder} {name} {EVIL}"
    report["bundle"]["corpus"] |= {"name": f"corpus {EVIL}", "licences": [f"licence {EVIL}"]}
    report["data"]["skipped"] = {f"skipped {EVIL}": 3}
    report["uncertain"] = {"<b>": 3}
    report["attacks"][1]["attack"] = f"attack {EVIL}"
    report["created"] = f"created {EVIL}"
    report["slices"][0]["column"] = f"column {EVIL}"
    seen = Seen(evaluation_report(report))
    for word in (
        "bundle version",
        "bundle base_model",
        "data name",
        "corpus",
        "licence",
        "skipped",
        "attack",
        "created",
        "column",
    ):
        assert f"{word} {EVIL}" in seen.words, word
    assert "script" not in {tag for tag, _ in seen.tags}


def test_long_names_are_shortened_in_tables_and_whole_in_their_titles(evaluation: str) -> None:
    seen = Seen(evaluation)
    assert LONG.strip() not in seen.words
    assert any(attributes.get("title") == LONG for attributes in seen.named("th"))


def test_a_page_asks_for_nothing_from_elsewhere(page: str) -> None:
    seen = Seen(page)
    assert not {"script", "link", "iframe", "object", "img", "base", "form"} & {tag for tag, _ in seen.tags}
    sources = [value for _, a in seen.tags for name, value in a.items() if name in ("src", "href", "xlink:href")]
    assert sources
    assert all(str(value).startswith("#") for value in sources)
    assert not re.search(r"@import|url\((?!#)", page)


def test_a_page_is_well_formed(page: str) -> None:
    check_form(page)


def check_form(page: str) -> None:
    """All tags closed in order, identifiers unique, references found, figures captioned, no row wider than its head."""
    assert page.lstrip().startswith("<!doctype html>")
    seen = Seen(page)
    assert (seen.open, seen.astray) == ([], [])
    assert [len(seen.named(tag)) for tag in ("html", "head", "title", "main", "h1")] == [1] * 5
    identifiers = Counter(str(attributes["id"]) for _, attributes in seen.tags if "id" in attributes)
    assert not [name for name, times in identifiers.items() if times > 1]
    references = re.findall(r'(?:href="|url\(|aria-labelledby=")#?([^")]+)', page)
    assert references
    assert set(references) <= set(identifiers)
    assert len(seen.named("figure")) == len(seen.named("figcaption"))
    assert len(seen.named("figure")) == len(seen.named("table")) + len(seen.named("svg"))
    assert all(a.get("aria-label") for a in seen.named("div") if a.get("role") in ("img", "region"))
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        head, *rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        for row in rows:
            spans = re.findall(r'colspan="(\d+)"', row)
            assert (int(spans[0]) if spans else len(re.findall("<t[hd]", row))) == len(re.findall("<th", head))
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    assert all(page.count(f"{name}:") == 2 for name in used)  # for light and for dark
    assert not re.search(r"#0(\d)0\1", page)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda report: report | {"baseline": None}, id="no baseline"),
        pytest.param(emptied, id="empty lists"),
        pytest.param(lambda report: without(report, COUNTED), id="None"),
        pytest.param(lambda report: emptied(without(report, COUNTED)), id="None and empty lists"),
    ],
)
@pytest.mark.parametrize("curves", [True, False])
def test_an_evaluation_of_little_makes_sense(change: Change, curves: bool) -> None:
    report = made()
    if not curves:
        report["curves"] = {"roc": None, "baseline_roc": None, "reliability": [], "histogram": None}
    page = evaluation_report(change(report))
    assert headings(page) == EVALUATION
    check_form(page)
    check_words(page)


def test_without_anything_measured_every_section_says_so() -> None:
    report = emptied(without(made(), COUNTED))
    report["curves"] = {"roc": None, "baseline_roc": None, "reliability": [], "histogram": None}
    report["bundle"] |= {"targets": [], "default_target": None, "min_tokens_by_target": {}}
    page = evaluation_report(report)
    check_form(page)
    check_words(page)
    for said in (
        "No rate of a target was measured.",
        "There is none to compare with.",
        "The ROC curve: not measured, or of too few texts.",
        "What stated probabilities are worth: not measured",
        "The share of human texts called AI by slice: not measured",
        "The share of AI texts found by length: not measured",
        "The share of texts by stated probability: not measured",
        "The data names no slices.",
        "No attack was tried.",
        "Every text got a verdict at the default target.",
        "There are none.",
        "Not measured: take the marks as hints.",
    ):
        assert said in Seen(page).words, said


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda report: report | {"baseline": None}, id="no baseline"),
        pytest.param(emptied, id="empty lists"),
        pytest.param(without, id="None"),
        pytest.param(lambda report: report | {"bundles": report["bundles"][:1], "pairs": []}, id="one detector"),
        pytest.param(lambda report: report | {"pairs": []}, id="no pairs"),
    ],
)
def test_a_comparison_of_little_makes_sense(change: Change) -> None:
    page = comparison_report(change(compared()))
    assert headings(page) == COMPARISON
    check_form(page)
    check_words(page)


def test_a_published_detector_may_lack_most_figures() -> None:
    report = compared()
    report["bundles"].append({"name": "paper", "version": None, "published": True, "auroc": 0.5})
    page = comparison_report(report)
    check_form(page)
    rows = {row[0]: row[1:] for row in rows_of(page, "The same texts for all")}
    assert rows["AUROC2"][3] == "0.500"
    assert {row[3] for label, row in rows.items() if label not in ("AUROC2", "Version")} == {"–"}


@pytest.mark.parametrize(("humans", "ais"), [(200, 0), (0, 200)])
def test_texts_of_one_class_have_a_page_without_a_roc_curve(humans: int, ais: int) -> None:
    page = evaluation_report(made(humans, ais))
    check_form(page)
    check_words(page)
    assert any("these texts are all human or all AI" in each for each in warnings_of(page))
    drawn = figures_drawn(page)
    assert "roc" not in drawn
    assert ("fpr" in drawn, "tpr" in drawn) == (humans > 0, ais > 0)
    first = Seen(page).words.split("At the 1% target ")[1].split(";")[0]
    assert re.fullmatch(rf"it called \S+% \(95%: \S+ to \S+%\) of 200 {'human' if humans else 'AI'} texts AI", first)


def check_words(page: str) -> None:
    """Nothing is shown that only a program would say."""
    assert not re.search(r"\b(None|nan|inf|undefined)\b|[{}]", Seen(page).words)
