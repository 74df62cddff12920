"""The HTTP API and the pages: routes to the service, and errors in one shape."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.responses import Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detect_ai import __version__
from detect_ai.core.config import LOOPBACK
from detect_ai.schemas import DetectResponse, FilesResponse, LabelScore, ModelInfo
from serve_app.api import openapi, stream
from serve_app.api.admin import admin_routes
from serve_app.api.errors import RETRY_AFTER, ProblemError, late
from serve_app.api.middleware import Guard
from serve_app.api.pages import add_pages
from serve_app.api.stream import StreamResponse
from serve_app.auth.access import ANYBODY, AccessControl
from serve_app.engine.batcher import ClosedError, QueueFullError
from serve_app.engine.engine import Service
from serve_app.engine.metrics import Telemetry
from serve_app.engine.versions import Traffic
from serve_app.files.uploads import judge_files, read_form

PATHS = "/, /docs, /card, /v1/detect, /v1/detect/file, /v1/detect/stream, /v1/model, /predict, /healthz or /readyz"


def create_app(traffic: Traffic, access: AccessControl, telemetry: Telemetry | None = None) -> FastAPI:
    """The ASGI application of one replica."""
    config = traffic.main.config

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        traffic.start()
        access.start(config.keys_refresh_s)
        yield
        await access.stop()
        await traffic.close()

    app = FastAPI(
        title="detect_ai",
        version=__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it complains with characters of the body
    app.add_middleware(
        Guard,
        access=access,
        telemetry=telemetry or Telemetry(),
        max_body_bytes=config.max_body_bytes,
        other_bounds={"/v1/detect/file": config.max_upload_bytes, "/v1/detect/stream": None},
        hosts=LOOPBACK if config.is_local and not access.requires_keys else None,
        cors_origins=config.cors_origins,
    )
    app.add_middleware(Stamp, model_version=traffic.main.detector.version)
    if config.cors_origins:  # outermost: browsers ask for leave without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Retry-After", "Server-Timing", "X-Model-Version", "X-Request-ID"],
        )
    app.add_exception_handler(HTTPException, http_problem)
    needs = (
        [Security(openapi.BEARER)] if access.requires_keys else []
    )  # for the description: the middleware has checked it
    app.include_router(detect_routes(traffic), dependencies=needs)
    app.include_router(state_routes(traffic, access))
    app.include_router(model_route(traffic), dependencies=needs)
    app.include_router(admin_routes(traffic, access), dependencies=needs)
    add_pages(app, traffic.main.card)
    return app


class Stamp:
    """ASGI middleware that says on every response which model answered and how long that took until then.

    Args:
        app: what it stamps.
        model_version: of the model that answers where no route chose another.
    """

    def __init__(self, app: ASGIApp, model_version: str) -> None:
        self.app = app
        self.model_version = model_version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stamp one response."""
        started = time.perf_counter()

        async def send_stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Model-Version"] = scope["state"].get("model_version", self.model_version)
                headers["Server-Timing"] = f"replica;dur={1000 * (time.perf_counter() - started):.1f}"
            await send(message)

        await self.app(scope, receive, send_stamped)


def detect_routes(traffic: Traffic) -> APIRouter:
    """Detection: of texts, of files, of a stream, and in the form of Hugging Face."""
    router = APIRouter()

    def chosen(request: Request) -> Service:
        """The version that answers a request."""
        caller = request.state.caller.name
        service = traffic.of(request.state.request_id if caller == ANYBODY else caller)
        request.state.model_version = service.detector.version
        return service

    @router.post("/v1/detect", response_model=DetectResponse, **openapi.DETECT)
    async def detect(request: Request) -> Response:
        """Verdicts for one text or many, in their order."""
        expect_type(request, "application/json")
        service, state = with_room(chosen(request), request), request.state

        async def answer() -> bytes:
            return await service.detect(await request.body(), state.request_id, state.caller.charge)

        return Response(await in_time(service, answer()), media_type="application/json")

    @router.post("/v1/detect/file", response_model=FilesResponse, **openapi.FILES)
    async def detect_file(request: Request) -> Response:
        """Verdicts for the texts in files, in their order.

        Text and Markdown in UTF-8, Word documents (.docx) and PDFs with text in them. Of a Word document the text is
        read, not headers, footers, notes and comments. What is wrong with one file stands in its entry, as a
        `problem` in place of a `verdict`, and the others are judged all the same; a request that is wrong as a whole
        is refused.
        """
        expect_type(request, "multipart/form-data")
        service, state = with_room(chosen(request), request), request.state

        async def answer() -> bytes:
            with service.files.held(announced(request) or service.config.max_upload_bytes):
                uploads, options = await read_form(request, service.config)
                return await judge_files(service, uploads, options, state.request_id, state.caller.charge)

        return Response(await in_time(service, answer()), media_type="application/json")

    @router.post("/v1/detect/stream", response_class=StreamResponse, status_code=200, **openapi.STREAM)
    async def detect_stream(request: Request) -> Response:
        """Verdicts for as many texts as you like: a line of JSON for each, in their order, as soon as it is ready.

        Whatever is wrong with one line is the `problem` of that line, and the stream goes on. Read answers while you
        send: when more than `stream_backlog_bytes` came ahead of their answers, the stream ends with a problem. It
        ends so, too, when it takes longer than a minute (by default), unless the header `X-Request-Timeout-Seconds`
        gives it more time (0: no bound). The last line then says from which line on to send again.
        """
        expect_type(request, *stream.MEDIA_TYPES)
        service, state = chosen(request), request.state
        wanted = stream.options_of(request.query_params)
        service.check_target(wanted.target_fpr)
        if service.open_streams >= service.config.max_streams:
            raise ProblemError(503, f"{service.open_streams} streams are open already: try again later.", RETRY_AFTER)
        seconds = stream.seconds_allowed(request.headers, service.config)
        return StreamResponse(service, wanted, state.request_id, seconds, state.caller)

    @router.post("/predict", response_model=list[list[LabelScore]], **openapi.PREDICT)
    async def predict(request: Request) -> Response:
        """Probabilities in the form of Hugging Face's text classification.

        For clients that speak that form, such as `huggingface_hub.InferenceClient("…/predict")`. It has no word for
        `uncertain`: for a verdict ask `/v1/detect`.
        """
        expect_type(request, "application/json")
        service = with_room(chosen(request), request)

        async def answer() -> bytes:
            return await service.predict(await request.body(), request.state.caller.charge)

        return Response(await in_time(service, answer()), media_type="application/json")

    return router


def model_route(traffic: Traffic) -> APIRouter:
    """What the model is."""
    router = APIRouter()

    @router.get("/v1/model", response_model=ModelInfo, responses=openapi.MODEL)
    async def model() -> ModelInfo:
        """The model that answers, its thresholds and limits."""
        return traffic.main.info()

    return router


def state_routes(traffic: Traffic, access: AccessControl) -> APIRouter:
    """What tells the state of the service."""
    router, service = APIRouter(), traffic.main

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @router.get("/readyz", responses={503: openapi.PROBLEMS[503]})
    async def readyz() -> dict[str, str]:
        """Whether the model is loaded, warmed up and taking work."""
        if not traffic.alive:
            raise ProblemError(503, "The replica is not taking work: try again later.", RETRY_AFTER)
        state = {"status": "ready", "model_version": service.detector.version}
        if seconds := access.seconds_stale:
            state["detail"] = f"API keys were last read {seconds:.0f} seconds ago: revoked keys may still be valid"
        return state

    return router


def expect_type(request: Request, *media_types: str) -> None:
    """Raise ProblemError for a body of another type."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in media_types:
        raise ProblemError(415, f"Expected the header `Content-Type: {media_types[0]}`.")


def with_room(service: Service, request: Request) -> Service:
    """The service, unless so much waits that this request would come too late. Raises ProblemError."""
    try:
        service.require_room(announced(request))
    except QueueFullError as error:
        raise busy(error) from None
    return service


def announced(request: Request) -> int:
    """Bytes of the body by its head, 0 where it does not say."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdigit() else 0


def busy(error: QueueFullError) -> ProblemError:
    """The refusal of what would wait too long."""
    after = {"Retry-After": str(error.retry_after_s)}
    return ProblemError(503, "Too many texts wait for the model: try again later.", after)


async def in_time(service: Service, answer: Awaitable[bytes]) -> bytes:
    """An answer, within the time that a request may take, the coming of its body included. Raises ProblemError."""
    seconds = service.config.request_timeout_s
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise late(seconds) from None
    except QueueFullError as error:
        raise busy(error) from None
    except ClosedError:
        raise ProblemError(503, "The replica is shutting down: try again.", RETRY_AFTER) from None


async def http_problem(request: Request, error: Exception) -> Response:
    """Routing errors in the shape of all others; what was asked for is not repeated."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    known = {
        404: f"No such path: expected {PATHS}.",
        405: f"Another method is expected here: {allowed}.",
    }
    detail = known.get(error.status_code, f"{error.detail}.")
    return ProblemError(error.status_code, detail, error.headers).response(request.state.request_id)
