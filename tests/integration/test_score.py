"""The stage `score` on a real Ray cluster."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import Config
from detect_ai.core.errors import BundleError, ConfigError, CorpusError
from detect_ai.core.storage import Storage
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.detector.score import score
from detect_ai.detector.verdict_table import VERDICT_SCHEMA
from detect_ai.evaluation.evaluate import evaluate
from tests.fixtures import tiny_models
from tests.integration.conftest import Run
from tests.integration.runs import changed, unchanged, write_csv

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of three files without labels, and its texts by id."""
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
        else:
            rows += map(json.loads, path.read_text().splitlines())
    return rows


@pytest.mark.parametrize("form", ["parquet", pytest.param("jsonl", marks=pytest.mark.slow)])
def test_every_text_gets_one_verdict(
    run: Run,
    candidate: Config,
    version: str,
    detector: Detector,
    folder: tuple[Path, dict[str, str]],
    tmp_path: Path,
    form: str,
) -> None:
    path, texts = folder
    options = {"workers": 2, "format": form, "out": str(tmp_path / "out")}
    options |= {"spans": "windows"} if form == "jsonl" else {"report": True}
    config = candidate.model_copy(update={"data": str(path), "bundle": version})
    result = score(changed(config, score=options), run.storage)
    assert (result["texts"], result["skipped"], result["out"]) == (len(texts), 0, str(tmp_path / "out"))
    assert result["texts_per_second"] > 0
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {f".{form}"}
    rows = read_verdicts(tmp_path / "out")
    assert sorted(row["id"] for row in rows) == sorted(texts)
    by_id = {row["id"]: row for row in rows}
    some = sorted(texts)[::40]
    for name, verdict in zip(some, detector.detect([texts[name] for name in some]), strict=True):
        row = by_id[name]
        assert row["verdict"] == verdict.label
        assert float(row["probability"]) == pytest.approx(verdict.probability, abs=1e-5)
        assert float(row["threshold"]) == pytest.approx(verdict.threshold)
        assert int(row["num_tokens"]) == verdict.num_tokens
        assert row["model_version"] == version
    by_target = by_id[some[0]]["verdicts"]
    by_target = by_target if isinstance(by_target, dict) else json.loads(by_target)
    assert set(by_target) == {"0.05", "0.1"}
    if form == "jsonl":
        spans, text = by_id[some[0]]["spans"], texts[some[0]]
        assert " ".join(text[span["start"] : span["end"]] for span in spans) == text
    else:
        assert list(rows[0]) == VERDICT_SCHEMA.names
        report = run.storage.read_json(result["report"].replace(".html", ".json"))
        assert (report["texts"], report["flagged"]) == (len(texts), result["flagged"])
        assert run.storage.exists(result["report"])


@pytest.mark.slow
def test_verdicts_go_to_the_run_by_default(run: Run, candidate: Config, version: str, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "x.csv", [{"text": tiny_models.text("ai", random.Random(0))}])
    config = candidate.model_copy(update={"data": str(data), "bundle": version})
    result = score(config, run.storage)
    assert Path(result["out"]).parent == Path(run.storage.path("runs/candidate"))
    assert len(read_verdicts(Path(result["out"]))) == 1


@pytest.mark.slow
def test_texts_and_verdicts_in_a_bucket(
    run: Run, candidate: Config, version: str, gcs_root: str, tmp_path: Path
) -> None:
    bucket = Storage(gcs_root)
    rows = [{"id": str(i), **row} for i, row in enumerate(tiny_models.rows(5, seed=3))]
    bucket.write_bytes("in/x.csv", write_csv(tmp_path / "x.csv", rows).read_bytes())
    with Registry(run.storage).folder(version) as bundle:
        bucket.upload(bundle, "bundles/mine")
    config = candidate.model_copy(update={"data": bucket.uri("in/x.csv"), "bundle": bucket.uri("bundles/mine")})
    out = bucket.uri("out/mine")
    assert score(changed(config, score={"out": out}), run.storage)["out"] == out
    assert bucket.list("out/mine") == ["00000-000-00000.parquet"]
    table = pq.read_table(bucket.path("out/mine/00000-000-00000.parquet"), filesystem=bucket.filesystem)
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    result = evaluate(config, run.storage)
    assert (result["n_human"], result["n_ai"], result["bundle"]) == (5, 5, bucket.uri("bundles/mine"))


def test_a_folder_with_files_is_refused(run: Run, candidate: Config, version: str, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "x.csv", [{"text": "One."}])
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("keep me")
    config = candidate.model_copy(update={"data": str(data), "bundle": version})
    for place, message in ((out, "the folder is not empty: name another folder, or delete it"), (data, "found a file")):
        with pytest.raises(ConfigError) as refused:
            score(changed(config, score={"out": str(place)}), run.storage)
        assert message in str(refused.value)
    assert (out / "mine").read_text() == "keep me"


@pytest.mark.slow
def test_a_failure_leaves_no_verdicts(run: Run, candidate: Config, version: str, tmp_path: Path) -> None:
    rows = [{"text": tiny_models.text("ai", random.Random(0), 12), "label": "ai"} for _ in range(300)]
    rows.append({"text": "A secret text.", "label": "no label at all, but a sentence"})
    data = write_csv(tmp_path / "in/x.csv", rows)
    config = candidate.model_copy(update={"data": str(data), "bundle": version})
    config = changed(config, score={"out": str(tmp_path / "out"), "workers": 2})
    with unchanged(run.storage), pytest.raises(CorpusError, match="holds a value of 31 characters;") as refused:
        score(config, run.storage)
    assert "secret" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_bundle_is_refused_before_any_work(
    run: Run, candidate: Config, tmp_path: Path, tiny_bundle: Path
) -> None:
    damaged = Path(shutil.copytree(tiny_bundle, tmp_path / "damaged"))
    (damaged / "config.json").write_text("{}")
    config = candidate.model_copy(update={"data": str(write_csv(tmp_path / "x.csv", [{"text": "One."}]))})
    with unchanged(run.storage), pytest.raises(BundleError, match=r"config\.json has sha256 \w+, expected"):
        score(config.model_copy(update={"bundle": str(damaged)}), run.storage)
    with unchanged(run.storage), pytest.raises(ConfigError, match="data="):
        score(config.model_copy(update={"data": ""}), run.storage)
