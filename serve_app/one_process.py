"""Serve one bundle in one process, without Ray: `detect-ai serve`."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detect_ai.core.compose import parse_config
from detect_ai.core.config import ANY_DOMAIN, Config, check_names
from detect_ai.core.errors import ConfigError
from detect_ai.core.ray_runtime import cores, require_free_port
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.registry import Registry
from serve_app.api.app import create_app
from serve_app.auth.api_keys import checked_keys
from serve_app.auth.rate_limit import local_limiter
from serve_app.engine.metrics import discard, start_exporter
from serve_app.service import build_service

# Settings in `serve` that apply only to deployments on a cluster.
OF_CLUSTERS = {
    *("version", "canary", "canary_fraction", "min_replicas", "max_replicas", "downscale_delay_s"),
    *("cpus_per_replica", "node_resource", "memory_gb", "tracing", "deploy"),
}
KEEP_ALIVE_S = 75
SEND_S = 10  # to send responses, after the timeout of the last request


def serve(given: str, root: str, metrics_port: int | None = None, overrides: Sequence[str] = ()) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress are answered first.

    Args:
        given: a bundle folder, or a version in the registry; empty: the champion.
        root: the storage root: registry, API keys, prediction log.
        metrics_port: a loopback port for Prometheus.
        overrides: settings such as `serve.port=8080` and `monitoring.log=true`.

    Raises ConfigError, BundleError, RegistryError, or ResourceError when a port is taken.
    """
    config = settings(root, overrides)
    storage, serve = Storage(config.storage.root), config.serve
    version, bundle_of = find_bundle(given, storage)
    with bundle_of(version) as folder:
        spec = bundle.read_spec(folder)
    if serve.abstain_domains:
        check_names("serve.abstain_domains", serve.abstain_domains, (ANY_DOMAIN, *spec.calibration.named_domains))
    keys = checked_keys(serve, storage)
    require_free_port(serve.host, serve.port)
    if metrics_port:
        require_free_port("127.0.0.1", metrics_port)
    record = start_exporter(metrics_port) if metrics_port else discard
    service = build_service(bundle_of, version, serve, config.monitoring, storage, keys, local_limiter(), record)
    app = create_app(service.versions, service.access, service.feedback, stamp_request_id=True)
    server = Server(
        uvicorn.Config(
            Disconnects(app),
            host=serve.host,
            port=serve.port,
            http="h11",  # limits request headers to 64 KiB
            lifespan="on",
            log_config=None,
            access_log=False,  # the application has one of its own
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(serve.request_timeout_s) + SEND_S,
        ),
        f"Serving version {spec.version} at {serve.url} (API: {serve.url}/docs). Press Ctrl-C to stop.",
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # the server raises them again when it has ended
        signal.signal(number, lambda *_: None)
    server.run()


def settings(root: str, overrides: Sequence[str]) -> Config:
    """The configuration of one process, which uses all cores. Raises ConfigError."""
    # Larger batches gain nothing on a CPU and delay new requests.
    values: dict[str, Any] = {"serve": {"max_replicas": 1, "threads_per_replica": cores(), "batch_tokens": 2048}}
    if root:
        values["storage"] = {"root": root}
    for override in overrides:
        key, _, value = override.partition("=")
        section, *names = key.split(".")
        if section not in ("serve", "monitoring") or not all(names) or not names or key == override:
            raise ConfigError(f"{override}: expected serve.KEY=VALUE or monitoring.KEY=VALUE")
        if section == "serve" and names[0] in OF_CLUSTERS:
            raise ConfigError(
                f"{key}: this is a setting of deployments on a Ray cluster (jobs/deploy.py): leave it out"
            )
        place = values.setdefault(section, {})
        for name in names[:-1]:
            place = place.setdefault(name, {})
        try:
            place[names[-1]] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{override}: expected a value in YAML, such as true, 8080 or [news]") from error
    return parse_config(values)


def find_bundle(given: str, storage: Storage) -> tuple[str, Callable[[str], AbstractContextManager[Path]]]:
    """The version to serve (empty for a bundle outside the registry), and a function that opens its folder."""
    if "://" in given:
        place, key = Storage.around(given)
        return "", lambda _: place.local_folder(key)
    if "/" in given or Path(given or "-").is_dir():
        return "", lambda _: nullcontext(Path(given))
    registry = Registry(storage)
    return given or registry.require_champion(), registry.folder


class Server(uvicorn.Server):
    """A server that prints a message when it accepts requests."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening."""
        await super().startup(sockets)
        if self.started:
            print(self.ready, flush=True)  # noqa: T201 - the output of a command


class Disconnects:
    """ASGI middleware that cancels a request whose client has disconnected, as Ray Serve does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        task, watcher, left, answered = asyncio.current_task(), None, False, False
        assert task is not None

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            if not answered:  # the server also reports this after a whole response
                left = True
                task.cancel()

        async def send_and_note(message: Message) -> None:
            nonlocal answered
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        async def receive_and_watch() -> Message:
            nonlocal watcher
            message = await receive()
            if scope["type"] == "http" and not message.get("more_body") and watcher is None:  # the body has ended
                watcher = asyncio.create_task(watch())
            return message

        try:
            await self.app(scope, receive_and_watch, send_and_note)
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
        finally:
            if watcher is not None:
                watcher.cancel()
