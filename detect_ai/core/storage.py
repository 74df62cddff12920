"""Storage root for all outputs: a local folder or an object store, with atomic writes."""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from detect_ai.core.errors import ConfigError, InputError


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a local path or a URI, and the path inside it. Raises ConfigError."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if re.match(r"[^/]*://[^/]*:.*@", uri):
        raise ConfigError("expected a URI without a password, which would appear in logs: use the environment")
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{uri}: expected a local path or a URI such as gs://bucket/folder: {error}") from error
    return filesystem, str(path)


def parquet(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


@contextmanager
def _scratch_file(path: str, data: bytes, private: bool) -> Iterator[Path]:
    """A synced file with the data, in the folder of `path`; removed afterwards."""
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
        root: a local path (`~` is expanded) or a URI that pyarrow knows, such as `gs://bucket/prefix`. The attribute
            is the absolute path or the URI, valid in every process of the cluster. ConfigError if it cannot be opened.
    """

    def __init__(self, root: str) -> None:
        self.filesystem, base = open_uri(root)
        self.root = root if "://" in root else base
        self._base = base.rstrip("/")
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)

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

    def exists(self, key: str) -> bool:
        """Whether a file or a folder exists."""
        return bool(self.filesystem.get_file_info(self.path(key)).type != pafs.FileType.NotFound)

    def list(self, key: str) -> list[str]:
        """Names of the files and folders directly under a folder, sorted; empty when there is no such folder."""
        base = self.path(key)
        # Object stores have no folders: pyarrow lists one only if it has a marker object, so list recursively.
        selector = pafs.FileSelector(base, allow_not_found=True, recursive=not self.is_local)
        infos = self.filesystem.get_file_info(selector)
        return sorted({info.path.removeprefix(base).strip("/").split("/")[0] for info in infos} - {""})

    def read_bytes(self, key: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        with self.filesystem.open_input_stream(self.path(key)) as stream:
            return bytes(stream.read())

    def write_bytes(self, key: str, data: bytes, private: bool = False) -> None:
        """Replace a file atomically: a reader sees the old content or the new.

        Under a local root a private file is for its owner only; in an object store the bucket decides.
        """
        path = self.path(key)
        self.filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        if not self.is_local:  # an object appears when its upload is complete
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        with _scratch_file(path, data, private) as scratch:
            scratch.replace(path)

    def create(self, key: str, data: bytes, private: bool = False) -> bool:
        """Write a file unless the key exists, atomically; return whether it did. Of concurrent writers one succeeds.

        `private` as for `write_bytes`.
        """
        path = self.path(key)
        self.filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
        if self.is_local:
            with _scratch_file(path, data, private) as scratch:
                try:
                    os.link(scratch, path)
                except FileExistsError:
                    return False
            return True
        import obstore  # pyarrow has no conditional write
        from obstore.exceptions import AlreadyExistsError
        from obstore.store import GCSStore, from_url

        bucket, _, name = path.partition("/")
        url = urlsplit(self.root)
        options = dict(parse_qsl(url.query))
        if "endpoint_override" in options:  # an emulator, which needs no credentials
            endpoint = f"{options.get('scheme', 'https')}://{options['endpoint_override']}"
            nobody = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
            account = json.dumps({"gcs_base_url": endpoint, **nobody})
            store: Any = GCSStore(bucket, service_account_key=account, client_options={"allow_http": True})
        else:
            store = from_url(f"{url.scheme}://{bucket}")
        try:
            obstore.put(store, name, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def read_json(self, key: str) -> Any:
        """The parsed JSON of a file. Raises FileNotFoundError, or InputError when it is not JSON."""
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
        info = self.filesystem.get_file_info(self.path(key))
        with suppress(FileNotFoundError):  # somebody else deletes it
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
        self.filesystem.create_dir(self.path(key), recursive=True)
        pafs.copy_files(str(folder), self.path(key), pafs.LocalFileSystem(), self.filesystem)

    @contextmanager
    def local_folder(self, key: str) -> Iterator[Path]:
        """A local folder with the content of a key: the folder itself on local storage, else a temporary copy."""
        if self.is_local:
            yield Path(self.path(key))
            return
        with tempfile.TemporaryDirectory(prefix="detect_ai-", ignore_cleanup_errors=True) as scratch:
            pafs.copy_files(self.path(key), scratch, self.filesystem, pafs.LocalFileSystem())
            yield Path(scratch)

    def prune(self, key: str, prefix: str, keep: int) -> None:
        """Delete all but the last `keep` folders (by name) under a key whose names start with a prefix."""
        names = [name for name in self.list(key) if name.startswith(prefix)]
        for name in names[: max(0, len(names) - keep)]:
            self.delete(f"{key}/{name}")
