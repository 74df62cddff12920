"""Storage on an object store behind a proxy that injects faults."""

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pyarrow as pa
import pytest

from detect_ai.core import audit_log
from detect_ai.core import storage as module
from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import ConflictError, StorageError
from detect_ai.core.pointer import Pointer
from detect_ai.core.storage import Storage, parquet
from detect_ai.corpus.manifest import Corpus, Shard
from detect_ai.corpus.sources import list_pieces, raw_rows, source_digest
from detect_ai.detector.registry import Registry
from serve_app.auth.api_keys import KeyStore, create_key
from tests.fixtures import faults, gcs

DATA = bytes(range(256)) * 4096  # uploaded in two requests after one that opens the session
STALL_S = 0.6
TABLE = pa.table({"a": pa.array(range(50_000)), "b": pa.array(range(50_000))})


@pytest.fixture(scope="module")
def through(gcs_bucket):
    with faults.faulty(gcs_bucket, stall_s=STALL_S) as (uri, proxy):
        yield gcs.under(uri, "faults"), proxy


@pytest.fixture
def proxy(through):
    proxy = through[1]
    proxy.reset()
    yield proxy
    proxy.reset()


@pytest.fixture
def storage(through, proxy):
    return Storage(f"{through[0]}&retry_limit_seconds=20")


@pytest.fixture
def key(request):
    return f"{request.node.name}/x"


@pytest.fixture
def stored(gcs_bucket):
    """The storage without the proxy."""
    return Storage(gcs.under(gcs_bucket, "faults"))


@pytest.mark.parametrize("fault", faults.FAULTS["metadata"])
def test_lookup_survives(storage, proxy, stored, key, fault):
    stored.write_bytes(key, DATA)
    proxy.script("metadata", fault)
    assert storage.exists(key)
    proxy.script("metadata", fault)
    assert storage.list(key.removesuffix("/x")) == ["x"]
    assert [call.fault for call in proxy.calls()].count(fault) == 2


@pytest.mark.parametrize("fault", faults.FAULTS["download"])
def test_read_is_whole(storage, proxy, stored, key, fault):
    stored.write_bytes(key, DATA)
    proxy.script("download", fault)
    assert storage.read_bytes(key) == DATA
    proxy.script("download", fault)
    with storage.local_folder(key.removesuffix("/x")) as folder:
        assert (folder / "x").read_bytes() == DATA
    assert [call.fault for call in proxy.calls()].count(fault) == 2


@pytest.mark.parametrize("fault", faults.FAULTS["download"])
def test_table_is_whole(storage, proxy, stored, key, fault):
    stored.write_bytes(key, parquet(TABLE))
    proxy.script("download", None, fault)  # the footer arrives, the columns do not
    assert storage.read_table(key, ["b"]).equals(TABLE.select(["b"]))
    assert [call.fault for call in proxy.calls()].count(fault) == 1


@pytest.mark.parametrize("before", [0, 1, 2])  # downloads that succeed: of the footer, of the first rows
@pytest.mark.parametrize("fault", faults.FAULTS["download"])
def test_streams_are_whole(storage, proxy, stored, fault, before):
    """Rows of a source, tables of a corpus and the digest of a source, all of which are read in parts."""
    key = "streams"
    texts = pa.table({"text": [f"text {n} {n**9}" for n in range(3000)], "label": [0, 1] * 1500})
    stored.write_bytes(f"{key}/train/a.parquet", parquet(texts))
    source = SourceConfig(kind="parquet", path=storage.uri(f"{key}/train/a.parquet"))
    own = SourceConfig(kind="parquet", path=stored.uri(f"{key}/train/a.parquet"))
    corpus = Corpus(storage, key, mock.Mock(shards=[Shard("train", "a.parquet", 3000, "")]))

    def scripted():
        proxy.script("download", *[None] * before, fault)

    scripted()
    (piece,) = list_pieces(source)
    assert [row.values for _, row in raw_rows(piece, lambda names, _: names)] == texts.to_pylist()
    scripted()
    assert pa.concat_tables(corpus.tables("train", ["text", "label"])).equals(texts)
    scripted()
    assert source_digest(source) == source_digest(own)
    assert [call.fault for call in proxy.calls()].count(fault) >= 2


@pytest.mark.parametrize("at", [1, 2], ids=["content", "end"])
@pytest.mark.parametrize("fault", faults.FAULTS["upload"])
def test_write_is_whole(storage, proxy, stored, key, fault, at):
    proxy.script("upload", *[None] * at, fault)
    storage.write_bytes(key, DATA)
    assert stored.read_bytes(key) == DATA
    assert [call.fault for call in proxy.calls()].count(fault) == 1


@pytest.mark.parametrize("fault", faults.FAULTS["upload"])
def test_created_once(storage, proxy, stored, key, fault, monkeypatch):
    if fault == "stall":
        monkeypatch.setattr(module, "REQUEST_SECONDS", STALL_S / 2)
    proxy.script("upload", fault, fault)
    assert storage.create(key, DATA)
    assert not storage.create(key, DATA[1:])
    assert stored.read_bytes(key) == DATA


def test_deleted_folder_is_gone(storage, proxy, stored, key):
    for name in "abc":
        stored.write_bytes(f"{key}/{name}", DATA)
    proxy.script("metadata", *[None] * 4, "response lost")  # the deletion of a file, which is then missing
    storage.delete(key)
    lost = next(call for call in proxy.calls() if call.fault)
    assert lost.target.startswith("DELETE")
    assert stored.list(key) == []


def test_lost_response_is_no_conflict(storage, proxy):
    proxy.script("upload", "response lost", None, "response reset")
    pointer = Pointer(storage, "pointer/own")
    numbers = [pointer.advance({"version": "a"}, after=number).number for number in (0, 1)]
    assert numbers == [1, 2]


def test_lost_response_hides_no_conflict(storage, proxy, stored):
    Pointer(stored, "pointer/other").advance({"version": "a"}, after=0)
    proxy.script("upload", "response lost")
    with pytest.raises(ConflictError):  # the same value from the same user within the same second
        Pointer(storage, "pointer/other").advance({"version": "a"}, after=0)


def test_one_of_concurrent_writers_wins(storage, proxy):
    # Four attempts fit the limit of 20 s: at a rate of 0.3 all fail in less than one of a hundred calls.
    proxy.draw(0.3, "reset", "response reset", "response lost", "half upload")

    def advance(number):
        try:
            return Pointer(storage, "pointer/many").advance({"version": str(number)}, after=0)
        except ConflictError:
            return None

    with ThreadPoolExecutor(4) as pool:
        won = [record for record in pool.map(advance, range(4)) if record]
    assert won == [Pointer(storage, "pointer/many").read()]


def test_failed_write_keeps_the_old_content(through, proxy, stored, key):
    stored.write_bytes(key, b"old")
    proxy.script("upload", None, "half upload", faults.OUTAGE)
    with pytest.raises(StorageError):
        Storage(f"{through[0]}&retry_limit_seconds=1").write_bytes(key, DATA)
    assert stored.read_bytes(key) == b"old"


@pytest.mark.parametrize("operation", ["exists", "list", "read_bytes", "delete"])
def test_outage_is_one_line_after_the_bound(through, proxy, operation):
    storage = Storage(f"{through[0]}&retry_limit_seconds=1")
    proxy.down_for(60)
    with pytest.raises(StorageError, match=r"^[a-z ]+ gs://anonymous@bucket/faults/outage/x: .*UNAVAILABLE") as error:
        getattr(storage, operation)("outage/x")
    assert len(str(error.value).splitlines()) == 1
    assert "endpoint_override" not in str(error.value)


@pytest.mark.parametrize("operation", ["create", "write_bytes"])
def test_outage_of_a_write(through, proxy, stored, operation):
    storage = Storage(f"{through[0]}&retry_limit_seconds=1")
    proxy.down_for(60)
    with pytest.raises(StorageError, match=r"^(create|write) gs://anonymous@bucket/faults/outage/y: ") as error:
        getattr(storage, operation)("outage/y", DATA)
    assert len(str(error.value).splitlines()) == 1
    assert not stored.exists("outage/y")


def test_outage_within_the_bound_heals(storage, proxy, stored, key):
    stored.write_bytes(key, DATA)
    proxy.down_for(1)
    assert storage.read_bytes(key) == DATA
    proxy.down_for(1)
    assert storage.create(f"{key}y", DATA)


def test_a_fifth_of_all_calls_may_fail(through, proxy, stored, tiny_bundle):
    """A registry, API keys, an audit log and a table, written and read."""
    storage = Storage(through[0])
    proxy.draw(0.2)
    registry, keys = Registry(storage), KeyStore(storage)
    version = registry.add(tiny_bundle)
    registry.set_champion(version)
    made = [create_key(f"owner {number}")[1] for number in range(4)]
    for key in made:
        keys.put(key)
        audit_log.record(storage, "key-create", key=key.id)
    storage.write_bytes("tables/1.parquet", parquet(TABLE))
    assert storage.read_table("tables/1.parquet").equals(TABLE)
    assert keys.read().keys == {key.id: key for key in made}
    assert registry.verify()["champion"] == version
    proxy.draw(0)
    assert sum(injected for injected, _ in proxy.outcomes().values()) > 5
    assert Registry(stored).verify()["problems"] == []
    assert [event["key"] for event in audit_log.events(stored)] == [key.id for key in made]


def test_retries_are_bounded_by_default():
    uri = "gs://anonymous@bucket/x?scheme=https"
    limited = [Storage(f"{uri}&retry_limit_seconds={bound}").filesystem for bound in (module.RETRY_SECONDS, 9)]
    assert [Storage(uri).filesystem == files for files in limited] == [True, False]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted"), 1),  # pyarrow has retried it already
        (OSError("google::cloud::Status(DATA_LOSS: mismatched checksum"), module.READS),
        (OSError("File too short: expected to be able to read 2 bytes, got 1"), module.READS),
        (pa.ArrowInvalid("Parquet magic bytes not found in footer"), module.READS),
        (FileNotFoundError("x"), 1),
    ],
)
def test_only_damaged_data_are_read_again(monkeypatch, error, attempts):
    monkeypatch.setattr(module, "_pause", lambda _: None)
    calls = []

    def fail():
        calls.append(1)
        raise error

    with pytest.raises((OSError, pa.ArrowInvalid)):
        Storage("gs://anonymous@bucket/x?scheme=https").read("key", fail)
    assert len(calls) == attempts
