from concurrent.futures import ThreadPoolExecutor

import pytest

from detect_ai.core.errors import ConflictError, InputError
from detect_ai.core.pointer import Pointer
from detect_ai.core.storage import Storage


@pytest.fixture(params=["local", "gcs"])
def storage(request, tmp_path):
    root = tmp_path / "root" if request.param == "local" else request.getfixturevalue("gcs_root")
    return Storage(str(root))


def test_create_keeps_existing_content(storage):
    assert storage.create("a/b", b"first")
    assert not storage.create("a/b", b"second")
    assert storage.read_bytes("a/b") == b"first"
    assert storage.list("a") == ["b"]


def test_advance_appends_to_history(storage):
    pointer = Pointer(storage, "registry/champion")
    storage.write_bytes("registry/champion/000001.json.0123.tmp", b"partial")  # of an interrupted write
    assert pointer.read() is None
    first = pointer.advance({"version": "a"}, after=0)
    second = pointer.advance({"version": "b"}, after=first.number)
    assert pointer.read() == second
    assert pointer.history() == [first, second]


@pytest.mark.parametrize("version", [{"version": "4f2a"}, {}])
def test_conflict_names_the_winner_without_its_value(storage, monkeypatch, version):
    monkeypatch.setenv("USER", "ada")
    pointer = Pointer(storage, "p")
    winner = pointer.advance({**version, "keys": "hashed"}, after=0)
    with pytest.raises(ConflictError) as error:
        pointer.advance({"version": "b"}, after=0)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in ("ada@", winner.when, *version.values()))
    assert "hashed" not in message
    assert pointer.history() == [winner]


def increment(root, prefix, rounds):
    """A writer of a counter: read, add one, retry after a conflict."""
    pointer, conflicts = Pointer(Storage(root), prefix), 0
    for _ in range(rounds):
        while True:
            record = pointer.read()
            number, count = (record.number, record.value["count"]) if record else (0, 0)
            try:
                pointer.advance({"count": count + 1}, after=number)
                break
            except ConflictError:
                conflicts += 1
    return conflicts


def test_concurrent_writers_lose_no_record(storage):
    rounds = 10 if storage.is_local else 2
    with ThreadPoolExecutor(8) as pool:
        conflicts = list(pool.map(lambda _: increment(storage.root, "counter", rounds), range(8)))
    counts = [record.value["count"] for record in Pointer(storage, "counter").history()]
    assert counts == list(range(1, 8 * rounds + 1))
    assert sum(conflicts) > 0


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b'{"number": 1}',
        b'{"number": "1", "value": {}, "by": "a", "when": "b"}',
        b'{"number": 2, "value": {}, "by": "a", "when": "b"}',
        b'{"number": 1, "value": {}, "by": "a", "when": "b", "more": 1}',
    ],
)
def test_malformed_record_names_key_and_fix(tmp_path, content):
    storage = Storage(str(tmp_path))
    storage.write_bytes("p/000001.json", content)
    for access in (Pointer(storage, "p").read, Pointer(storage, "p").history):
        with pytest.raises(InputError) as error:
            access()
        assert "p/000001.json" in str(error.value)
        assert "delete it" in str(error.value)
        assert "\n" not in str(error.value)
