"""Registry: versions, the champion pointer, and how a bundle is found."""

import json
import shutil
from dataclasses import replace

import pytest

from detect_ai.core.errors import BundleError, ConflictError, RegistryError
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import SPEC_FILE, canonical_json, read_spec, write_spec
from detect_ai.detector.registry import Registry

RECORD = "registry/champion/000001.json"


@pytest.fixture
def registry(tmp_path):
    return Registry(Storage(str(tmp_path / "root")))


@pytest.fixture
def add(registry, tiny_bundle, tmp_path):
    """A function that adds bundles that differ in one field."""

    def added(number):
        folder = shutil.copytree(tiny_bundle, tmp_path / f"bundle-{number}")
        write_spec(folder, replace(read_spec(folder), min_tokens=100 + number))
        return registry.add(folder)

    return added


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_added_bundle_is_a_version_with_the_same_bytes(registry, tiny_bundle, monkeypatch):
    version = registry.add(tiny_bundle)
    assert registry.versions() == [version] == [read_spec(tiny_bundle).version]
    with registry.folder(version) as folder:
        assert files(folder) == files(tiny_bundle)
    assert registry.champion() is None
    monkeypatch.setattr(registry.storage, "write_bytes", lambda *_: pytest.fail("a version was written again"))
    assert registry.add(tiny_bundle) == version


def test_a_damaged_bundle_is_not_added(registry, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / "config.json").write_text("{}")
    with pytest.raises(BundleError):
        registry.add(folder)
    assert not registry.storage.exists("registry")


def test_an_interrupted_version_is_completed_by_adding_again(registry, tiny_bundle, monkeypatch):
    write, written = registry.storage.write_bytes, []

    def failing(key, data):
        if len(written) == len(files(tiny_bundle)) - 1:
            raise OSError("the disk is full")
        written.append(key)
        write(key, data)

    monkeypatch.setattr(registry.storage, "write_bytes", failing)
    with pytest.raises(OSError, match="the disk is full"):
        registry.add(tiny_bundle)
    monkeypatch.undo()
    version = read_spec(tiny_bundle).version
    assert registry.versions() == []
    with pytest.raises(RegistryError, match=version):
        registry.set_champion(version)
    assert registry.add(tiny_bundle) == version
    assert registry.versions() == [version]


def test_the_champion_moves_and_its_history_is_kept(registry, add):
    with pytest.raises(RegistryError, match="publish"):
        registry.require_champion()
    versions = [add(number) for number in range(3)]
    for version in (*versions, versions[2]):
        registry.set_champion(version)
        assert registry.require_champion() == version
    assert [state.version for state in registry.history()] == versions


def test_rolling_back_goes_one_champion_back_each_time(registry, add):
    with pytest.raises(RegistryError, match="no champion"):
        registry.rollback()
    first, second, third = (add(number) for number in range(3))
    for version in (first, second, third):
        registry.set_champion(version)
    assert [registry.rollback(), registry.rollback()] == [second, first]
    with pytest.raises(RegistryError, match=first):
        registry.rollback()
    registry.set_champion(third)
    assert registry.rollback() == first == registry.champion()
    assert [state.version for state in registry.history()] == [first, second, third, second, first, third, first]


def make_old(folder):
    content = json.loads((folder / SPEC_FILE).read_text())
    (folder / SPEC_FILE).write_bytes(canonical_json({**content, "format": 2}))


@pytest.mark.parametrize("change", [make_old, shutil.rmtree])
def test_rollback_to_a_broken_bundle_changes_nothing(registry, add, change):
    first, second = add(0), add(1)
    registry.set_champion(first)
    registry.set_champion(second)
    with registry.folder(first) as folder:
        change(folder)
    with pytest.raises(RegistryError, match=first):
        registry.rollback()
    with pytest.raises(RegistryError, match=first):
        registry.set_champion(first)
    assert (registry.champion(), len(registry.history())) == (second, 2)


def test_a_decision_about_another_champion_is_refused(registry, add):
    """Two publishers read the same champion; the second one to write has compared with a former champion."""
    first, second, third = (add(number) for number in range(3))
    registry.set_champion(first)
    number, _ = registry.read_champion()
    registry.set_champion(second, after=number)
    with pytest.raises(ConflictError) as error:
        registry.set_champion(third, after=number)
    assert second in str(error.value)
    assert "\n" not in str(error.value)
    assert registry.champion() == second


@pytest.mark.parametrize(
    "change", [{"version": None}, {"version": ""}, {"previous": -1}, {"previous": 7}, {"colour": 1}]
)
def test_malformed_pointers_are_refused(registry, add, change):
    registry.set_champion(add(0))
    record = registry.storage.read_json(RECORD)
    registry.storage.write_json(RECORD, {**record, "value": {**record["value"], **change}})
    for call in (registry.champion, registry.rollback, lambda: registry.set_champion(add(1))):
        with pytest.raises(RegistryError, match=next(iter(change))) as error:
            call()
        assert "\n" not in str(error.value)


def problems(registry):
    result = registry.verify()
    return result["problems"]


def test_a_sound_registry_has_no_problems(registry, add):
    versions = [add(number) for number in range(2)]
    for version in versions:
        registry.set_champion(version)
    assert registry.verify() == {"versions": 2, "records": 2, "champion": versions[1], "problems": []}


def altered(registry, version):
    path = f"registry/versions/{version}/config.json"
    registry.storage.write_bytes(path, registry.storage.read_bytes(path).replace(b"2", b"3", 1))


def of_an_old_format(registry, version):
    with registry.folder(version) as folder:
        make_old(folder)


def under_another_name(registry, version):
    shutil.copytree(
        registry.storage.path(f"registry/versions/{version}"), registry.storage.path("registry/versions/4f")
    )


def unfinished(registry, version):
    registry.storage.delete(f"registry/versions/{version}/{SPEC_FILE}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (altered, "config.json"),
        (of_an_old_format, "found 2"),
        (under_another_name, "version 4f"),
        (unfinished, SPEC_FILE),
    ],
)
def test_verification_names_a_damaged_version(registry, add, change, named):
    champion, version = add(0), add(1)
    registry.set_champion(champion)
    change(registry, version)
    [problem] = problems(registry)
    assert named in problem
    assert version in problem
    assert registry.verify()["champion"] == champion


def test_verification_names_champions_that_do_not_load(registry, add):
    first, second = add(0), add(1)
    for version in (first, second, first):
        registry.set_champion(version)
    altered(registry, first)
    registry.storage.delete(f"registry/versions/{second}")
    damaged, *champions = problems(registry)
    assert first in damaged
    assert [("000003" in line and first in line, "000002" in line and second in line) for line in champions] == [
        (True, False),
        (False, True),
    ]


def test_verification_names_damaged_and_missing_records(registry, add):
    versions = [add(number) for number in range(5)]
    for version in versions:
        registry.set_champion(version)
    registry.storage.write_bytes("registry/champion/000002.json", b"{")
    registry.storage.delete("registry/champion/000004.json")
    damaged, missing = problems(registry)
    assert "000002.json" in damaged
    assert "between 3 and 5" in missing
    registry.storage.write_bytes("registry/champion/000005.json", b"{")
    assert registry.verify()["champion"] is None


def test_a_bundle_is_found_by_version_key_path_or_default(registry, add, tiny_bundle, monkeypatch):
    version = add(0)
    ours = (registry.storage, f"registry/versions/{version}")
    assert registry.resolve(version) == registry.resolve(version[:6]) == ours
    registry.storage.upload(tiny_bundle, "runs/x/candidate-1")
    assert registry.resolve("runs/x/candidate-1/") == (registry.storage, "runs/x/candidate-1")
    monkeypatch.chdir(tiny_bundle.parent)
    for name in (str(tiny_bundle), f"{tiny_bundle}/", f"./{tiny_bundle.name}", tiny_bundle.name):
        storage, key = registry.resolve(name)
        with storage.local_folder(key) as folder:
            assert folder == tiny_bundle
    registry.set_champion(version)
    assert registry.resolve("") == ours


def test_unknown_bundles_are_refused_with_the_known_ones(registry, add, tmp_path):
    with pytest.raises(RegistryError, match="it is empty"):
        registry.resolve("nope")
    version = add(0)
    for name in (str(tmp_path), "runs/x", f"{version}0"):
        with pytest.raises(RegistryError, match=version):
            registry.resolve(name)
    assert registry.find("nope") is None


def test_an_ambiguous_start_is_refused(registry, monkeypatch):
    monkeypatch.setattr(registry, "versions", lambda: ["abc1", "abc2", "b"])
    for call in (registry.resolve, registry.find):
        with pytest.raises(RegistryError, match="abc1, abc2"):
            call("abc")
    assert registry.resolve("b") == (registry.storage, "registry/versions/b")
