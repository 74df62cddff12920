"""The benchmark `trust` on a tiny bundle: its rates are those of the verdicts, and a second run scores nothing."""

import importlib.util
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from detect_ai.core.config import Config
from detect_ai.core.errors import ConfigError, CorpusError
from detect_ai.detector.dataset import parts
from detect_ai.detector.detector import Detector
from detect_ai.detector.score import score_part
from detect_ai.detector.verdict_table import verdict_folder
from detect_ai.evaluation import task
from tests.fixtures import tiny_models

spec = importlib.util.spec_from_file_location("trust", Path(__file__).parents[2] / "benchmarks/trust.py")
trust = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trust)

GLUED = "They left.Nobody knows why. "


@pytest.fixture
def scored(monkeypatch):
    """Score in this process instead of in Ray actors; returns the numbers of scored texts."""
    counts = []

    def score_texts(data, bundle, config, out):
        with bundle[0].local_folder(bundle[1]) as folder, verdict_folder(*out):
            items = [pa.table({"part": [pickle.dumps(part)]}) for part in parts(data, config)]
            detector = Detector.load(folder)
            batches = [row for item in items for row in score_part(detector, item, config, out[0].root, out[1])]
        counts.append(sum(batch["texts"][0].as_py() for batch in batches))
        return {"skipped": 0}

    monkeypatch.setattr(task, "score_texts", score_texts)
    return counts


def config_of(root, bundle):
    config = Config()
    config.run, config.bundle, config.storage.root = "mine", str(bundle), str(root)
    return config


@pytest.fixture
def letters(tmp_path):
    """60 human and 60 AI letters, half of them to a friend, with other column names; every tenth is glued."""
    rows = tiny_models.rows(60, low=30, high=60)
    renamed = [
        {
            "body": (GLUED if i % 10 == 0 else "") + row["text"],
            "label": row["label"],
            "kind": ("friend", "bank")[i % 4 > 1],
        }
        for i, row in enumerate(rows)
    ]
    return tiny_models.write_jsonl(tmp_path / "letters.jsonl", [*renamed, {"body": "No label.", "label": ""}])


def test_rates_are_those_of_the_verdicts(tmp_path, tiny_bundle, letters, scored):
    config, sets = config_of(tmp_path / "store", tiny_bundle), [f"{letters},text=body,domain=kind"]
    result = trust.trust(config.model_copy(), sets, 0)
    assert scored == [120, 12]  # all texts, and those that cleaning changes: human ones
    [(name, rates)] = result["sets"].items()
    assert name.endswith("/letters")
    assert rates["changed"] == {"human": 12, "ai": 0}
    assert (rates["raw"]["n_human"], rates["raw"]["n_ai"]) == (60, 60)
    assert set(rates["domains"]) == {"friend", "bank"}
    assert all(set(forms) == {"raw", "cleaned"} for forms in rates["domains"].values())
    detector = Detector.load(tiny_bundle)
    rows = map(json.loads, letters.read_text().splitlines())
    verdicts = detector.detect([row["body"] for row in rows if row["label"] == 0])
    human = [verdict.label.value == "ai" for verdict in verdicts]
    assert rates["raw"]["fpr_at_target"] == pytest.approx(sum(human) / 60, abs=1e-4)
    assert [(row["domain"], row["n_human"], row["fpr"]) for row in result["development_domains"]] == [
        (f"{name}/bank", 30, None),
        (f"{name}/friend", 30, None),  # too few for a rate
    ]
    again = trust.trust(config.model_copy(), sets, 0)
    assert scored == [120, 12]
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_domains_above_their_bound_are_counted(tmp_path, tiny_bundle, scored):
    rows = [{"text": tiny_models.text("human", tiny_models.random.Random(i)), "label": 0} for i in range(80)]
    data = str(tiny_models.write_jsonl(tmp_path / "posts.jsonl", rows))
    result = trust.trust(config_of(tmp_path / "store", tiny_bundle), [data], 60)
    assert scored == [60]
    [row] = result["development_domains"]
    assert row["n_human"] == 60
    above = row["fpr"] > row["bound"]
    assert result["above_bound"] == {"n_domains": 1, "fraction": float(above), "domains": [row["domain"]] * above}
    assert result["all_domains"]["worst_fpr"] == row["fpr"]


@pytest.mark.parametrize(("data", "error"), [("x.jsonl,domain", ConfigError), ("none.parquet", CorpusError)])
def test_wrong_data_is_refused(tmp_path, tiny_bundle, data, error):
    with pytest.raises(error):
        trust.trust(config_of(tmp_path / "store", tiny_bundle), [data], 0)
