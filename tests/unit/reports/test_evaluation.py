"""The evaluation and comparison pages, with metrics of random scores."""

import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from detect_ai import metrics
from detect_ai.evaluation.intervals import paired_differences
from detect_ai.evaluation.summary import compute_metrics
from detect_ai.reports.evaluation import comparison_report, evaluation_report

EVIL = "$x$ <script>alert(1)</script> & \"so\" 'on'"
RNG = np.random.default_rng(3)
LABELS = np.repeat([0, 1], [300, 200])
SCORES = RNG.normal(2.5 * LABELS, 1)
GROUPS = RNG.integers(0, 12, 500).astype(str)


RATES = dict.fromkeys(("tpr", "cleared", "abstained_human", "abstained_ai"), 0.25)
NEW_DOMAINS = {
    **{"target_fpr": 0.05, "mean_fpr": 0.043, "worst_fpr": 0.31, "above_target": 0.5, "above_twice": 0.25},
    **{f"macro_{name}": rate for name, rate in RATES.items()},
    "spread_ratio": 1.234,
    "domains": [{"domain": EVIL, "n_human": 777, "n_ai": 0, "fpr": 0.31, **RATES, "tpr": None}],
}


def metrics_of(mask=slice(None), scores=SCORES):
    s = scores[mask]
    predictions = {
        target: np.where(s >= upper, 1, np.where(s < upper - 1, 0, -1)) for target, upper in ((0.01, 2.5), (0.05, 1.8))
    }
    return compute_metrics(LABELS[mask], s, 1 / (1 + np.exp(1 - s)), predictions, 0.05, GROUPS[mask])


def data(**changes):
    plain = {"name": "test", "rows": 500, "skipped": {"no_text": 2}, "contaminated": 0, "other_corpus": False}
    return {**plain, "fingerprint": "f00d" * 8, **changes}


def report(mask=slice(None), **changes):
    human, p = LABELS[mask] == 0, 1 / (1 + np.exp(1 - SCORES[mask]))
    both = 0 < human.sum() < human.size
    edges = np.linspace(0, 1, 41)
    counts = {name: np.histogram(p[chosen], edges)[0].tolist() for name, chosen in (("human", human), ("ai", ~human))}
    attack = metrics_of(mask) | {
        f"{name}_difference{end}": value
        for name in ("auroc", "fpr", "tpr")
        for end, value in (("", 0.02), ("_low", 0.01), ("_high", 0.03))
    }
    return {
        "created": "2026-11-28T12:00:00+00:00",
        "seconds": 12.0,
        "bundle": {
            "version": "abc123",
            "base_model": "tiny",
            "corpus": {"name": "made", "fingerprint": "c0de" * 8},
            "targets": [0.01, 0.05],
            "default_target": 0.05,
            "prevalence": 0.5,
            "min_tokens_by_target": {"0.01": 64, "0.05": 32},
        },
        "data": data(),
        "overall": metrics_of(mask),
        "baseline": metrics_of(mask, SCORES + RNG.normal(0, 2, 500)),
        "slices": [{"column": "domain", "value": value, **metrics_of(mask)} for value in ("news", EVIL)],
        "lengths": [{"low": low, "high": high, **metrics_of(mask)} for low, high in ((0, 64), (64, None))],
        "attacks": [{"attack": "none", **metrics_of(mask)}, {"attack": "zero_width_space", **attack}],
        "cleaned": {"changed": {"human": 6543, "ai": 21}, "overall": metrics_of(mask, SCORES + 1)},
        "new_domains": NEW_DOMAINS if both else None,
        "curves": {
            "roc": metrics.roc(LABELS[mask], SCORES[mask]) if both else None,
            "baseline_roc": None,
            "reliability": metrics.reliability(LABELS[mask], p, 0.5) if both else [],
            "histogram": {"edges": edges.tolist(), **counts},
        },
        "abstentions": {"too_short": 3},
        "top_false_positives": [
            {
                "id": EVIL,
                "domain": EVIL,
                "source": "s",
                "probability": 0.97,
                "p_value": 0.01,
                "num_tokens": 90,
                "sentences": [{"text": EVIL, "probability": 0.9}],
            }
        ],
        "sentence_scores": {
            "n_documents": 3,
            "n_sentences": 40,
            "sentence_auroc_windows": 0.9,
            "sentence_auroc_occlusion": 0.8,
            "ai_fraction_error": 0.1,
            "predictions": {"human": 0.2, "ai": 0.5, "uncertain": 0.3},
        },
        "notes": [],
        **changes,
    }


class Page(HTMLParser):
    """Text and elements of a page; checks that elements are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.text += text


def page_of(html):
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}, "names of the data are text"
    assert EVIL in page.text
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["src"].startswith("data:image/svg+xml;base64,"), "nothing is loaded from elsewhere"
    return page


def test_evaluation_page_shows_the_main_rates():
    evaluation = report()
    page = page_of(evaluation_report(evaluation))
    for name in ("fpr_at_target", "tpr_at_target", "cleared_ai_fraction", "abstained_human", "ppv_at_5"):
        value = evaluation["overall"][name]
        assert f"{100 * value:.{1 if value < 0.1 else 0}f}%" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 4
    assert f"Over {evaluation['overall']['fpr_by_group']['groups']} groups" in page.text
    for words in ("Domains that calibration has not seen", "777", "mean 4.3%, highest 31%", "1.234 times"):
        assert words in page.text
    assert "6,543 of the human and 21 of the AI texts" in page.text
    assert f"{100 * evaluation['cleaned']['overall']['fpr_at_target']:.0f}%" in page.text


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_a_page(label):
    evaluation = report(label == LABELS, baseline=None, attacks=[], sentence_scores=None, abstentions={}, notes=["So."])
    page = page_of(evaluation_report(evaluation))
    assert "one class" in page.text
    assert "So." in page.text


def test_contamination_is_a_warning():
    page = page_of(evaluation_report(report(data=data(contaminated=7))))
    assert "7 of these texts have a near duplicate" in page.text


def test_comparison_page_shows_bundles_and_differences():
    scores = SCORES, SCORES + RNG.normal(0, 1, 500)
    comparison = {
        "data": data(other_corpus=True),
        "target": 0.05,
        "bundles": [
            {"name": name, "version": f"v-{i}", "contaminated": count, **metrics_of(scores=scores[i])}
            for i, (name, count) in enumerate((("first", None), (EVIL, 3)))
        ],
        "pairs": [
            {
                "a": "first",
                "b": EVIL,
                **paired_differences(LABELS, scores, [s > 1.8 for s in scores], GROUPS.astype(int)),
            }
        ],
        "slices": [{"column": "domain", "value": "news", "metrics": {"first": metrics_of(), EVIL: metrics_of()}}],
    }
    page = page_of(comparison_report(comparison))
    assert "v-1" in page.text
    assert f"{comparison['pairs'][0]['auroc_difference']:+.3f}" in page.text
    assert "the training data of first" in page.text
    assert f"3 of these texts have a near duplicate in the training data of {EVIL}" in page.text


def test_plotting_leaves_no_global_state():
    code = (
        "import sys, matplotlib\n"
        "parameters = lambda: {n: matplotlib.rcParams[n] for n in matplotlib.rcParams if n != 'backend'}\n"
        "before = parameters()\n"
        "from detect_ai.reports import plots\n"
        "plots.reliability([{'count': 1, 'mean_probability': 0.5, 'fraction_ai': 0.5}])\n"
        "assert parameters() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
