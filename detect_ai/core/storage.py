"""Storage root for all outputs: a local folder or an object store, with atomic writes."""

from __future__ import annotations

import io
import json
import os
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from detect_ai.core.errors import ConfigError, InputError, StorageError

T = TypeVar("T")

# Object stores. pyarrow retries a call 1-2, 3-6, 7-14, 15-30, 31-62 and 63-126 s after the first attempt, and checks
# this limit after the next pause, at 127-254 s: a job survives an outage of a minute, and fails with a wrong endpoint.
RETRY_SECONDS = 127
# A conditional write of some kilobytes is aborted and resolved after this time. pyarrow closes a connection without
# incoming data after 120 s, which cannot be changed (26.0).
REQUEST_SECONDS = 20
CONNECT_SECONDS = 5
READS = 4  # attempts to read data that arrive damaged, which pyarrow does not retry


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a local path or a URI, and the path inside it. Raises ConfigError."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if re.match(r"[^/]*://[^/]*:.*@", uri):
        raise ConfigError("expected a URI without a password, which would appear in logs: use the environment")
    limited = uri
    if re.match("(gs|gcs)://", uri) and "retry_limit_seconds=" not in uri:  # pyarrow's default is 15 minutes
        limited = f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={RETRY_SECONDS}"
    try:
        filesystem, path = pafs.FileSystem.from_uri(limited)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{uri}: expected a local path or a URI such as gs://bucket/folder: {error}") from error
    return filesystem, str(path)


def storage_error(error: OSError) -> StorageError | None:
    """An error of an object store as one line without URLs; None for others, such as a missing file."""
    if not (match := re.search(r"google::cloud::Status\((\w+): (.*)", str(error), re.DOTALL)):
        return None
    code, reason = match[1], re.split(r" error_info=|\n", match[2])[0]
    reason = re.sub(r"(Retry policy exhausted|Permanent error), with a last message of |PerformWork\(\) - ", "", reason)
    advice = "check that the store can be reached (network, endpoint, its status page), and run it again"
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        advice = "check the account and its role on the bucket"
    return StorageError(f"expected an answer, found {code} ({reason[:200]}): {advice}")


def _is_damaged(error: Exception) -> bool:
    """Whether data from an object store arrived damaged: wrong checksum, too short, or not Parquet."""
    if isinstance(error, FileNotFoundError):
        return False
    return "google::cloud::Status" not in str(error) or "DATA_LOSS" in str(error)


def read_stream(uri: str, items: Callable[[], Iterator[T]]) -> Iterator[T]:
    """The items read from a file.

    On an object store, `items` is restarted if the data arrive damaged, and items already yielded are skipped.
    """
    given, attempts = 0, READS if "://" in uri else 1
    for attempt in range(attempts):
        try:
            for item in islice(items(), given, None):
                yield item
                given += 1
        except (OSError, pa.ArrowInvalid) as error:
            if not _is_damaged(error) or attempt == attempts - 1:
                raise
            _pause(attempt)
        else:
            return


def parquet(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _pause(attempt: int) -> None:
    """Wait before another attempt: exponential backoff with jitter, so that clients do not retry together."""
    time.sleep(min(0.5 * 2**attempt, 15) * random.uniform(0.5, 1))  # noqa: S311 - not a secret


@contextmanager
def _scratch_file(path: str, data: bytes, private: bool) -> Iterator[Path]:
    """A temporary file with the data, synced to disk, in the folder of `path`; removed afterwards."""
    scratch = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    try:
        with open(scratch, "wb", opener=partial(os.open, mode=0o600 if private else 0o666)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


class Storage:
    """Files under a root, named by keys: relative paths such as `runs/default/train.json`.

    Keys stay valid when the root moves, so results contain keys, not paths.

    Args:
        root: a local path (`~` is expanded) or a URI that pyarrow supports, such as `gs://bucket/prefix`. The attribute
            is the absolute path or the URI, valid in all processes of the cluster. ConfigError if it cannot be opened.
    """

    def __init__(self, root: str) -> None:
        self.filesystem, base = open_uri(root)
        self.root = root if "://" in root else base
        self._base = base.rstrip("/")
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        self._options = {} if self.is_local else dict(parse_qsl(urlsplit(root).query))
        self._retry_seconds = float(self._options.get("retry_limit_seconds", RETRY_SECONDS))

    @classmethod
    def around(cls, uri: str) -> tuple[Storage, str]:
        """The storage that contains a path or URI, and its key there. Raises ConfigError."""
        where, mark, query = uri.partition("?")
        parent, _, name = where.rstrip("/").rpartition("/")
        if not name or name in (".", "..", "~") or parent.endswith(":/"):
            raise ConfigError(f"{uri}: expected a path or URI that ends in the name of a file or folder")
        return cls(f"{parent or ('/' if where.startswith('/') else '.')}{mark}{query}"), name

    def path(self, key: str) -> str:
        """The path of a key inside `filesystem`."""
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise InputError(f"storage key {key!r}: expected a relative path without '..'")
        return f"{self._base}/{key}"

    def uri(self, key: str) -> str:
        """The path or URI of a key."""
        where, mark, query = self.root.partition("?")
        return f"{where.rstrip('/')}/{key}{mark}{query}"

    @contextmanager
    def _named(self, operation: str, key: str) -> Iterator[None]:
        """Convert an error of the object store to a StorageError that names the operation and the key."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.is_local or not (known := storage_error(error)):
                raise
            raise StorageError(f"{operation} {self._where(key)}: {known}") from error

    def _where(self, key: str) -> str:
        return self.uri(key).partition("?")[0]

    def read(self, key: str, action: Callable[[], T]) -> T:
        """The result of `action`, which reads a key; retried if the data arrive damaged (checksum, Parquet format).

        Raises FileNotFoundError, and StorageError for an error of an object store.
        """
        with self._named("read", key):
            return next(read_stream(self.root, lambda: iter([action()])))

    def read_table(
        self, keys: str | Sequence[str], columns: Sequence[str] | None = None, where: Any = None
    ) -> pa.Table:
        """Columns of one or several Parquet files; `where` is an optional expression that selects rows."""
        keys = [keys] if isinstance(keys, str) else keys
        paths = [self.path(key) for key in keys]
        options: dict[str, Any] = {"columns": columns and [*columns], "filters": where, "partitioning": None}
        return self.read(", ".join(keys[:1]), lambda: pq.read_table(paths, filesystem=self.filesystem, **options))

    def exists(self, key: str) -> bool:
        """Whether a file or a folder exists."""
        with self._named("look for", key):
            return bool(self.filesystem.get_file_info(self.path(key)).type != pafs.FileType.NotFound)

    def list(self, key: str) -> list[str]:
        """Names of the files and folders directly under a folder, sorted; empty if there is no such folder."""
        base = self.path(key)
        # Object stores have no folders: pyarrow lists one only if it has a marker object, so list recursively.
        infos = self.infos(key, recursive=not self.is_local)
        return sorted({info.path.removeprefix(base).strip("/").split("/")[0] for info in infos} - {""})

    def infos(self, key: str, recursive: bool = True) -> Sequence[pafs.FileInfo]:
        """All files and folders under a folder, in no order; empty if there is no such folder."""
        selector = pafs.FileSelector(self.path(key), allow_not_found=True, recursive=recursive)
        with self._named("list", key):
            try:
                return [*self.filesystem.get_file_info(selector)]
            except FileNotFoundError:  # pyarrow finds no folder, then that there is one: it has just been created
                return [*self.filesystem.get_file_info(selector)]

    def read_bytes(self, key: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""

        def whole() -> bytes:
            with self.filesystem.open_input_stream(self.path(key)) as stream:
                return bytes(stream.read())

        return self.read(key, whole)

    def write_bytes(self, key: str, data: bytes, private: bool = False) -> None:
        """Replace a file atomically: a reader sees either the old or the new content.

        Under a local root, only the owner can access a private file; in an object store the bucket's policy applies.
        """
        path = self.path(key)
        if not self.is_local:  # an object appears when its upload is complete
            with self._named("write", key), self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        self.filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with _scratch_file(path, data, private) as scratch:
            scratch.replace(path)

    def create(self, key: str, data: bytes, private: bool = False) -> bool:
        """Create a file atomically, unless the key exists; return whether it did. One of concurrent writers succeeds.

        `private` as for `write_bytes`. If an object store's response is lost, the content shows who wrote the file, so
        no other writer of the key may write the same `data`. Raises StorageError if the outcome stays unknown.
        """
        path = self.path(key)
        if not self.is_local:
            return self._create_object(key, data)
        self.filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        with _scratch_file(path, data, private) as scratch:
            try:
                os.link(scratch, path)
            except FileExistsError:
                return False
        return True

    def _create_object(self, key: str, data: bytes) -> bool:
        import obstore  # pyarrow has no conditional write
        from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
        from obstore.store import GCSStore, from_url

        bucket, _, name = self.path(key).partition("/")
        bounds: dict[str, Any] = {
            "timeout": timedelta(seconds=REQUEST_SECONDS),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        }
        # Retry here: obstore retries a write whose connection was closed, but not one whose connection was reset.
        options: dict[str, Any] = {"client_options": bounds, "retry_config": {"max_retries": 0}}
        if "endpoint_override" in self._options:  # an emulator, which needs no credentials
            endpoint = f"{self._options.get('scheme', 'https')}://{self._options['endpoint_override']}"
            nobody = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
            options["service_account_key"] = json.dumps({"gcs_base_url": endpoint, **nobody})
            bounds["allow_http"] = True
            store: Any = GCSStore(bucket, **options)
        else:
            store = from_url(f"{urlsplit(self.root).scheme}://{bucket}", **options)
        attempt, until = 0, time.monotonic() + self._retry_seconds
        while True:
            try:
                obstore.put(store, name, data, mode="create")
                return True
            except AlreadyExistsError:  # possibly created by this call, whose response was lost
                return self.read_bytes(key) == data
            except BaseError as error:
                found = f"create {self._where(key)}: found {str(error).splitlines()[0].rpartition(' - ')[2][:200]}"
                if not isinstance(error, GenericError):
                    raise StorageError(f"{found}: check the account and its role on the bucket") from error
                if time.monotonic() >= until:
                    problem = f"{found} for {self._retry_seconds:g} s: it may have been written"
                    raise StorageError(f"{problem}; look whether it exists before you run it again") from error
            _pause(attempt)
            attempt += 1

    def read_json(self, key: str) -> Any:
        """The parsed JSON of a file. Raises FileNotFoundError, or InputError if it is not JSON."""
        data = self.read_bytes(key)
        try:
            return json.loads(data)
        except ValueError as error:
            raise InputError(f"{self.root}/{key}: expected JSON: {error}") from error

    def write_json(self, key: str, value: Any) -> None:
        """Write a value as indented JSON, atomically."""
        self.write_bytes(key, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def delete(self, key: str) -> None:
        """Delete a file, or a folder recursively; a missing key is ignored."""
        with self._named("delete", key), suppress(FileNotFoundError):  # another process deletes it
            info = self.filesystem.get_file_info(self.path(key))
            if info.type == pafs.FileType.Directory:
                self.filesystem.delete_dir(info.path)
            elif info.type == pafs.FileType.File:
                self.filesystem.delete_file(info.path)

    @contextmanager
    def whole(self, key: str) -> Iterator[None]:
        """Delete a key, and its empty parent folder, if the block fails or is interrupted."""
        try:
            yield
        except BaseException:
            self.delete(key)
            parent = key.rpartition("/")[0]
            if parent and not self.list(parent):
                self.delete(parent)
            raise

    def upload(self, folder: str | Path, key: str) -> None:
        """Copy a local folder to a key, file by file."""
        with self._named("write", key):
            self.filesystem.create_dir(self.path(key), recursive=True)
            pafs.copy_files(str(folder), self.path(key), pafs.LocalFileSystem(), self.filesystem)

    @contextmanager
    def local_folder(self, key: str) -> Iterator[Path]:
        """A local folder with the content of a key: the folder itself on local storage, else a temporary copy."""
        if self.is_local:
            yield Path(self.path(key))
            return
        with tempfile.TemporaryDirectory(prefix="detect_ai-", ignore_cleanup_errors=True) as scratch:
            copy = partial(pafs.copy_files, self.path(key), scratch, self.filesystem, pafs.LocalFileSystem())
            self.read(key, copy)
            yield Path(scratch)

    def prune(self, key: str, prefix: str, keep: int) -> None:
        """Delete all but the last `keep` folders (by name) under a key whose names start with a prefix."""
        names = [name for name in self.list(key) if name.startswith(prefix)]
        for name in names[: max(0, len(names) - keep)]:
            self.delete(f"{key}/{name}")
