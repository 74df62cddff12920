"""The HTTP API and the pages: routes to the service, and errors in one shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from detect_ai import __version__
from detect_ai.schemas import DetectRequest, DetectResponse, ModelInfo, Problem
from serve_app.access import Gate
from serve_app.batching import ClosedError, QueueFullError
from serve_app.problems import MEDIA_TYPE, ProblemError
from serve_app.security import Guard
from serve_app.service import Service

WEB = Path(__file__).parent / "web"
RETRY_AFTER = {"Retry-After": "1"}
REQUEST_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": DetectRequest.model_json_schema()}}}
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
    for status, description in {
        400: "The body is not JSON in UTF-8",
        401: "No API key, or none that is valid",
        403: "The API key lacks the scope",
        413: "Too long, or too many texts",
        415: "Not application/json",
        422: "JSON of another shape, or a target that the model has no threshold for",
        429: "The API key is over its rate; try again after `Retry-After` seconds",
        500: "The detector failed",
        503: "Too busy; try again after `Retry-After` seconds",
    }.items()
}


def create_app(service: Service, gate: Gate) -> FastAPI:
    """The ASGI application of one replica."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        gate.start(service.config.keys_refresh_s)
        yield
        await gate.stop()
        await service.batcher.close()

    app = FastAPI(
        title="detect_ai",
        version=__version__,
        description="Does a text read as if AI wrote it? A verdict with the false positive rate it holds.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, gate=gate, max_body_bytes=service.config.max_body_bytes)
    app.add_exception_handler(HTTPException, http_problem)
    app.include_router(api_routes(service))
    add_pages(app)
    return app


def api_routes(service: Service) -> APIRouter:
    """Detection, and what tells the state of the service."""
    router = APIRouter()

    @router.post("/v1/detect", response_model=DetectResponse, responses=PROBLEMS, openapi_extra=REQUEST_BODY)
    async def detect(request: Request) -> Response:
        """Verdicts for one text or many, in their order."""
        return Response(await answer(service, request), media_type="application/json")

    @router.get("/v1/model", response_model=ModelInfo)
    async def model() -> ModelInfo:
        """The model that answers, its thresholds and limits."""
        return service.info()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive"}

    @router.get("/readyz", responses={503: PROBLEMS[503]})
    async def readyz() -> dict[str, str]:
        """Whether the model is loaded, warmed up and taking work."""
        if not service.batcher.alive:
            raise ProblemError(503, "The replica is not taking work: try again later.", RETRY_AFTER)
        return {"status": "ready", "model_version": service.detector.version}

    return router


async def answer(service: Service, request: Request) -> bytes:
    """The body of the answer to a detection request. Raises ProblemError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ProblemError(415, "Expected the header `Content-Type: application/json`.")
    seconds = service.config.request_timeout_s
    try:
        async with asyncio.timeout(seconds):
            return await service.detect(await request.body(), request.state.request_id, request.state.caller.spend)
    except TimeoutError:
        detail = f"No answer within {seconds:g} seconds: send less text at once, or try again later."
        raise ProblemError(503, detail, RETRY_AFTER) from None
    except QueueFullError as error:
        after = {"Retry-After": str(error.retry_after_s)}
        raise ProblemError(503, "Too many texts wait for the model: try again later.", after) from None
    except ClosedError:
        raise ProblemError(503, "The replica is shutting down: try again.", RETRY_AFTER) from None


async def http_problem(request: Request, error: Exception) -> Response:
    """Routing errors in the shape of all others; what was asked for is not repeated."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    known = {
        404: "No such path: expected /, /docs, /v1/detect, /v1/model, /healthz or /readyz.",
        405: f"Another method is expected here: {allowed}.",
    }
    detail = known.get(error.status_code, f"{error.detail}.")
    return ProblemError(error.status_code, detail, error.headers).response(request.state.request_id)


def add_pages(app: FastAPI) -> None:
    """The page at `/`, the API's own page at `/docs`, and all that they load: nothing comes from elsewhere."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(WEB / "docs.html")

    app.mount("/static", StaticFiles(directory=WEB))
    app.mount("/swagger-ui", StaticFiles(directory=str(files("fastapi_offline") / "static")))
