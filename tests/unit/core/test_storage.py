import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage


@pytest.fixture
def local(tmp_path):
    return Storage(str(tmp_path / "root"))


@pytest.fixture(params=["local", "gcs"])
def storage(request):
    if request.param == "local":
        return request.getfixturevalue("local")
    return Storage(request.getfixturevalue("gcs_root"))


FILES = {"a.bin": b"\x00\xff" * 1000, "inner/b.txt": b"b", "empty": b""}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder/inner").mkdir(parents=True)
    for name, content in FILES.items():
        (tmp_path / "folder" / name).write_bytes(content)
    return tmp_path / "folder"


@pytest.mark.parametrize("key", ["", "/etc/passwd", "..", "a/../b"])
def test_key_outside_the_root_is_refused(local, key):
    for method in (local.path, local.read_bytes, local.delete):
        with pytest.raises(InputError, match="expected a relative path"):
            method(key)
    local.write_bytes("runs/a..b/..c", b"x")  # dots within a name are allowed
    assert local.read_bytes("runs/a..b/..c") == b"x"


def test_local_root_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("here")
    monkeypatch.chdir("/")
    assert storage.root == str(tmp_path / "here")
    assert list(tmp_path.iterdir()) == []  # opening writes nothing
    storage.write_bytes("key", b"x")
    assert (tmp_path / "here/key").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nosuch://bucket/x", "nosuch://bucket/x"),
        ("s3://k:verysecret@b/x", "password"),
        ("s3://k:very/secret@b/x", "password"),
    ],
)
def test_unknown_scheme_or_password_is_refused(uri, message):
    with pytest.raises(ConfigError, match=message) as error:
        Storage(uri)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "root", "name"),
    [
        ("/data/out", "/data", "out"),
        ("/out/", "/", "out"),
        ("a/b", "{here}/a", "b"),
        ("~/out", "{home}", "out"),
        ("gs://anonymous@bucket/a/b", "gs://anonymous@bucket/a", "b"),
        ("gs://anonymous@bucket/a/?scheme=http", "gs://anonymous@bucket?scheme=http", "a"),
    ],
)
def test_around_splits_a_path(tmp_path, monkeypatch, uri, root, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    storage, key = Storage.around(uri)
    assert (storage.root, key) == (root.format(here=tmp_path, home="/home/me"), name)
    if not storage.is_local or uri.startswith("/"):
        assert storage.uri(key) == uri.replace("/?", "?").rstrip("/")


@pytest.mark.parametrize("uri", ["", "/", "a/..", "gs://bucket/?scheme=http"])
def test_around_needs_a_name(uri):
    with pytest.raises(ConfigError, match="ends in the name"):
        Storage.around(uri)


def test_written_bytes_are_replaced_and_read_by_uri(storage):
    storage.write_bytes("a/b/c.bin", b"\x00\xff and more")
    storage.write_bytes("a/b/c.bin", b"\x00\xff")
    around, key = Storage.around(storage.uri("a/b/c.bin"))
    assert storage.read_bytes("a/b/c.bin") == around.read_bytes(key) == b"\x00\xff"


def test_json_round_trips(storage):
    value = {"text": "naïve 中 \U0001f600", "numbers": [1, 2.5, None], "nested": {"a": True}}
    storage.write_json("runs/x/result.json", value)
    assert storage.read_json("runs/x/result.json") == value
    with pytest.raises(FileNotFoundError):
        storage.read_json("runs/none.json")
    storage.write_bytes("runs/x.json", b"{")
    with pytest.raises(InputError, match=r"runs/x\.json: expected JSON"):
        storage.read_json("runs/x.json")


def test_exists_and_list(storage):
    for key in ("runs/b/1.json", "runs/b/2.json", "runs/a.json", "runs2/c.json"):
        storage.write_bytes(key, b"1")
    assert all(storage.exists(key) for key in ("runs", "runs/b", "runs/b/1.json"))
    assert not any(storage.exists(key) for key in ("runs/c", "runs/b/1"))
    assert storage.list("runs") == ["a.json", "b"]
    assert storage.list("none") == []


@pytest.mark.parametrize("listed", [Storage.list, Storage.infos])
def test_a_folder_may_appear_while_it_is_listed(local, listed):
    real = local.filesystem

    def appears(selector):
        local.filesystem = real
        local.write_bytes("runs/a.json", b"1")
        raise FileNotFoundError  # as pyarrow does if that happens between two of its system calls

    local.filesystem = SimpleNamespace(get_file_info=appears)
    assert len(listed(local, "runs")) == 1


def test_folder_without_marker_objects_is_listed(gcs_root):
    storage = Storage(gcs_root)
    with storage.filesystem.open_output_stream(storage.path("registry/versions/abc/detector.json")) as stream:
        stream.write(b"{}")  # as other tools do; pyarrow creates markers for folders
    assert storage.list("registry/versions") == ["abc"]


def test_reader_never_sees_a_partial_write(local):
    versions = [bytes([digit]) * 1_000_000 for digit in b"01"]
    local.write_bytes("key", versions[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for version in versions:
                local.write_bytes("key", version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(local.read_bytes("key") in versions for _ in range(60))
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")])
def test_failed_write_keeps_old_content(local, monkeypatch, owner, step):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    local.write_bytes("runs/key", b"old")
    monkeypatch.setattr(owner, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        local.write_bytes("runs/key", b"new")
    assert local.read_bytes("runs/key") == b"old"
    assert local.list("runs") == ["key"]


def test_failed_block_leaves_no_key(storage):
    def fail():
        with storage.whole("runs/x"):
            storage.write_bytes("runs/x/part", b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not storage.exists("runs/x")


def test_uploaded_folder_round_trips(storage, folder):
    storage.upload(folder, "runs/x/copy")
    with storage.local_folder("runs/x/copy") as copy:
        files = [path for path in copy.rglob("*") if path.is_file()]
        assert {str(path.relative_to(copy)): path.read_bytes() for path in files} == FILES
    assert copy.exists() is storage.is_local  # a copy of remote content is temporary


def test_delete_takes_no_neighbour(storage, folder):
    storage.upload(folder, "runs/a")
    storage.upload(folder, "runs/ab")
    storage.write_bytes("runs/a.json", b"1")
    for key in ("runs/a", "runs/none"):
        storage.delete(key)
    assert storage.list("runs") == ["a.json", "ab"]
    storage.delete("runs/a.json")
    assert storage.list("runs") == ["ab"]


def test_prune_keeps_the_last_folders_of_a_prefix(storage):
    for name in ("train-3", "train-1", "train-2", "sweep-1", "train.json"):
        storage.write_bytes(f"runs/x/{name}" + ("" if "." in name else "/weights"), b"1")
    for keep in (3, 2):
        storage.prune("runs/x", "train-", keep)
        assert len(storage.list("runs/x")) == keep + 2
    assert storage.list("runs/x") == ["sweep-1", "train-2", "train-3", "train.json"]


@pytest.mark.parametrize("key", ["folder/file", "folder"])
def test_two_may_delete_at_once(local, key):
    local.write_bytes("folder/file", b"x")
    files, seen = local.filesystem, local.filesystem.get_file_info(local.path(key))
    local.delete(key)
    calls = {name: getattr(files, name) for name in ("delete_file", "delete_dir")}
    local.filesystem = SimpleNamespace(get_file_info=lambda _: seen, **calls)
    local.delete(key)


def test_private_files_are_for_their_owner_only(local):
    local.write_bytes("a", b"x", private=True)
    assert local.create("b", b"x", private=True)
    local.write_bytes("c", b"x")
    modes = [Path(local.path(key)).stat().st_mode & 0o777 for key in "abc"]
    assert modes[:2] == [0o600, 0o600]
    assert modes[2] & 0o444
