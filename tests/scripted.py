"""A real HTTP server on loopback that answers as a test tells it, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from detect_ai.schemas import Verdict

LIMITS = {"max_texts": 3, "max_chars": 1000, "max_body_bytes": 10_000, "max_files": 2, "max_upload_bytes": 10_000}


class Asked(NamedTuple):
    """A request as it came, with when."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


@dataclass
class Reply:
    """A response. `content` is JSON, unless it is bytes."""

    content: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """Where it answers, and what it was asked so far."""

    url: str
    asked: list[Asked]

    def paths(self) -> list[str]:
        """The paths that were asked for."""
        return [each.path for each in self.asked]


@contextlib.contextmanager
def serving(answer: Callable[[Asked], Reply | None]) -> Iterator[Server]:
    """A server. Where `answer` gives None, the connection is closed without a word."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(Asked(self.command, self.path, dict(self.headers), body, time.monotonic()))
            reply = answer(asked[-1])
            if reply is None:
                self.close_connection = True
                return
            content = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
            self.send_response(reply.status)
            for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_any  # noqa: N815 - names that the base class looks for

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def verdict(text: str, **changes: Any) -> dict[str, Any]:
    """A verdict as JSON; `num_tokens` is the length of the text, so that an answer tells which text it is for."""
    values: dict[str, Any] = {
        "label": "human",
        "probability": 0.2,
        "prevalence": 0.5,
        "target_fpr": 0.05,
        "threshold": 0.9,
        "p_value": 0.4,
        "num_compared": 40,
        "fpr_upper_bound": 0.1,
        "reasons": [],
        "tampering": {},
        "num_tokens": len(text),
        "num_windows": 1,
        "model_version": "v1",
    }
    return Verdict.model_validate({**values, **changes}).model_dump(mode="json")


def problem(status: int, detail: str = "the reason", **headers: str) -> Reply:
    """A problem document."""
    content = {"title": "Problem", "status": status, "detail": detail, "request_id": "r1"}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(content, status, {"Content-Type": "application/problem+json", **names})


def service(asked: Asked) -> Reply:
    """What the real service would say, by its contracts."""
    path = asked.path.partition("?")[0]
    if path == "/v1/model":
        return Reply(MODEL)
    if path == "/readyz":
        return Reply({"status": "ready", "model_version": "v1"})
    if path == "/v1/detect/stream":
        return streamed({"verdict": verdict(json.loads(line)["text"])} for line in lines_of(asked))
    texts = json.loads(asked.body)["texts"]
    if len(texts) > LIMITS["max_texts"]:
        return problem(413)
    return Reply({**ANSWER, "verdicts": [verdict(text) for text in texts]})


def lines_of(asked: Asked) -> list[bytes]:
    """The lines of a stream."""
    return asked.body.splitlines()


def streamed(answers: Iterable[dict[str, Any]]) -> Reply:
    """The answer to a stream."""
    lines = [json.dumps({"line": i, "id": None, **answer}) for i, answer in enumerate(answers, 1)]
    return Reply("\n".join(lines).encode(), headers={"Content-Type": "application/x-ndjson"})


ANSWER = {"request_id": "r1", "model_version": "v1", "seconds": 0.01}
MODEL = {
    "model_version": "v1",
    "base_model": "tiny",
    "corpus": {"name": "made"},
    "language": "en",
    "prevalence": 0.5,
    "default_target_fpr": 0.05,
    "thresholds": [
        {"target_fpr": 0.05, "probability": 0.9, "expected_fpr": 0.05, "fpr_upper_bound": 0.1, "min_tokens": 10}
    ],
    "num_human": 40,
    "min_tokens": 10,
    "window": 64,
    "normaliser_version": 1,
    "limits": LIMITS,
    "guarantee": "On average.",
}
