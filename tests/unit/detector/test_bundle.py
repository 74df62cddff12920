import hashlib
import json
import pickletools
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detect_ai.calibration.domain_classifier import FILE, Registers
from detect_ai.core.errors import BundleError
from detect_ai.detector import bundle
from detect_ai.detector.bundle import FORMAT, SPEC_FILE, read_spec, seal
from detect_ai.detector.detector import Detector
from tests.fixtures import tiny_models

FILES = [
    "MODEL_CARD.md",
    "config.json",
    "detector.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture
def folder(tiny_bundle, tmp_path):
    """A copy to change."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def refusal(folder):
    with pytest.raises(BundleError) as refused:
        read_spec(folder)
    return str(refused.value)


def resealed(folder, change):
    """Change `detector.json` by hand and give it the digest that its new content has."""
    path = folder / SPEC_FILE
    content = json.loads(path.read_text())
    content.pop("digest")
    change(content)
    digest = hashlib.sha256(bundle._spelled(content)).hexdigest()
    path.write_bytes(bundle._spelled({**content, "digest": digest}))


# What is in it


def test_a_bundle_holds_what_a_replica_needs_and_its_card(tiny_bundle):
    assert sorted(path.name for path in tiny_bundle.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_a_pickle(tiny_bundle, name):
    data = (tiny_bundle / name).read_bytes()
    assert not data.startswith((b"PK\x03\x04", b"\x80"))  # what torch.save and pickle write
    with pytest.raises((ValueError, UnicodeDecodeError)):
        list(pickletools.genops(data))


def test_a_bundle_reads_back_as_it_was_made(tmp_path, encoder):
    made = tiny_models.make_bundle(tmp_path / "made", encoder)
    assert read_spec(tmp_path / "made") == made


def test_loading_gives_the_specification_and_the_tokenizer(tiny_bundle):
    spec, tokenizer = bundle.load(tiny_bundle)
    assert spec == read_spec(tiny_bundle)
    assert tokenizer.pad_id == spec.pad_id


def test_the_version_is_the_contents(tmp_path, encoder, tiny_bundle):
    version = read_spec(tiny_bundle).version
    assert version == json.loads((tiny_bundle / SPEC_FILE).read_text())["digest"][:16]
    assert tiny_models.make_bundle(tmp_path / "same", encoder).version == version
    assert tiny_models.make_bundle(tmp_path / "other", encoder, seed=1).version != version


def test_the_version_changes_with_any_field_and_any_file(folder):
    spec = read_spec(folder)
    versions = {spec.version}
    for change in ({"min_tokens": 11}, {"stride": 47}, {"parent": "x"}, {"provenance": {"run": "x"}}):
        versions.add(seal(folder, replace(spec, **change)).version)
    (folder / "MODEL_CARD.md").write_text("# Card\n")
    versions.add(seal(folder, spec).version)
    assert len(versions) == 6


def told_apart(folder, names=("essays", "prose")):
    """Put registers into a bundle that has none."""
    spec = read_spec(folder)
    made = Registers(names, np.ones((400, len(names)), np.float32), np.zeros(len(names), np.float32))
    made.save(folder)
    return made, seal(folder, replace(spec, registers=list(names)))


def test_a_bundle_holds_what_tells_its_registers_apart(folder):
    before = read_spec(folder)
    assert bundle.load_registers(folder, before) is None
    assert Detector.load(folder).registers is None
    made, spec = told_apart(folder)
    assert read_spec(folder) == spec
    assert spec.version != before.version
    assert set(spec.files) == set(before.files) | {FILE}
    found = bundle.load_registers(folder, spec)
    assert found.names == ("essays", "prose")
    assert np.array_equal(found.weights, made.weights)
    assert Detector.load(folder).registers.names == ("essays", "prose")


def test_registers_that_do_not_fit_their_names_are_refused(folder):
    spec = told_apart(folder)[1]
    seal(folder, replace(spec, registers=["essays", "letters", "prose"]))
    with pytest.raises(BundleError, match="expected 3 registers, found weights of"):
        Detector.load(folder)


def test_a_bundle_without_the_file_of_its_registers_is_refused(folder):
    told_apart(folder)
    (folder / FILE).unlink()
    assert refusal(folder) == f"bundle {folder}: {FILE} missing: copy the whole folder again"


def test_sealing_again_changes_nothing(folder):
    before = (folder / SPEC_FILE).read_bytes()
    seal(folder, read_spec(folder))
    assert (folder / SPEC_FILE).read_bytes() == before


# What is refused


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_of_any_file_is_refused(tiny_bundle, tmp_path_factory, name, place, change):
    folder = tmp_path_factory.mktemp("changed")
    for path in tiny_bundle.iterdir():
        (folder / path.name).symlink_to(path)
    data = bytearray((tiny_bundle / name).read_bytes())
    data[int(place * len(data))] ^= change
    (folder / name).unlink()
    (folder / name).write_bytes(data)
    assert refusal(folder).startswith(f"bundle {folder}: ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_altered_file_is_named_with_the_checksums(folder, name):
    path = folder / name
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b" ")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert refusal(folder) == (f"bundle {folder}: {name} has sha256 {found}, expected {expected}: it was altered")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder, name, keep):
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert refusal(folder).startswith(f"bundle {folder}: {name} ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert refusal(folder) == f"bundle {folder}: {name} missing: copy the whole folder again"


def test_a_folder_without_specification_is_no_bundle(folder):
    (folder / SPEC_FILE).unlink()
    assert refusal(folder) == f"bundle {folder}: no detector.json, so it is no finished bundle"


def test_a_file_too_many_is_named(folder):
    (folder / "weights.pkl").write_bytes(b"\x80\x04.")
    assert refusal(folder) == f"bundle {folder}: weights.pkl does not belong to it: remove it"


def test_a_specification_that_was_altered_and_still_is_json_is_refused(folder):
    path = folder / SPEC_FILE
    path.write_text(path.read_text().replace('"min_tokens": 10', '"min_tokens": 90'))
    assert refusal(folder) == f"bundle {folder}: detector.json was altered: its digest does not match its content"


def test_the_same_content_in_another_spelling_is_refused(folder):
    path = folder / SPEC_FILE
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert refusal(folder) == f"bundle {folder}: detector.json was altered: its digest does not match its content"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("{}", "'format'"),
        ("[]", "list indices must be integers or slices, not str"),
    ],
)
def test_a_damaged_specification_is_named(folder, content, reason):
    (folder / SPEC_FILE).write_text(content)
    assert refusal(folder) == f"bundle {folder}: detector.json is damaged: {reason}"


@pytest.mark.parametrize("other", [1, FORMAT + 1])
def test_another_format_is_named(folder, other):
    resealed(folder, lambda content: content.update({"format": other}))
    assert refusal(folder) == f"bundle {folder}: format {other}, this version reads {FORMAT}"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("stride"),
        lambda content: content.update({"colour": 1}),
        lambda content: content["calibration"].pop("midpoint"),
        lambda content: content["calibration"].pop("categories"),
        lambda content: content["calibration"].update({"categories": [{"register": "essays"}]}),
        lambda content: content["calibration"]["thresholds"]["0.05"].update({"colour": 1}),
        lambda content: content.update({"calibration": None}),
        lambda content: content["calibration"].update({"thresholds": [0.05]}),
    ],
)
def test_other_fields_than_expected_are_refused(folder, change):
    resealed(folder, change)
    assert refusal(folder).startswith(f"bundle {folder}: detector.json has other fields than expected: ")
