"""The stage `evaluate` on a real cluster: the test split, a user's file, one class, and rejected input."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, CorpusError, RegistryError
from detect_ai.core.job import read_result, run_stage
from detect_ai.detector.detector import Detector
from detect_ai.evaluation.evaluate import evaluate, result_name
from detect_ai.metrics import auroc
from tests.fixtures import tiny_models
from tests.integration.conftest import Run
from tests.integration.runs import changed, files_under, unchanged, write_csv

RATES = ("fpr_at_target", "tpr_at_target", "cleared_ai_fraction", "abstained_human", "abstained_ai")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def on_test(run: Run, candidate: Config) -> dict[str, Any]:
    """The test split with baseline, attacks and mixed documents."""
    attacks = {"attacks": ["homoglyph", "article_deletion"], "attack_sample_size": 5}
    config = changed(candidate, evaluation={"baseline": True, "mixed_documents": 3, **attacks})
    return run_stage("evaluate", evaluate, config, run.storage)


@pytest.fixture(scope="module")
def mine(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A CSV with one id for all rows: thirty new pairs, three training texts, a row without text, one without label."""
    known = run.corpus.read("train", ["text", "label"]).to_pylist()[:3]
    rows: Rows = [{"text": row["text"], "label": row["label"]} for row in tiny_models.rows(30, seed=9)]
    rows += [{"text": f"{row['text']} The end.", "label": row["label"]} for row in known]
    rows = [{"id": "one", **row, "domain": ("a", "b")[i % 3 == 0]} for i, row in enumerate(rows)]
    extra = [{"id": "one", "text": "", "label": 1, "domain": ""}, {**rows[0], "label": ""}]
    return write_csv(tmp_path_factory.mktemp("mine") / "my texts.csv", [*rows, *extra]), rows


@pytest.fixture(scope="module")
def on_mine(run: Run, candidate: Config, mine: tuple[Path, Rows], version: str, on_test: Any) -> dict[str, Any]:
    config = candidate.model_copy(update={"data": str(mine[0]), "bundle": version[:8]})
    options = {"baseline": True, "include_texts": True, "attacks": ["zero_width_space"]}
    config = changed(config, evaluation=options)
    return run_stage(result_name(config), evaluate, config, run.storage)


def test_test_split_has_all_metrics(run: Run, candidate: Config, on_test: dict[str, Any]) -> None:
    labels = run.corpus.labels("test")
    assert (on_test["n_human"], on_test["n_ai"]) == ((labels == 0).sum(), (labels == 1).sum())
    assert on_test["auroc"] > 0.8
    assert all(0 <= on_test[name] <= 1 for name in RATES)
    assert on_test["fpr_at_target"] == on_test["fpr_at_target_5"]
    assert on_test["test_fingerprint"] == ",".join(shard.sha256 for shard in run.corpus.shards("test"))
    assert json.loads(json.dumps(on_test)) == read_result(run.storage, candidate.run, "evaluate")


def test_test_split_has_a_baseline_and_no_contamination(on_test: dict[str, Any]) -> None:
    assert on_test["contaminated"] == 0
    assert on_test["baseline"]["auroc"] > 0.9
    assert on_test["baseline"]["n_human"] == on_test["n_human"]
    assert not [name for name in on_test["baseline"] if name.endswith("_low")]


def test_attacks_are_compared_with_the_same_texts(on_test: dict[str, Any]) -> None:
    rows = on_test["attacks"]
    assert [row["attack"] for row in rows] == ["none", "homoglyph", "article_deletion"]
    assert {(row["n_human"], row["n_ai"]) for row in rows} == {(5, 5)}
    for row in rows[1:]:
        assert row["tpr_difference"] == pytest.approx(row["tpr_at_target_5"] - rows[0]["tpr_at_target_5"])
    assert rows[1]["auroc"] == rows[0]["auroc"], "the normaliser undoes look-alike letters"


def test_sentence_scores_find_inserted_sentences(on_test: dict[str, Any]) -> None:
    scores = on_test["sentence_scores"]
    assert 1 <= scores["n_documents"] <= 3
    assert scores["n_sentences"] >= 4 * scores["n_documents"]
    assert scores["sentence_auroc_windows"] > 0.6
    assert scores["sentence_auroc_occlusion"] > 0.6
    assert 0 <= scores["ai_fraction_error"] <= 1


def test_report_is_stored_without_generated_texts(run: Run, on_test: dict[str, Any]) -> None:
    folder = Path(run.storage.path(on_test["report"])).parent
    assert files_under(folder) == ["report.html", "report.json", "verdicts/00000-000-00000.parquet"]
    report = json.loads((folder / "report.json").read_text())
    assert report["overall"]["auroc"] == on_test["auroc"]
    assert "<html" in (folder / "report.html").read_text()


def test_test_split_of_another_corpus_is_refused(run: Run, candidate: Config, tiny_bundle: Path) -> None:
    with unchanged(run.storage), pytest.raises(ConfigError, match=run.corpus.manifest.fingerprint[:12]):
        evaluate(candidate.model_copy(update={"bundle": str(tiny_bundle)}), run.storage)


def test_metrics_of_a_file_are_those_of_its_labelled_texts(
    run: Run, on_mine: dict[str, Any], mine: tuple[Path, Rows], detector: Detector
) -> None:
    labels = [row["label"] for row in mine[1]]
    scores = detector.score([document.input_ids for document in detector.read([row["text"] for row in mine[1]])])
    assert (on_mine["n_human"], on_mine["n_ai"]) == (labels.count(0), labels.count(1))
    assert on_mine["auroc"] == pytest.approx(auroc(labels, scores))
    assert on_mine["auroc_low"] is not None or on_mine["auroc"] == 1
    report = run.storage.read_json(on_mine["report_json"])
    assert report["data"]["skipped"] == {"no_text": 1, "no_label": 1}
    assert on_mine["contaminated"] == 3


def test_slices_have_their_main_metrics(run: Run, on_mine: dict[str, Any], mine: tuple[Path, Rows]) -> None:
    slices = {row["value"]: row for row in on_mine["slices"]}
    assert {row["column"] for row in on_mine["slices"]} == {"domain"}
    for value in ("a", "b"):
        labels = [row["label"] for row in mine[1] if row["domain"] == value]
        assert (slices[value]["n_human"], slices[value]["n_ai"]) == (labels.count(0), labels.count(1))
        assert {"auroc", "fpr_at_target_5", "fpr_at_target_5_high", "cleared_ai_fraction"} <= set(slices[value])
    assert "ece" in run.storage.read_json(on_mine["report_json"])["slices"][0]


def test_texts_with_one_id_stay_apart(on_mine: dict[str, Any]) -> None:
    clean, attacked = on_mine["attacks"]
    assert (attacked["n_human"], attacked["n_ai"]) == (on_mine["n_human"], on_mine["n_ai"])
    assert attacked["auroc"] == clean["auroc"] == on_mine["auroc"]


def test_other_data_has_a_result_of_its_own(
    run: Run, candidate: Config, on_test: dict[str, Any], on_mine: dict[str, Any]
) -> None:
    assert read_result(run.storage, candidate.run, "evaluate-my-texts") == on_mine
    assert read_result(run.storage, candidate.run, "evaluate")["auroc"] == on_test["auroc"]
    assert on_mine["test_fingerprint"] != on_test["test_fingerprint"]


def test_human_texts_alone_have_rates_and_false_positives(
    run: Run, candidate: Config, version: str, tmp_path: Path
) -> None:
    texts = [tiny_models.text("ai", random.Random(i)) for i in range(6)]  # labelled human: false positives
    data = write_csv(tmp_path / "people.csv", [{"id": f"p{i}", "text": t, "label": 0} for i, t in enumerate(texts)])
    config = candidate.model_copy(update={"data": str(data), "bundle": version})
    result = evaluate(changed(config, evaluation={"include_texts": True}), run.storage)
    assert (result["n_human"], result["n_ai"]) == (6, 0)
    missing = {name for name in (*RATES, "auroc", "ece") if result[name] is None}
    assert missing == {"tpr_at_target", "cleared_ai_fraction", "abstained_ai", "auroc", "ece"}
    assert result["fpr_at_target"] > 0.5
    worst = run.storage.read_json(result["report_json"])["top_false_positives"]
    assert len(worst) >= 2
    assert worst[0]["probability"] >= worst[1]["probability"] >= 0.5
    for row in worst:
        assert " ".join(sentence["text"] for sentence in row["sentences"]) == texts[int(row["id"][1:])]


@pytest.mark.parametrize(
    ("content", "bundle", "error", "words"),
    [
        ("text\nOne text without a label.\n", "", CorpusError, "no text has a label"),
        ("text,label\nOne.,0\nTwo.,perhaps\n", "", CorpusError, "'perhaps'"),
        ("content,label\nOne.,0\n", "", CorpusError, "no column 'text'"),
        ("text,label\n", "", CorpusError, "no text has a label"),
        ("text,label\nOne.,0\n", "nope", RegistryError, "bundle=nope"),
    ],
)
def test_invalid_input_is_refused_without_a_trace(
    run: Run, candidate: Config, version: str, tmp_path: Path, content: str, bundle: str, error: type, words: str
) -> None:
    (tmp_path / "x.csv").write_text(content)
    config = candidate.model_copy(update={"data": str(tmp_path / "x.csv"), "bundle": bundle or version})
    with unchanged(run.storage), pytest.raises(error) as refused:
        evaluate(config, run.storage)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
