"""«Serve a bundle» of the README, from an empty folder to a verdict over HTTPS, and the limits of the front."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from detect_ai.core.ray_runtime import free_port
from tests.fixtures import tiny_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "README.md").read_text(encoding="utf-8")
[BLOCK] = re.findall(r"^## Serve a bundle\n.*?```sh\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
REPOSITORY = "https://github.com/detect-ai/detect-ai"
START = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
OTHER_SITE = "detector.internal"


@dataclass
class Front:
    """The front proxy with its service, and the output of the last command of the block."""

    port: int
    key: str
    printed: str
    authority: Path

    def client(self) -> httpx.Client:
        """A client that verifies certificates and sends the API key."""
        context = ssl.create_default_context(cafile=str(self.authority))
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=f"https://localhost:{self.port}", verify=context, headers=headers, timeout=60)

    def connect(self) -> ssl.SSLSocket:
        """A connection with a completed handshake."""
        context = ssl.create_default_context(cafile=str(self.authority))
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), 30), server_hostname="localhost")


@pytest.fixture(scope="module")
def front(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder, port, inner = tmp_path_factory.mktemp("empty"), free_port(), free_port()
    block = BLOCK.replace("localhost:8443", f"localhost:{port}").replace('"$BUNDLE"', f'"$BUNDLE" serve.port={inner}')
    environment = {
        **{
            name: value for name, value in os.environ.items() if not name.startswith(("DETECT_AI", "PYTHON", "VIRTUAL"))
        },
        **{"BUNDLE": str(tiny_bundle), "HOME": str(folder), "XDG_DATA_HOME": f"{folder}/data"},
        **{"SITE": f"localhost:{port}, {OTHER_SITE}:{port}", "SERVICE": f"127.0.0.1:{inner}"},
        # Clone this checkout.
        **{"GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": f"url.{CHECKOUT}.insteadOf", "GIT_CONFIG_VALUE_0": REPOSITORY},
        **{"GIT_CONFIG_KEY_1": "safe.directory", "GIT_CONFIG_VALUE_1": "*"},
    }
    script = f'set -e\n{block}\necho; echo "key $key"; touch {folder}/done; wait'
    log, start = folder / "log", time.monotonic()
    with log.open("wb") as output:
        command = ["bash", "-c", script]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while not (folder / "done").exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() - start < 1700, log.read_text()
            time.sleep(0.2)
        print(f"from an empty folder to a verdict: {time.monotonic() - start:.0f} s")
        printed = log.read_text()
        [key] = re.findall(r"^key (dai_\w+.*)", printed, re.MULTILINE)
        yield Front(port, key, printed, folder / "data/caddy/pki/authorities/local/root.crt")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_the_block_prints_a_verdict(front: Front) -> None:
    start = front.printed.index('{"request_id"')  # a line of a log may follow
    answer, _ = json.JSONDecoder().raw_decode(front.printed, start)
    assert answer["verdicts"][0]["label"] in {"ai", "human", "uncertain"}


def test_certificate_and_key_are_checked(front: Front) -> None:
    body = {"text": str(tiny_models.rows(1)[0]["text"])}
    with front.client() as client:
        assert client.post("/v1/detect", json=body).status_code == 200
        refused = client.post("/v1/detect", json=body, headers={"Authorization": "Bearer dai_wrong"})
    assert (refused.status_code, refused.headers["Content-Type"]) == (401, "application/problem+json")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://localhost:{front.port}/readyz")


@pytest.mark.parametrize("path", ["/v1/admin/status", "/healthz", "/metrics", "/v1/detect/more"])
def test_other_paths_stay_inside(front: Front, path: str) -> None:
    with front.client() as client:
        response = client.get(path)
    assert (response.status_code, response.content) == (404, b"")


@pytest.mark.parametrize(("path", "size"), [("/v1/detect", 1_000_001), ("/v1/detect/file", 20_000_001)])
def test_large_bodies_are_refused(front: Front, path: str, size: int) -> None:
    """The service rejects them if they announce their length, the front proxy otherwise."""
    multipart = "multipart/form-data; boundary=b"
    headers = {"Content-Type": multipart if path.endswith("file") else "application/json"}
    with front.client() as client:
        announced = client.post(path, content=b" " * size, headers=headers)
        chunks = [START if path.endswith("file") else b"", *[b" " * 100_000] * (size // 100_000 + 2)]
        chunked = client.post(path, content=iter(chunks), headers=headers)
    assert (announced.status_code, chunked.status_code) == (413, 413)


def test_large_headers_are_refused(front: Front) -> None:
    with front.client() as client:
        assert client.get("/readyz", headers={"X-Long": "a" * 30_000}).status_code == 431


def test_a_slow_header_ends_the_connection(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n")
        assert connection.recv(1) == b""


def test_hsts_is_for_other_names_than_localhost(front: Front) -> None:
    other = {"Host": f"{OTHER_SITE}:{front.port}"}
    with front.client() as client:
        assert "Strict-Transport-Security" not in client.get("/readyz").headers
        response = client.get("/readyz", headers=other, extensions={"sni_hostname": OTHER_SITE})
    assert response.status_code == 200
    assert "max-age" in response.headers["Strict-Transport-Security"]
