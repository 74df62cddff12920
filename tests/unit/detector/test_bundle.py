"""Bundles: content, versions, precision, and refusal of anything altered."""

import hashlib
import json
import pickletools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.calibration.domain_classifier import FILE, DomainClassifier
from detect_ai.core.errors import BundleError
from detect_ai.detector import bundle
from detect_ai.detector.bundle import FORMAT, SPEC_FILE, read_spec, write_spec
from detect_ai.detector.detector import Detector
from tests.fixtures import tiny_models


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    """A copy to change."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(folder):
    with pytest.raises(BundleError) as refused:
        read_spec(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_no_file_is_a_pickle(tiny_bundle):
    for path in tiny_bundle.iterdir():
        data = path.read_bytes()
        assert not data.startswith((b"PK\x03\x04", b"\x80"))  # what torch.save and pickle write
        with pytest.raises((ValueError, UnicodeDecodeError)):
            list(pickletools.genops(data))


def test_version_identifies_the_content(folder, tmp_path, encoder):
    copy = tiny_models.make_bundle(tmp_path / "made", encoder)
    assert read_spec(tmp_path / "made") == copy
    spec = read_spec(folder)
    assert spec.version == copy.version == json.loads((folder / SPEC_FILE).read_text())["digest"][:16]
    versions = {spec.version, tiny_models.make_bundle(tmp_path / "other", encoder, seed=1).version}
    for change in ({"min_tokens": 11}, {"stride": 47}, {"parent": "x"}, {"precision": "bf16"}, {"backend": "onnx"}):
        versions.add(write_spec(folder, replace(spec, **change)).version)
    (folder / "MODEL_CARD.md").write_text("# Card\n")
    versions.add(write_spec(folder, spec).version)
    assert len(versions) == 8


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_bundle_runs_at_the_precision_of_its_calibration(folder, precision, dtype):
    write_spec(folder, replace(read_spec(folder), precision=precision))
    assert Detector.load(folder).backend.dtype == dtype


def test_bundle_holds_its_domain_classifier(folder):
    before = read_spec(folder)
    assert Detector.load(folder).domain_classifier is None
    classifier = DomainClassifier(("essays", "prose"), np.ones((400, 2), np.float32), np.zeros(2, np.float32))
    classifier.save(folder)
    spec = write_spec(folder, replace(before, domains=["essays", "prose"]))
    assert set(read_spec(folder).files) == set(before.files) | {FILE}
    assert spec.version != before.version
    read = Detector.load(folder).domain_classifier
    assert read.names == classifier.names
    assert np.array_equal(read.weights, classifier.weights)
    write_spec(folder, replace(spec, domains=["essays", "letters", "prose"]))
    with pytest.raises(BundleError, match="expected 3 domains"):
        Detector.load(folder)


@settings(max_examples=60)
@given(file=st.integers(0, 4), place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_is_refused(tiny_bundle, tmp_path_factory, file, place, change):
    folder = tmp_path_factory.mktemp("changed")
    for path in tiny_bundle.iterdir():
        (folder / path.name).symlink_to(path)
    name = files_of(tiny_bundle)[file]
    data = bytearray((tiny_bundle / name).read_bytes())
    data[int(place * len(data))] ^= change
    (folder / name).unlink()
    (folder / name).write_bytes(data)
    assert str(folder) in refusal(folder)


def test_truncated_and_missing_files_are_named(tiny_bundle, tmp_path):
    for name in files_of(tiny_bundle):
        folder = shutil.copytree(tiny_bundle, tmp_path / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
        assert name in refusal(folder)
        (folder / name).unlink()
        assert name in refusal(folder)


def test_unexpected_files_are_named(folder):
    (folder / "weights.pkl").write_bytes(b"\x80\x04.")
    assert "weights.pkl" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_damaged_specification_is_refused(folder, content):
    (folder / SPEC_FILE).write_text(content)
    assert "detector.json is damaged" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content.update({"format": FORMAT + 1}), f"expected format {FORMAT}, found {FORMAT + 1}"),
        (lambda content: content.pop("stride"), "stride"),
        (lambda content: content.update({"precision": "fp16"}), "precision"),
        (lambda content: content.update({"colour": 1}), "colour"),
        (lambda content: content.update({"calibration": None}), "calibration"),
        (lambda content: content["calibration"].pop("midpoint"), "calibration.midpoint"),
        (lambda content: content["calibration"].update({"domains": [{"domain": "essays"}]}), "calibration.domains.0"),
        (lambda content: content["calibration"]["thresholds"]["0.05"].update({"colour": 1}), "thresholds.0.05.colour"),
        (lambda content: content.update({"backend": "abacus", "parent": "4f2a"}), "4f2a"),
    ],
)
def test_unexpected_fields_are_named(folder, change, named):
    content = json.loads((folder / SPEC_FILE).read_text())
    content.pop("digest")
    change(content)
    digest = hashlib.sha256(bundle.canonical_json(content)).hexdigest()
    (folder / SPEC_FILE).write_bytes(bundle.canonical_json({**content, "digest": digest}))
    assert named in refusal(folder)
