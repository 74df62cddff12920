"""An object store for tests: Google Cloud Storage's API on loopback, in memory, at a port of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gcs_emulator(bucket: str = "bucket") -> Iterator[str]:
    """Run an emulator with one bucket. Yields its URI; append a folder with `under`."""
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        port = server._api._httpd.server_address[1]
        yield f"gs://anonymous@{bucket}?endpoint_override=127.0.0.1:{port}&scheme=http"
    finally:
        server.stop()


def under(uri: str, folder: str) -> str:
    """The URI of a folder in the bucket."""
    place, _, query = uri.partition("?")
    return f"{place}/{folder}?{query}"
