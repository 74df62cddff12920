import errno
import json
import os
import threading
from pathlib import Path

import pytest

from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage, open_uri
from detect_ai.detector.bundle import SPEC_FILE
from detect_ai.detector.registry import Registry


@pytest.fixture
def local(tmp_path):
    return Storage(str(tmp_path / "root"))


@pytest.fixture(params=["local", "gcs"])
def storage(request):
    """Each property holds on a disk and on an object store."""
    if request.param == "local":
        return request.getfixturevalue("local")
    return Storage(request.getfixturevalue("gcs_root"))


@pytest.fixture
def folder(tmp_path):
    """A local folder with a file, a nested file and an empty one."""
    made = tmp_path / "folder"
    (made / "inner").mkdir(parents=True)
    (made / "a.bin").write_bytes(b"\x00\xff" * 1000)
    (made / "inner/b.txt").write_text("b")
    (made / "empty").write_bytes(b"")
    return made


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Keys and roots


@pytest.mark.parametrize("key", ["", "/etc/passwd", "..", "../x", "a/../b", "a/.."])
@pytest.mark.parametrize("method", ["path", "exists", "list", "read_bytes", "read_json", "delete"])
def test_a_key_that_leaves_the_root_is_refused(local, method, key):
    with pytest.raises(InputError) as refused:
        getattr(local, method)(key)
    assert str(refused.value) == f"storage key {key!r}: expected a relative path without '..'"


def test_dots_within_a_name_are_no_way_out(local):
    local.write_bytes("runs/a..b/..c", b"x")
    assert local.read_bytes("runs/a..b/..c") == b"x"


def test_a_local_root_is_absolute_so_that_it_means_the_same_in_every_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("here")
    monkeypatch.chdir("/")
    assert storage.root == str(tmp_path / "here")
    storage.write_bytes("key", b"x")
    assert (tmp_path / "here/key").read_bytes() == b"x"


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Storage("~/root").write_bytes("key", b"x")
    assert (tmp_path / "root/key").read_bytes() == b"x"


def test_opening_a_storage_writes_nothing(tmp_path):
    Storage(str(tmp_path / "root"))
    assert list(tmp_path.iterdir()) == []


def test_a_uri_that_cannot_be_opened_is_refused():
    with pytest.raises(ConfigError) as refused:
        Storage("nosuch://bucket/x")
    assert str(refused.value) == (
        "storage.root=nosuch://bucket/x: expected a local path or a URI such as gs://bucket/folder: "
        "Unrecognized filesystem type in URI: nosuch://bucket/x"
    )


def test_a_source_that_cannot_be_opened_is_refused():
    with pytest.raises(ConfigError) as refused:
        open_uri("nosuch://bucket/x.csv")
    assert str(refused.value) == (
        "nosuch://bucket/x.csv: expected a local path or a URI such as gs://bucket/folder: "
        "Unrecognized filesystem type in URI: nosuch://bucket/x.csv"
    )


@pytest.mark.parametrize(
    ("uri", "root", "name"),
    [
        ("/data/out", "/data", "out"),
        ("/out/", "/", "out"),
        ("out", "{here}", "out"),
        ("a/b", "{here}/a", "b"),
        ("~/out", "{home}", "out"),
        ("gs://anonymous@bucket/a/b", "gs://anonymous@bucket/a", "b"),
        ("gs://anonymous@bucket/a/?scheme=http", "gs://anonymous@bucket?scheme=http", "a"),
    ],
)
def test_a_path_is_a_key_in_the_storage_around_it(tmp_path, monkeypatch, uri, root, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    storage, key = Storage.around(uri)
    assert (storage.root, key) == (root.format(here=tmp_path, home="/home/me"), name)
    if not storage.is_local or uri.startswith("/"):
        assert storage.uri(key) == uri.replace("/?", "?").rstrip("/")


@pytest.mark.parametrize("uri", ["", "/", ".", "a/..", "~", "gs://bucket", "gs://bucket/?scheme=http"])
def test_what_has_no_name_is_no_key(uri):
    with pytest.raises(ConfigError) as refused:
        Storage.around(uri)
    assert str(refused.value) == f"{uri}: expected a path or URI that ends in the name of a file or folder"


def test_the_uri_of_a_key_names_the_same_file(storage):
    storage.write_bytes("runs/x/result.json", b"1")
    again, key = Storage.around(storage.uri("runs/x/result.json"))
    assert again.read_bytes(key) == b"1"


# Reading and writing


def test_what_is_written_is_read(storage):
    storage.write_bytes("a/b/c.bin", b"\x00\xff")
    assert storage.read_bytes("a/b/c.bin") == b"\x00\xff"


def test_json_of_any_text_survives(storage):
    value = {"text": "naïve 中 \U0001f600", "numbers": [1, 2.5, None], "nested": {"a": True}}
    storage.write_json("runs/x/result.json", value)
    assert storage.read_json("runs/x/result.json") == value


def test_writing_again_replaces(storage):
    storage.write_bytes("key", b"a long first content")
    storage.write_bytes("key", b"short")
    assert storage.read_bytes("key") == b"short"


def test_reading_what_is_not_there_says_so(storage):
    with pytest.raises(FileNotFoundError):
        storage.read_json("runs/none.json")


def test_a_file_that_is_no_json_is_named(local):
    local.write_bytes("runs/x.json", b"{")
    with pytest.raises(InputError) as refused:
        local.read_json("runs/x.json")
    reason = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert str(refused.value) == f"{local.root}/runs/x.json: expected JSON: {reason}"


def test_a_file_and_its_folder_exist_and_others_do_not(storage):
    storage.write_bytes("runs/x/result.json", b"1")
    found = {key: storage.exists(key) for key in ("runs", "runs/x", "runs/x/result.json", "runs/y", "runs/x/result")}
    assert found == {"runs": True, "runs/x": True, "runs/x/result.json": True, "runs/y": False, "runs/x/result": False}


def test_a_list_names_files_and_folders_directly_under_a_key(storage):
    for key in ("runs/b/1.json", "runs/b/2.json", "runs/a.json", "runs2/c.json"):
        storage.write_bytes(key, b"1")
    assert storage.list("runs") == ["a.json", "b"]
    assert storage.list("runs/b") == ["1.json", "2.json"]
    assert storage.list("none") == []


# Whole or not at all


def test_a_reader_never_sees_a_part_of_a_write(local):
    contents = [bytes([digit]) * 1_000_000 for digit in b"01"]
    local.write_bytes("key", contents[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for content in contents:
                local.write_bytes("key", content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(local.read_bytes("key") in contents for _ in range(60))
    finally:
        stop.set()
        writer.join()


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_no_file_beside_it(local, monkeypatch, step):
    local.write_bytes("runs/key", b"old")
    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[step], full_disk)
    with pytest.raises(OSError, match="No space left"):
        local.write_bytes("runs/key", b"new")
    assert local.read_bytes("runs/key") == b"old"
    assert local.list("runs") == ["key"]


def test_a_value_that_is_no_json_is_refused_before_anything_is_written(local):
    with pytest.raises(TypeError):
        local.write_json("runs/key.json", {"a": object()})
    assert local.list("runs") == []


# Folders


def test_an_uploaded_folder_comes_back_as_it_was(storage, folder):
    storage.upload(folder, "runs/x/copy")
    with storage.local_folder("runs/x/copy") as found:
        assert files(found) == files(folder)


def test_the_local_folder_of_a_local_root_is_the_folder_itself(local, folder):
    local.upload(folder, "copy")
    with local.local_folder("copy") as found:
        assert str(found) == local.path("copy")
    assert found.is_dir()


def test_the_copy_of_a_folder_in_an_object_store_goes_away(gcs_root, folder):
    storage = Storage(gcs_root)
    storage.upload(folder, "copy")
    with storage.local_folder("copy") as found:
        assert found.is_dir()
    assert not found.exists()


def test_a_folder_that_an_object_store_does_not_have_is_an_error_and_leaves_nothing(gcs_root, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError), Storage(gcs_root).local_folder("none"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_deleting_takes_a_file_or_a_whole_folder_and_no_neighbour(storage, folder):
    storage.upload(folder, "runs/a")
    storage.upload(folder, "runs/ab")
    storage.write_bytes("runs/a.json", b"1")
    storage.delete("runs/a")
    assert storage.list("runs") == ["a.json", "ab"]
    storage.delete("runs/a.json")
    assert storage.list("runs") == ["ab"]


def test_deleting_what_is_not_there_does_nothing(storage):
    storage.delete("runs/none")
    assert storage.list("runs") == []


def test_pruning_keeps_the_last_folders_by_name_and_everything_of_another_prefix(storage):
    for name in ("train-3", "train-1", "train-2", "sweep-1", "train.json"):
        storage.write_bytes(f"runs/x/{name}" + ("" if "." in name else "/weights"), b"1")
    storage.prune("runs/x", "train-", keep=2)
    assert storage.list("runs/x") == ["sweep-1", "train-2", "train-3", "train.json"]


@pytest.mark.parametrize("keep", [3, 4])
def test_pruning_fewer_than_are_kept_deletes_nothing(storage, keep):
    for number in range(3):
        storage.write_bytes(f"runs/x/train-{number}/weights", b"1")
    storage.prune("runs/x", "train-", keep)
    assert storage.list("runs/x") == ["train-0", "train-1", "train-2"]


# An object store as a root


def test_a_folder_that_other_tools_copied_into_an_object_store_is_listed(gcs_root, folder):
    storage = Storage(gcs_root)
    with storage.filesystem.open_output_stream(storage.path("registry/versions/abc/detector.json")) as stream:
        stream.write(b"{}")  # without the marker objects that pyarrow makes for folders
    assert storage.list("registry/versions") == ["abc"]


def test_the_champion_of_an_object_store_moves_and_its_bundle_comes_back(gcs_root, tiny_bundle):
    registry = Registry(Storage(gcs_root))
    assert registry.champion() is None
    version = registry.add(tiny_bundle)
    registry.set_champion(version)
    again = Registry(Storage(gcs_root))
    assert (again.champion(), again.versions()) == (version, [version])
    with again.folder(version) as found:
        assert files(found) == files(tiny_bundle)
    record = json.loads(Storage(gcs_root).read_bytes("registry/champion/000001.json"))
    assert record["value"]["version"] == json.loads((tiny_bundle / SPEC_FILE).read_text())["digest"][:16]
