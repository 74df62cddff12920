"""Any bundle on any texts, on a real cluster: the test split, files of a user, one class, and verdicts as files."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import CompareConfig, Config, EvaluationConfig
from detect_ai.core.errors import BundleError, ConfigError, CorpusError, InputError, RegistryError
from detect_ai.core.job import read_result, result_key, run_stage
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.detector.score import VERDICT_SCHEMA, score
from detect_ai.evaluation.compare import compare
from detect_ai.evaluation.evaluate import evaluate, result_name
from detect_ai.metrics import auroc
from detect_ai.release.calibrate import calibrate_checkpoint
from tests.fixtures import tiny_models
from tests.integration.conftest import Run
from tests.integration.runs import files_under

REQUIRED = (
    *("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5", "fpr_at_target_1", "fpr_at_target_5", "tpr_at_target_1"),
    *("tpr_at_target_5", "ece", "n_human", "n_ai", "fpr_at_target", "tpr_at_target", "cleared_ai_fraction"),
    *("abstained_fraction", "abstained_human", "abstained_ai", "test_fingerprint"),
)
LOOKED_AT = EvaluationConfig(attacks=["homoglyph", "article_deletion"], attack_texts=5, mixed_documents=3)
PLAIN = EvaluationConfig(baseline=False, contamination=False, worst=0)
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def judged(run: Run) -> Config:
    """A run name of its own with a calibrated candidate."""
    config = run.config.model_copy(update={"run": "judged", "evaluation": PLAIN})
    for stage in ("prepare", "train"):
        record = run.storage.read_json(result_key(run.config.run, stage))
        run.storage.write_json(result_key(config.run, stage), record)
    run_stage("calibrate", calibrate_checkpoint, config, run.storage)
    return config


@pytest.fixture(scope="module")
def version(run: Run, judged: Config) -> Iterator[str]:
    """The candidate as a version of the registry, as long as these tests run."""
    with run.storage.local_folder(read_result(run.storage, "judged", "calibrate")["bundle"]) as folder:
        added = Registry(run.storage).add(folder)
    yield added
    run.storage.delete(f"registry/versions/{added}")


@pytest.fixture(scope="module")
def detector(run: Run, version: str) -> Detector:
    with Registry(run.storage).folder(version) as folder:
        return Detector.load(folder)


@pytest.fixture(scope="module")
def on_test(run: Run, judged: Config) -> dict[str, Any]:
    """The test split with all further looks."""
    return run_stage("evaluate", evaluate, judged.model_copy(update={"evaluation": LOOKED_AT}), run.storage)


@contextmanager
def unchanged(storage: Storage) -> Iterator[None]:
    """Nothing is left behind under the storage root."""
    before = sorted(Path(storage.root).rglob("*"))
    yield
    assert sorted(Path(storage.root).rglob("*")) == before


def write_csv(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def of_data(judged: Config, data: Path | str, bundle: str, **evaluation: Any) -> Config:
    return judged.model_copy(
        update={"data": str(data), "bundle": bundle, "evaluation": PLAIN.model_copy(update=evaluation)}
    )


# The test split


def test_the_figures_of_the_test_split_are_those_that_are_asked_for(run: Run, on_test: dict[str, Any]) -> None:
    assert set(REQUIRED) <= set(on_test)
    labels = run.corpus.labels("test")
    assert (on_test["n_human"], on_test["n_ai"]) == ((labels == 0).sum(), (labels == 1).sum())
    assert on_test["auroc"] > 0.8
    assert on_test["fpr_at_target_1"] is on_test["tpr_at_target_1"] is None, "the bundle has no such target"
    assert 0 <= on_test["fpr_at_target_5"] <= on_test["tpr_at_target_5"] <= 1
    assert on_test["auroc_low"] <= on_test["auroc"] <= on_test["auroc_high"]
    assert json.loads(json.dumps(on_test)) == read_result(run.storage, "judged", "evaluate")


def test_the_test_split_is_not_contaminated_and_its_baseline_learnt_the_same(on_test: dict[str, Any]) -> None:
    assert on_test["contaminated"] == 0
    assert on_test["baseline"]["auroc"] > 0.9
    assert on_test["baseline"]["n_human"] == on_test["n_human"]
    assert not [name for name in on_test["baseline"] if name.endswith("_low")]


def test_the_same_texts_are_judged_clean_and_under_each_attack(on_test: dict[str, Any]) -> None:
    rows = on_test["attacks"]
    assert [row["attack"] for row in rows] == ["none", "homoglyph", "article_deletion"]
    assert {(row["n_human"], row["n_ai"]) for row in rows} == {(5, 5)}
    for row in rows[1:]:
        assert row["tpr_difference"] == pytest.approx(row["tpr_at_target_5"] - rows[0]["tpr_at_target_5"])
    # The normaliser undoes look-alikes: nothing but a detector that reads another text can change.
    assert rows[1]["auroc"] == rows[0]["auroc"]


def test_sentences_of_mixed_documents_are_judged_by_both_scores(on_test: dict[str, Any]) -> None:
    found = on_test["sentence_scores"]
    assert 1 <= found["n_documents"] <= 3
    assert found["n_sentences"] >= 4 * found["n_documents"]
    assert found["sentence_auroc_windows"] > 0.6
    assert found["sentence_auroc_occlusion"] > 0.6
    assert 0 <= found["ai_fraction_error"] <= 1


def test_the_report_lies_beside_the_figures_and_no_text_that_was_made(run: Run, on_test: dict[str, Any]) -> None:
    folder = Path(run.storage.path(on_test["report"])).parent
    assert files_under(folder) == [
        *("predictions.json", "report.html", "report.json", "results.json", "verdicts/00000-000-00000.parquet")
    ]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["verdicts"]
    report = json.loads((folder / "report.json").read_text())
    assert report["overall"]["auroc"] == on_test["auroc"]
    assert report["data"]["contamination_checked"]
    assert not report["data"]["other_corpus"]
    ids = run.corpus.read("test", ["id"])["id"].to_pylist()
    assert sorted(row["id"] for row in json.loads((folder / "predictions.json").read_text())) == sorted(ids)
    assert json.loads((folder / "results.json").read_text())["scores"]
    assert "<html" in (folder / "report.html").read_text()


def test_a_bundle_of_another_corpus_is_refused_on_the_test_split(run: Run, judged: Config, tiny_bundle: Path) -> None:
    with unchanged(run.storage), pytest.raises(ConfigError) as refused:
        evaluate(judged.model_copy(update={"bundle": str(tiny_bundle)}), run.storage)
    assert str(refused.value).endswith("they are searched for near duplicates of the training data")


# Texts of a user


@pytest.fixture(scope="module")
def mine(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """A CSV with one id for all rows: thirty new pairs, three texts of the training split, and what is no text."""
    known = run.corpus.read("train", ["text", "label"]).to_pylist()[:3]
    rows: Rows = [
        {"text": row["text"], "label": ("human", "ai")[int(str(row["label"]))]} for row in tiny_models.rows(30, seed=9)
    ]
    rows += [{"text": f"{row['text']} The end.", "label": ("human", "ai")[row["label"]]} for row in known]
    rows = [{"id": "one", **row, "domain": ("a", "b")[i % 3 == 0]} for i, row in enumerate(rows)]
    extra = [{"id": "one", "text": "", "label": "ai", "domain": ""}, {**rows[0], "label": ""}]
    return write_csv(tmp_path_factory.mktemp("mine") / "my texts.csv", [*rows, *extra]), rows


@pytest.fixture(scope="module")
def on_mine(run: Run, judged: Config, mine: tuple[Path, Rows], version: str, on_test: Any) -> dict[str, Any]:
    looks: dict[str, Any] = {"baseline": True, "contamination": True, "attacks": ["zero_width_space"]}
    config = of_data(judged, mine[0], version[:8], **looks)
    return run_stage(result_name(config), evaluate, config, run.storage)


def test_the_figures_of_a_file_are_those_of_its_labelled_texts(
    run: Run, on_mine: dict[str, Any], mine: tuple[Path, Rows], detector: Detector
) -> None:
    labels = [int(row["label"] == "ai") for row in mine[1]]
    scores = detector.score([document.input_ids for document in detector.read([row["text"] for row in mine[1]])])
    assert (on_mine["n_human"], on_mine["n_ai"]) == (labels.count(0), labels.count(1))
    assert on_mine["auroc"] == pytest.approx(auroc(labels, scores))
    report = run.storage.read_json(on_mine["report_json"])
    assert report["data"]["skipped"] == {"no_text": 1, "no_label": 1}
    assert report["data"]["other_corpus"]


def test_texts_that_the_bundle_learnt_from_are_counted(on_mine: dict[str, Any]) -> None:
    assert on_mine["contaminated"] == 3


def test_bundles_that_are_compared_are_asked_what_they_have_learnt_from(
    run: Run, judged: Config, mine: tuple[Path, Rows], version: str, tiny_bundle: Path, on_mine: dict[str, Any]
) -> None:
    config = of_data(judged, mine[0], "", baseline=True, contamination=True)
    config = config.model_copy(update={"compare": CompareConfig(bundles=[version, str(tiny_bundle)])})
    found = compare(config, run.storage)
    assert [bundle["contaminated"] for bundle in found["bundles"]] == [3, None]
    assert found["contaminated"] == 3
    assert found["baseline"]["auroc"] == on_mine["baseline"]["auroc"]
    report = run.storage.read_json(found["report_json"])
    assert report["data"]["contamination_checked"] is False, "the corpus of the tiny bundle is not there"
    page = run.storage.read_bytes(found["report"]).decode()
    assert "3 of these texts have a near duplicate" in page
    assert "baseline" in page


def test_the_main_figures_of_each_slice_are_told(run: Run, on_mine: dict[str, Any], mine: tuple[Path, Rows]) -> None:
    slices = {row["value"]: row for row in on_mine["slices"]}
    assert {row["column"] for row in on_mine["slices"]} == {"domain"}
    for value in ("a", "b"):
        labels = [row["label"] for row in mine[1] if row["domain"] == value]
        assert (slices[value]["n_human"], slices[value]["n_ai"]) == (labels.count("human"), labels.count("ai"))
        assert {"auroc", "fpr_at_target_5", "fpr_at_target_5_high", "cleared_ai_fraction"} <= set(slices[value])
    assert None not in slices["a"].values()
    assert "ece" in run.storage.read_json(on_mine["report_json"])["slices"][0]


def test_texts_of_one_id_are_kept_apart(on_mine: dict[str, Any]) -> None:
    clean, attacked = on_mine["attacks"]
    assert (attacked["n_human"], attacked["n_ai"]) == (on_mine["n_human"], on_mine["n_ai"])
    assert attacked["auroc"] == clean["auroc"] == on_mine["auroc"]
    assert on_mine["baseline"]["auroc"] > 0.9


def test_figures_of_other_texts_stand_beside_those_of_the_test_split(
    run: Run, on_test: dict[str, Any], on_mine: dict[str, Any], version: str
) -> None:
    assert read_result(run.storage, "judged", "evaluate-my-texts") == on_mine
    assert read_result(run.storage, "judged", "evaluate")["auroc"] == on_test["auroc"]
    assert on_mine["bundle"] == f"registry/versions/{version}"
    assert on_mine["test_fingerprint"] != on_test["test_fingerprint"]
    assert run.storage.exists(on_test["report"])


def test_human_texts_alone_have_rates_and_the_worst_of_them_are_shown_by_sentence(
    run: Run, judged: Config, version: str, tmp_path: Path
) -> None:
    # Machine texts that pass for human ones: there is someone to accuse.
    texts = [tiny_models.text("ai", random.Random(i)) for i in range(6)]
    data = write_csv(tmp_path / "people.csv", [{"id": f"p{i}", "text": t, "label": 0} for i, t in enumerate(texts)])
    result = evaluate(of_data(judged, data, version, worst=2), run.storage)
    assert (result["n_human"], result["n_ai"]) == (6, 0)
    assert {name for name in REQUIRED if result[name] is None} == {
        *("auroc", "tpr_at_fpr_1", "tpr_at_fpr_5", "fpr_at_target_1", "tpr_at_target_1", "tpr_at_target_5", "ece"),
        *("tpr_at_target", "cleared_ai_fraction", "abstained_ai"),
    }
    assert result["fpr_at_target_5"] > 0.5
    report = run.storage.read_json(result["report_json"])
    assert report["data"]["one_class"]
    worst = report["worst"]
    assert len(worst) == 2
    assert worst[0]["probability"] >= worst[1]["probability"] >= 0.5
    for each in worst:
        text = texts[int(each["id"][1:])]
        assert " ".join(sentence["text"] for sentence in each["sentences"]) == text


@pytest.mark.slow
def test_only_the_last_evaluations_of_the_same_texts_are_kept(
    run: Run, judged: Config, version: str, tmp_path: Path, on_test: dict[str, Any], on_mine: dict[str, Any]
) -> None:
    data = write_csv(tmp_path / "test.csv", [{"text": tiny_models.text("ai", random.Random(0)), "label": 1}])
    config = of_data(judged, data, version)
    config.storage = config.storage.model_copy(update={"keep": 1})
    results = [evaluate(config, run.storage) for _ in range(2)]
    assert [run.storage.exists(result["report"]) for result in (*results, on_test, on_mine)] == [
        False,
        True,
        True,
        True,
    ]


BAD: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "no label": (
        "text\nOne text without a label.\n",
        {},
        CorpusError,
        "no text has a label; expected a column 'label'",
    ),
    "a strange label": (
        "text,label\nOne.,0\nTwo.,perhaps\n",
        {},
        CorpusError,
        "column 'label' holds 'perhaps'; expected",
    ),
    "no text": ("content,label\nOne.,0\n", {}, CorpusError, "no column 'text'; found 'content', 'label'"),
    "no row": ("text,label\n", {}, CorpusError, "no text has a label"),
    "an unknown bundle": ("text,label\nOne.,0\n", {"bundle": "nope"}, RegistryError, "bundle=nope: expected a version"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_judged_is_refused_in_one_line_and_leaves_nothing(
    run: Run, judged: Config, version: str, tmp_path: Path, what: str
) -> None:
    content, changes, kind, said = BAD[what]
    (tmp_path / "x.csv").write_text(content)
    config = of_data(judged, tmp_path / "x.csv", version).model_copy(update=changes)
    with unchanged(run.storage), pytest.raises(kind) as refused:
        evaluate(config, run.storage)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


# Verdicts as files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Three files of a corpus without labels, each text by its id."""
    path = tmp_path_factory.mktemp("corpus")
    texts: dict[str, str] = {}
    for number, count in enumerate((300, 1, 30)):
        own = {f"{number}-{i}": tiny_models.text("human", random.Random(i), 12) for i in range(count)}
        tiny_models.write_jsonl(path / f"{number}.jsonl", [{"id": name, "text": text} for name, text in own.items()])
        texts |= own
    return path, texts


def read_verdicts(folder: Path) -> Rows:
    rows: Rows = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            rows += map(json.loads, path.read_text().splitlines())
        else:
            with path.open(newline="") as file:
                rows += csv.DictReader(file)
    return rows


@pytest.mark.parametrize(
    "form",
    ["parquet", pytest.param("jsonl", marks=pytest.mark.slow), pytest.param("csv", marks=pytest.mark.slow)],
)
def test_every_text_of_a_folder_gets_its_verdict_once_in_any_form(
    run: Run,
    judged: Config,
    version: str,
    detector: Detector,
    folder: tuple[Path, dict[str, str]],
    tmp_path: Path,
    form: str,
) -> None:
    path, texts = folder
    options: dict[str, Any] = {"keep_text": True, "spans": "windows"} if form == "jsonl" else {}
    scoring = judged.score.model_copy(update={"workers": 2, "format": form, "out": str(tmp_path / "out"), **options})
    result = score(judged.model_copy(update={"data": str(path), "bundle": version, "score": scoring}), run.storage)
    assert (result["texts"], result["skipped"], result["out"]) == (len(texts), 0, str(tmp_path / "out"))
    assert result["texts_per_second"] > 0
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {f".{form}"}
    rows = read_verdicts(tmp_path / "out")
    assert sorted(row["id"] for row in rows) == sorted(texts)
    found = {row["id"]: row for row in rows}
    some = sorted(texts)[::40]
    for name, verdict in zip(some, detector.detect([texts[name] for name in some]), strict=True):
        row = found[name]
        assert row["verdict"] == verdict.label
        assert float(row["probability"]) == pytest.approx(verdict.probability, abs=1e-5)
        assert float(row["threshold"]) == pytest.approx(verdict.threshold)
        assert int(row["num_tokens"]) == verdict.num_tokens
        assert row["model_version"] == version
    by_target = found[some[0]]["verdicts"]
    by_target = by_target if isinstance(by_target, dict) else json.loads(by_target)
    assert set(by_target) == {"0.05", "0.1"}
    if form == "jsonl":
        spans = found[some[0]]["spans"]
        text = found[some[0]]["text"]
        assert text == texts[some[0]]
        assert " ".join(text[span["start"] : span["end"]] for span in spans) == text
    else:
        assert list(rows[0]) == VERDICT_SCHEMA.names
        assert not any(row["text"] for row in rows)


@pytest.mark.slow
def test_verdicts_are_written_under_the_run_where_no_folder_is_named(
    run: Run, judged: Config, version: str, tmp_path: Path
) -> None:
    data = write_csv(tmp_path / "x.csv", [{"text": tiny_models.text("ai", random.Random(0))}])
    scoring = judged.score.model_copy(update={"target_fpr": 0.1})
    result = score(judged.model_copy(update={"data": str(data), "bundle": version, "score": scoring}), run.storage)
    assert Path(result["out"]).parent == Path(run.storage.path("runs/judged"))
    (row,) = read_verdicts(Path(result["out"]))
    assert row["target_fpr"] == 0.1


@pytest.mark.slow
def test_texts_and_verdicts_may_lie_in_a_bucket(
    run: Run, judged: Config, version: str, gcs_root: str, tmp_path: Path
) -> None:
    bucket = Storage(gcs_root)
    rows = [{"id": str(i), **row} for i, row in enumerate(tiny_models.rows(5, seed=3))]
    bucket.write_bytes("in/x.csv", write_csv(tmp_path / "x.csv", rows).read_bytes())
    with Registry(run.storage).folder(version) as bundle:
        bucket.upload(bundle, "bundles/mine")
    config = judged.model_copy(update={"data": bucket.uri("in/x.csv"), "bundle": bucket.uri("bundles/mine")})
    scoring = judged.score.model_copy(update={"out": bucket.uri("out/mine")})
    assert score(config.model_copy(update={"score": scoring}), run.storage)["out"] == bucket.uri("out/mine")
    assert bucket.list("out/mine") == ["00000-000-00000.parquet"]
    table = pq.read_table(bucket.path("out/mine/00000-000-00000.parquet"), filesystem=bucket.filesystem)
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    result = evaluate(config, run.storage)
    assert (result["n_human"], result["n_ai"], result["bundle"]) == (5, 5, bucket.uri("bundles/mine"))


def test_a_folder_that_holds_something_is_not_written_into(
    run: Run, judged: Config, version: str, tmp_path: Path
) -> None:
    data = write_csv(tmp_path / "x.csv", [{"text": "One."}])
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep me")
    config = judged.model_copy(update={"data": str(data), "bundle": version})
    for place, said in ((out, "it holds files already: name another folder, or delete it"), (data, "found a file")):
        with pytest.raises(ConfigError) as refused:
            score(config.model_copy(update={"score": config.score.model_copy(update={"out": str(place)})}), run.storage)
        assert said in str(refused.value)
    assert (out / "mine").read_text() == "keep me"


def test_a_failure_half_way_leaves_no_verdicts(run: Run, judged: Config, version: str, tmp_path: Path) -> None:
    rows = [{"text": tiny_models.text("ai", random.Random(0), 12), "label": "ai"} for _ in range(300)]
    data = write_csv(
        tmp_path / "in/x.csv", [*rows, {"text": "A secret text.", "label": "no label at all, but a sentence"}]
    )
    config = judged.model_copy(update={"data": str(data), "bundle": version})
    scoring = judged.score.model_copy(update={"out": str(tmp_path / "out"), "workers": 2})
    with (
        unchanged(run.storage),
        pytest.raises(CorpusError, match="holds a value of 31 characters; expected") as refused,
    ):
        score(config.model_copy(update={"score": scoring}), run.storage)
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_a_bundle_cannot_do_is_refused_before_any_work(
    run: Run, judged: Config, version: str, tmp_path: Path, tiny_bundle: Path
) -> None:
    data = write_csv(tmp_path / "x.csv", [{"text": "One."}])
    config = judged.model_copy(update={"data": str(data), "bundle": version})
    with unchanged(run.storage):
        with pytest.raises(ConfigError, match=r"score\.target_fpr=0\.2: this bundle has thresholds for 0\.05, 0\.1"):
            score(config.model_copy(update={"score": config.score.model_copy(update={"target_fpr": 0.2})}), run.storage)
        with pytest.raises(ConfigError, match=r"data=: expected a file or folder of Parquet, CSV or JSON lines"):
            score(config.model_copy(update={"data": ""}), run.storage)
        damaged = tmp_path / "damaged"
        damaged.mkdir()
        for path in tiny_bundle.iterdir():
            (damaged / path.name).write_bytes(path.read_bytes() + (b" " if path.name == "config.json" else b""))
        with pytest.raises(BundleError, match=r"config\.json has sha256 \w+, expected"):
            score(config.model_copy(update={"bundle": str(damaged)}), run.storage)
        with pytest.raises(InputError, match="no column 'text'; found 'content'"):
            score(
                config.model_copy(update={"data": str(write_csv(tmp_path / "y.csv", [{"content": "One."}]))}),
                run.storage,
            )
