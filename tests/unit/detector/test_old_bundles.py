"""Bundles of older formats: the same scores and verdicts, and the version under which they were published."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detect_ai.core.errors import BundleError
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import FORMAT, SPEC_FILE, read_spec, write_spec
from detect_ai.detector.detector import Detector
from detect_ai.detector.registry import Registry
from detect_ai.release.export import make

# Published by the last revision that wrote format 4 (0081e0e), with its verdicts on fixed texts: an encoder of one
# layer from `tiny_models.make_encoder`, calibrated on made-up texts of six domains, so that thresholds depend on style.
PUBLISHED = Path(__file__).parents[2] / "fixtures" / "bundle_format_4"
OLD = PUBLISHED / "bundle"


@pytest.fixture(scope="module")
def expected():
    return json.loads((PUBLISHED / "verdicts.json").read_text())


@pytest.fixture
def registry(tmp_path, tiny_bundle):
    """A registry with the old bundle, before a new one as champion."""
    registry = Registry(Storage(str(tmp_path / "root")))
    for folder in (OLD, tiny_bundle):
        registry.set_champion(registry.add(folder))
    return registry


def test_scores_and_labels_stay(expected):
    detector, texts = Detector.load(OLD), [row["text"] for row in expected["texts"]]
    scores = detector.score([document.input_ids for document in detector.read(texts)])
    assert scores == pytest.approx([row["score"] for row in expected["texts"]], abs=1e-4)
    labels = [verdict.label.value for verdict in detector.detect(texts)]
    assert labels == [row["label"] for row in expected["texts"]]
    assert set(labels) == {"human", "ai", "uncertain"}


def test_version_stays(expected):
    spec = read_spec(OLD)
    assert json.loads((OLD / SPEC_FILE).read_text())["format"] == 4
    assert spec.format == FORMAT
    assert spec.version == Detector.load(OLD).version == expected["version"]


def test_registry_keeps_the_bytes(registry, expected):
    with registry.folder(expected["version"]) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in OLD.iterdir()
        }


def test_it_can_become_champion_again(registry, expected):
    newer = registry.champion()
    assert registry.rollback() == expected["version"] == registry.champion()
    registry.set_champion(newer)
    registry.set_champion(expected["version"])
    assert registry.champion() == expected["version"]


def test_written_again_it_is_of_the_current_format(expected, tmp_path):
    folder = shutil.copytree(OLD, tmp_path / "bundle")
    written = write_spec(folder, read_spec(folder))
    content = json.loads((folder / SPEC_FILE).read_text())
    assert (content["format"], content["digest"][:16]) == (FORMAT, written.version)
    assert read_spec(folder) == written
    assert written.version == read_spec(folder).version != expected["version"]


def test_export_names_the_published_parent(expected, tmp_path):
    child = make("torch-bf16", OLD, tmp_path / "child")
    content = json.loads((tmp_path / "child" / SPEC_FILE).read_text())
    assert (content["format"], content["parent"]) == (FORMAT, expected["version"])
    assert child.version != expected["version"]
    loaded, parent = Detector.load(tmp_path / "child"), Detector.load(OLD)
    text = expected["texts"][0]["text"]
    assert np.array_equal(loaded.read([text])[0].required, parent.read([text])[0].required)


@pytest.mark.parametrize("with_digest_of_the_current_format", [False, True])
def test_an_altered_one_is_refused(tmp_path, with_digest_of_the_current_format):
    folder = shutil.copytree(OLD, tmp_path / "bundle")
    content = json.loads((folder / SPEC_FILE).read_text())
    changed = {**content, "min_tokens": 1}
    if with_digest_of_the_current_format:
        changed["digest"] = json.loads(replace(read_spec(OLD), min_tokens=1).to_bytes())["digest"]
    (folder / SPEC_FILE).write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n")
    with pytest.raises(BundleError, match="altered"):
        read_spec(folder)


def test_bytes_other_than_the_canonical_ones_are_refused(tmp_path):
    folder = shutil.copytree(OLD, tmp_path / "bundle")
    (folder / SPEC_FILE).write_text(json.dumps(json.loads((folder / SPEC_FILE).read_text())))
    with pytest.raises(BundleError, match="altered"):
        read_spec(folder)
