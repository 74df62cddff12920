"""An object store for tests: Google Cloud Storage's API on loopback, in memory, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from detect_ai.core.ray_runtime import free_port


@contextmanager
def gcs_emulator(bucket: str = "bucket") -> Iterator[str]:
    """Run an emulator with one bucket. Yields its URI; append a folder with `under`."""
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen(
        [*command, "--in-memory", f"--default-bucket={bucket}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/storage/v1/b/{bucket}")
        yield f"gs://anonymous@{bucket}?endpoint_override=127.0.0.1:{port}&scheme=http"
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(url: str, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            assert time.monotonic() < until, "the emulator did not start"
            time.sleep(0.1)


def under(uri: str, folder: str) -> str:
    """The URI of a folder in the bucket."""
    place, _, query = uri.partition("?")
    return f"{place}/{folder}?{query}"
