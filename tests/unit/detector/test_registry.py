import shutil
import threading
from dataclasses import replace

import pytest

from detect_ai.core.errors import BundleError, RegistryError
from detect_ai.core.storage import Storage
from detect_ai.detector.bundle import SPEC_FILE, read_spec, seal
from detect_ai.detector.registry import Registry


@pytest.fixture
def registry(tmp_path):
    return Registry(Storage(str(tmp_path / "root")))


@pytest.fixture
def add(registry, tiny_bundle, tmp_path):
    """Adds bundles that differ in a field."""

    def added(number):
        folder = shutil.copytree(tiny_bundle, tmp_path / f"bundle-{number}")
        seal(folder, replace(read_spec(folder), min_tokens=100 + number))
        return registry.add(folder)

    return added


def refusal(call, *arguments):
    with pytest.raises(RegistryError) as refused:
        call(*arguments)
    return str(refused.value)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Versions


def test_an_added_bundle_is_a_version_with_the_same_bytes(registry, tiny_bundle):
    version = registry.add(tiny_bundle)
    assert version == read_spec(tiny_bundle).version
    assert registry.versions() == [version]
    with registry.folder(version) as found:
        assert files(found) == files(tiny_bundle)


def test_adding_again_changes_nothing(registry, tiny_bundle, monkeypatch):
    version = registry.add(tiny_bundle)
    monkeypatch.setattr(registry.storage, "write_bytes", lambda *_: pytest.fail("a version was written again"))
    assert registry.add(tiny_bundle) == version
    assert registry.versions() == [version]


def test_adding_moves_no_champion(registry, tiny_bundle):
    registry.add(tiny_bundle)
    assert registry.champion() is None


def test_a_damaged_bundle_is_not_added(registry, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / "config.json").write_text("{}")
    with pytest.raises(BundleError):
        registry.add(folder)
    assert registry.versions() == []
    assert not registry.storage.exists("registry")


def test_a_version_that_is_written_in_part_is_none_and_is_finished_by_adding_again(registry, tiny_bundle, monkeypatch):
    version = read_spec(tiny_bundle).version
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
    assert registry.storage.list(f"registry/versions/{version}") == sorted(set(files(tiny_bundle)) - {SPEC_FILE})
    assert registry.versions() == []
    assert refusal(registry.set_champion, version) == (
        f"no version {version!r} under {registry.storage.root}; found none"
    )
    assert registry.add(tiny_bundle) == version
    assert registry.versions() == [version]


def test_an_unknown_version_is_refused_with_those_that_there_are(registry, add):
    versions = sorted([add(0), add(1)])
    expected = f"no version 'abc' under {registry.storage.root}; found {', '.join(versions)}"
    assert refusal(registry.set_champion, "abc") == expected
    assert refusal(registry.folder("abc").__enter__) == expected
    assert registry.champion() is None


# The champion


def test_without_a_champion_the_way_to_one_is_named(registry):
    assert registry.champion() is None
    assert refusal(registry.require_champion) == (
        f"no champion under {registry.storage.root}: run jobs/publish.py first; `make demo` makes one to look at"
    )


def test_the_champion_moves(registry, add):
    first, second = add(0), add(1)
    registry.set_champion(first)
    assert registry.require_champion() == first
    registry.set_champion(second)
    assert registry.require_champion() == second
    assert registry.versions() == sorted([first, second])


def test_rolling_back_goes_one_version_back_each_time(registry, add):
    first, second, third = (add(number) for number in range(3))
    for version in (first, second, third):
        registry.set_champion(version)
    assert [registry.rollback(), registry.champion()] == [second, second]
    assert [registry.rollback(), registry.champion()] == [first, first]
    assert refusal(registry.rollback) == f"no version before the champion {first}: nothing to roll back to"
    assert registry.champion() == first


def test_without_a_champion_there_is_nothing_to_roll_back_to(registry):
    assert refusal(registry.rollback) == (
        "no version before the first one, and there is no champion yet: nothing to roll back to"
    )


def test_making_the_champion_champion_again_does_not_make_rolling_back_go_nowhere(registry, add):
    first, second = add(0), add(1)
    for version in (first, second, second):
        registry.set_champion(version)
    assert registry.rollback() == first


def test_a_version_may_be_champion_again(registry, add):
    first, second = add(0), add(1)
    for version in (first, second, first):
        registry.set_champion(version)
    assert [registry.rollback(), registry.rollback()] == [second, first]


def test_rolling_back_to_a_version_that_is_gone_is_refused_and_the_champion_stays(registry, add):
    first, second = add(0), add(1)
    registry.set_champion(first)
    registry.set_champion(second)
    registry.storage.delete(f"registry/versions/{first}")
    assert refusal(registry.rollback) == f"no version {first!r} under {registry.storage.root}; found {second}"
    assert registry.champion() == second


def test_the_history_is_bounded(registry, add):
    first, second = add(0), add(1)
    for _ in range(30):
        registry.set_champion(first)
        registry.set_champion(second)
    assert len(registry.storage.read_json("registry/champion.json")["history"]) == 20


def test_readers_never_see_a_broken_pointer(registry, add):
    versions = [add(0), add(1)]
    registry.set_champion(versions[0])
    stop, seen, failures = threading.Event(), set(), []

    def read():
        own = Registry(Storage(registry.storage.root))
        while not stop.is_set():
            try:
                seen.add(own.champion())
            except Exception as error:
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(40):
        for version in versions:
            registry.set_champion(version)
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert seen == set(versions)


# Finding a bundle


def test_a_bundle_is_found_by_version_by_its_beginning_by_key_by_path_and_by_default(
    registry, add, tiny_bundle, monkeypatch
):
    version = add(0)
    ours = (registry.storage, f"registry/versions/{version}")
    assert registry.locate(version) == registry.locate(version[:6]) == ours
    registry.storage.upload(tiny_bundle, "runs/x/candidate-1")
    assert registry.locate("runs/x/candidate-1/") == (registry.storage, "runs/x/candidate-1")
    monkeypatch.chdir(tiny_bundle.parent)
    for name in (str(tiny_bundle), f"{tiny_bundle}/", f"./{tiny_bundle.name}", tiny_bundle.name):
        storage, key = registry.locate(name)
        with storage.local_folder(key) as folder:
            assert folder == tiny_bundle
    registry.set_champion(version)
    assert registry.locate("") == ours


def test_a_bundle_in_a_bucket_is_found_by_its_uri(registry, tiny_bundle, gcs_root):
    bucket = Storage(gcs_root)
    bucket.upload(tiny_bundle, "bundles/mine")
    storage, key = registry.locate(bucket.uri("bundles/mine"))
    with storage.local_folder(key) as folder:
        assert files(folder) == files(tiny_bundle)


def test_an_unknown_bundle_is_refused_with_what_there_is(registry, add, tmp_path):
    expected = f"a key under {registry.storage.root}, or a folder with {SPEC_FILE}"
    assert refusal(registry.locate, "nope") == (
        f"bundle=nope: expected a version of the registry (it is empty), {expected}"
    )
    version = add(0)
    for name in (str(tmp_path), "runs/x", f"{version}0"):
        assert refusal(registry.locate, name) == (
            f"bundle={name}: expected a version of the registry ({version}), {expected}"
        )
    assert refusal(registry.locate, "").startswith(f"no champion under {registry.storage.root}: run jobs/publish.py")


def test_a_beginning_of_two_versions_is_refused_with_both(registry, monkeypatch):
    monkeypatch.setattr(registry, "versions", lambda: ["abc1", "abc2", "b"])
    assert refusal(registry.locate, "abc") == "bundle=abc: 2 versions begin so: abc1, abc2"
    assert registry.locate("b") == (registry.storage, "registry/versions/b")
