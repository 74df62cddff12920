"""The corpus page for a report made by hand."""

import subprocess
import sys

import pytest

from detect_ai.reports.corpus import corpus_report
from tests.unit.reports.test_evaluation import EVIL, page_of

FEATURE = {"name": "words", "auroc": 0.8, "low": 0.7, "high": 0.9, "normalised": 0.75, "held_out": 0.7}
SLICE = {"own_humans": True, "auroc": 0.9, "tpr_at_fpr_1": 0.5, "tpr_at_fpr_5": 0.7, "called_ai": 0.02}
LENGTHS = {"counts": [3, 5, 2], "mean": 90.0, "p5": 10.0, "p25": 40.0, "p50": 80.0, "p75": 120.0, "p95": 200.0}


def report(**corpus):
    return {
        "corpus": {
            "name": EVIL,
            "key": "corpora/made",
            "fingerprint": "f00d" * 16,
            "language": "en",
            "seed": 7,
            "normaliser_version": 1,
            "sources": [{"name": EVIL, "kind": "csv", "licence": "CC0"}],
            "rows_read": 277,
            "rows": {"train": 120, "test": 120},
            "dropped": {"duplicate": 30, "too_short": 7},
            "near_duplicates": {"clusters": 3},
            "contamination": {},
            **corpus,
        },
        "findings": [{"about": "length", "text": "length alone tells the classes apart"}],
        "counts": [
            {"split": split, "label": label, "source": EVIL, "domain": d, "generator": "", "attack": "none", "rows": 30}
            for split in ("train", "test")
            for label in (0, 1)
            for d in ("news", "letters")
        ],
        "lengths": {"edges": [1.0, 10.0, 100.0, 1000.0], "human": LENGTHS, "ai": LENGTHS},
        "quarantine": [{"reason": "duplicate", "source": EVIL, "rows": 30}],
        "audit": {
            "n_human": 120,
            "n_ai": 120,
            "features": [FEATURE],
            "openings": [{"word": EVIL, "human": 1, "ai": 9}],
            "baseline": {"column": "all", "value": "", "n_human": 60, "n_ai": 60, **SLICE},
            "slices": [{"column": "domain", "value": "news", "n_human": 30, "n_ai": 30, **SLICE}],
        },
    }


def test_corpus_page_shows_counts_and_warnings():
    page = page_of(corpus_report(report()))
    for words in ("length alone tells", "letters", "37 of 277 rows", "80 tokens (human)", f"{EVIL} 30"):
        assert words in page.text


@pytest.mark.parametrize("dropped", [{}, {"duplicate": 0}])
def test_a_corpus_without_drops_has_a_page(dropped):
    page = page_of(corpus_report({**report(dropped=dropped, near_duplicates={}), "quarantine": []}))
    assert "all 277 rows are in the corpus" in page.text


def test_plotting_leaves_no_global_state():
    code = (
        "import sys, matplotlib\n"
        "parameters = lambda: {n: matplotlib.rcParams[n] for n in matplotlib.rcParams if n != 'backend'}\n"
        "before = parameters()\n"
        "from detect_ai.reports import plots\n"
        "plots.bars({'words': 0.7}, 'AUROC')\n"
        "assert parameters() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
