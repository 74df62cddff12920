"""Bundles: content, versions, precision, and rejection of anything altered."""

import hashlib
import json
import pickletools
import shutil
from dataclasses import replace

import pytest
import torch

from detect_ai.core.errors import BundleError
from detect_ai.detector import bundle
from detect_ai.detector.bundle import FORMAT, SPEC_FILE, read_spec, write_spec
from detect_ai.detector.detector import Detector
from detect_ai.text.normalize import NORMALISER_VERSION
from tests.fixtures import tiny_models


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    """A copy of the bundle that tests may change."""
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
    for change in (
        {"min_tokens": 11},
        {"stride": 47},
        {"parent": "x"},
        {"precision": "bf16"},
        {"backend": "torch-bf16"},
    ):
        versions.add(write_spec(folder, replace(spec, **change)).version)
    (folder / "MODEL_CARD.md").write_text("# Card\n")
    versions.add(write_spec(folder, spec).version)
    assert len(versions) == 8


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_bundle_runs_at_the_precision_of_its_calibration(folder, precision, dtype):
    write_spec(folder, replace(read_spec(folder), precision=precision))
    assert Detector.load(folder).backend.dtype == dtype


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content.update({"format": FORMAT + 1}), f"expected format {FORMAT}, found {FORMAT + 1}"),
        (lambda content: content.update({"format": 3}), f"expected format {FORMAT}, found 3"),
        (lambda content: content.update({"normaliser_version": NORMALISER_VERSION + 1}), "train it again"),
        (lambda content: content.pop("stride"), "stride"),
        (lambda content: content.update({"precision": "fp16"}), "precision"),
        (lambda content: content.update({"colour": 1}), "colour"),
        (lambda content: content.update({"calibration": None}), "calibration"),
        (lambda content: content["calibration"].pop("midpoint"), "calibration.midpoint"),
        (lambda content: content["calibration"].update({"domains": [{"name": "essays"}]}), "calibration.domains.0"),
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
