"""FastAPI application of a replica: detection, model information, health and status routes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Security, params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field, TypeAdapter
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from detect_ai import __version__
from detect_ai.core.errors import ConfigError
from detect_ai.detector.model_info import model_info
from detect_ai.monitoring.feedback import Feedback
from detect_ai.monitoring.prediction_log import PredictionLog
from detect_ai.schemas import (
    DetectRequest,
    DetectResponse,
    FeedbackRequest,
    FeedbackResponse,
    FileOptions,
    FilesResponse,
    Label,
    LabelScore,
    ModelInfo,
    PredictRequest,
    Problem,
    Verdict,
)
from serve_app.api.middleware import Guard
from serve_app.api.pages import add_pages
from serve_app.api.uploads import detect_files, read_form
from serve_app.auth.access import ADMIN, ANYBODY, FEEDBACK, STALE_S, AccessControl
from serve_app.auth.api_keys import REFRESH_S, Scope
from serve_app.engine.batcher import ClosedError
from serve_app.engine.engine import Charge, Engine, Options, RequestInfo
from serve_app.engine.metrics import Record
from serve_app.engine.versions import Versions
from serve_app.errors import MEDIA_TYPE, RETRY_AFTER, ProblemError, QueueFullError, http_problem, validation_problem
from serve_app.files.reader import FILE_LIMITS

logger = logging.getLogger("ray.serve")

LIMITS = ("max_texts", "max_chars", "max_tokens", "max_body_bytes", "max_upload_bytes")
DESCRIPTION = (
    "Estimates whether a text was written by AI, at a stated false positive rate. Every response carries "
    "`X-Request-ID`, `X-Model-Version` and `Server-Timing`; errors are `application/problem+json` (RFC 9457) and never "
    "repeat a part of a text. 429 and 503 carry `Retry-After`."
)
PREDICTIONS = TypeAdapter(list[list[LabelScore]])
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
    for status, description in (("4XX", "The request is refused"), ("5XX", "The service cannot respond now"))
}


class KeyInfo(BaseModel):
    """An API key without its secret."""

    id: str
    name: str
    scopes: list[str]


class Status(BaseModel):
    """State of the replica that responds."""

    pid: int
    uptime_s: float
    model_version: str
    canary: str | None = Field(description="Version that serves a fraction of the callers")
    canary_fraction: float
    abstain_domains: list[str] = Field(description="Kinds of writing without verdicts at present")
    waiting_tokens: int = Field(description="Tokens that wait for the model")
    keys: list[KeyInfo]


@asynccontextmanager
async def lifespan(
    versions: Versions, access: AccessControl, feedback: Feedback | None, _: FastAPI
) -> AsyncIterator[None]:
    """Start the background tasks of a replica; stop them when its requests are answered."""
    main = versions.main

    async def report() -> None:
        while True:
            versions.report()
            main.record("keys_age_seconds", access.keys_age_s)
            await asyncio.sleep(REFRESH_S)

    versions.start()
    if main.log:
        main.log.start()
    tasks = [asyncio.create_task(access.refresh(REFRESH_S)), asyncio.create_task(report())]
    if feedback:
        tasks.append(asyncio.create_task(report_budget(versions, feedback)))
    yield
    for task in tasks:
        task.cancel()
    await versions.close()
    if main.log:
        await asyncio.to_thread(main.log.close)


def create_app(
    versions: Versions, access: AccessControl, feedback: Feedback | None = None, stamp_request_id: bool = False
) -> FastAPI:
    """The ASGI application of one process; it accepts labels if it has a prediction log and `feedback`.

    Set `stamp_request_id` where no Ray Serve proxy adds `X-Request-ID` to responses.
    """
    main, config = versions.main, versions.main.config
    app = FastAPI(
        title="detect_ai",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=partial(lifespan, versions, access, feedback),
        responses=PROBLEMS,
        exception_handlers={HTTPException: http_problem, RequestValidationError: validation_problem},
        # FastAPI's own spans and logs include query strings and error messages, which may contain text.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs characters of the body
    version = main.detector.version
    guard: dict[str, Any] = {"access": access, "record": main.record, "config": config, "model_version": version}
    app.add_middleware(Guard, **guard, stamp_request_id=stamp_request_id)
    if config.cors_origins:  # outermost: preflight requests carry no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Retry-After", "Server-Timing", "X-Model-Version", "X-Request-ID"],
        )
    # For the OpenAPI description only: the middleware has checked the key already.
    needs_key = [Security(HTTPBearer(auto_error=False))] if access.requires_keys else []
    app.include_router(text_routes(versions), dependencies=needs_key)
    app.include_router(file_routes(versions), dependencies=needs_key)
    app.include_router(state_routes(versions, access, needs_key))
    if main.log and feedback:
        app.include_router(feedback_routes(main.log, feedback), dependencies=needs_key)
    add_pages(app, main.card, main.log.config.text_days if main.log else 0)
    return app


def bounded_route(versions: Versions, media_type: str) -> type[APIRoute]:
    """A route class that accepts one media type, checks a request before its body is read, and limits its duration."""
    seconds = versions.main.config.request_timeout_s

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                headers, state, caller = request.headers, request.state, request.state.caller.name
                versions.main.record("key_requests", key=caller)
                if headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
                    raise ProblemError(415, f"Expected the header `Content-Type: {media_type}`.")
                if headers.get("content-encoding", "identity").strip().lower() != "identity":
                    detail = "Compressed bodies are not supported: leave out the header `Content-Encoding`."
                    raise ProblemError(415, detail, {"Accept-Encoding": "identity"})
                length = headers.get("content-length", "")
                state.num_bytes = int(length) if length.isdigit() else 0  # 0: unknown
                state.engine = versions.choose(state.request_id if caller == ANYBODY else caller)
                state.model_version = state.engine.detector.version
                # Caller for fair queueing: the API key or, without keys, the connection.
                queue = ":".join(map(str, request.client)) if caller == ANYBODY and request.client else caller
                state.info = RequestInfo(state.request_id, queue, metered(state, versions.main.record))
                try:
                    state.engine.require_room(state.num_bytes, queue)
                    async with asyncio.timeout(seconds):
                        return await handle(request)
                except TimeoutError:
                    detail = f"No response within {seconds:g} seconds: send less text at once, or try again later."
                    raise ProblemError(503, detail, RETRY_AFTER, "timeout") from None
                except QueueFullError as error:
                    retry = {"Retry-After": str(error.retry_after_s)}
                    raise ProblemError(503, "The queue is full: try again later.", retry, "queue") from None
                except ClosedError:
                    raise ProblemError(503, "The replica is shutting down: try again.", RETRY_AFTER) from None

            return bounded

    return BoundedRoute


def metered(state: State, record: Record) -> Charge:
    """A function that counts the tokens the model reads for a request and charges them to its key's rate limit."""

    def count(tokens: int) -> None:
        if tokens > 0:  # negative numbers are refunds
            state.tokens = tokens
            record("key_tokens", tokens, key=state.caller.name)
        state.caller.charge(tokens)

    return count


async def json_response(versions: Versions, request: Request, work: Callable[[Engine], Awaitable[bytes]]) -> Response:
    """The response of the version chosen for a request."""
    content, engine = await versions.run(request.state.engine, work)
    request.state.model_version = engine.detector.version
    return Response(content, media_type="application/json")


def text_routes(versions: Versions) -> APIRouter:
    """Detection for texts in JSON."""
    router = APIRouter(route_class=bounded_route(versions, "application/json"))

    async def detect_texts(
        request: Request, texts: list[str], options: Options, respond: Callable[[list[Verdict]], bytes]
    ) -> Response:
        size = sum(map(len, texts))

        def work(engine: Engine) -> Awaitable[bytes]:
            return engine.run(lambda: engine.encode(texts, options), respond, size, request.state.info)

        return await json_response(versions, request, work)

    @router.post("/v1/detect", response_model=DetectResponse)
    async def detect(request: Request, body: DetectRequest) -> Response:
        """Verdicts for one or more texts, in the same order."""
        started, id_ = time.perf_counter(), request.state.request_id

        def respond(verdicts: list[Verdict]) -> bytes:
            seconds, version = round(time.perf_counter() - started, 6), verdicts[0].model_version
            response = DetectResponse(request_id=id_, model_version=version, verdicts=verdicts, seconds=seconds)
            return response.model_dump_json().encode()

        return await detect_texts(request, body.all_texts(), Options.of(body), respond)

    @router.post("/predict", response_model=list[list[LabelScore]])
    async def predict(request: Request, body: PredictRequest) -> Response:
        """Probabilities in the format of Hugging Face's text classification.

        For clients such as `huggingface_hub.InferenceClient("…/predict")`. The format has no label for abstaining:
        `ai` ranks first only where the verdict is `ai`; otherwise its score is at most 0.5.
        """

        def respond(verdicts: list[Verdict]) -> bytes:
            top_k = 1 if body.parameters.return_all_scores is False else body.parameters.top_k
            return PREDICTIONS.dump_json([labels(verdict)[:top_k] for verdict in verdicts])

        return await detect_texts(request, body.all_texts(), Options(), respond)

    return router


def labels(verdict: Verdict) -> list[LabelScore]:
    """Both labels by score. Without the verdict `ai`, the score of `ai` is capped so that `human` ranks first."""
    ai = verdict.probability if verdict.label == "ai" else min(verdict.probability, 0.5)
    both = [LabelScore(label="human", score=1 - ai), LabelScore(label="ai", score=ai)]
    return sorted(both, key=lambda label: -label.score)


def file_routes(versions: Versions) -> APIRouter:
    """Detection for uploaded files."""
    router = APIRouter(route_class=bounded_route(versions, "multipart/form-data"))
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    form = FileOptions.model_json_schema() | {"required": ["files"]}
    form["properties"] = {"files": files, **form["properties"]}
    body = {"required": True, "content": {"multipart/form-data": {"schema": form}}}

    @router.post("/v1/detect/file", response_model=FilesResponse, openapi_extra={"requestBody": body})
    async def detect_file(request: Request) -> Response:
        """Verdicts for the texts of files, in the same order.

        Text and Markdown in UTF-8, Word documents (.docx) and PDFs that contain text. Headers, footers, notes and
        comments of Word documents are not read. A file that cannot be read has a `problem` instead of a `verdict`; the
        other files are not affected.
        """
        state, main = request.state, versions.main

        def work(engine: Engine) -> Awaitable[bytes]:
            return detect_files(engine, uploads, options, state.info)

        with main.files.held(state.num_bytes or main.config.max_upload_bytes, state.info.caller):
            uploads, options = await read_form(request)
            return await json_response(versions, request, work)

    return router


def feedback_routes(log: PredictionLog, feedback: Feedback) -> APIRouter:
    """Labels for texts that the service has evaluated."""
    router = APIRouter()

    @router.post(FEEDBACK)
    def give_feedback(request: Request, body: FeedbackRequest) -> FeedbackResponse:
        """Report who wrote a text of an earlier request. Needs a key with the scope `feedback` or `audit`.

        Each key has one vote per text: the last one it sends. A text can be labelled a few seconds after its verdict.
        """
        predictions, caller = log.find(body.request_id, body.index), request.state.caller
        if not predictions:
            detail = "No text of this request_id and index is in the log: it may be erased, or older than the log."
            raise ProblemError(404, detail)
        if len(predictions) > 1:
            detail = "Several requests had this request_id: leave X-Request-ID to the service, or never repeat one."
            raise ProblemError(409, detail)
        try:
            audited, conflict = feedback.vote(
                predictions[0], caller.name, Label(body.label), may_audit=Scope.AUDIT in caller.scopes
            )
        except ConfigError:  # its message is for the operator and is logged
            detail = "The database of labels does not answer: try again later."
            raise ProblemError(503, detail, RETRY_AFTER, "database") from None
        return FeedbackResponse(request_id=body.request_id, audited=audited, conflict=conflict)

    return router


async def report_budget(versions: Versions, feedback: Feedback) -> None:
    """Record the spent budget of the loaded versions; repeat the last known values while the database is down."""
    spent: dict[str, float] = {}
    while True:
        try:
            budgets = await asyncio.to_thread(feedback.budgets)
            loaded = [engine.detector.version for engine in versions.engines]
            spent = {version: budgets[version]["spent"] if version in budgets else 0.0 for version in loaded}
        except ConfigError as error:
            logger.error("Labels cannot be recorded: %s", error)
        for version, value in spent.items():
            versions.main.record("accusation_budget_spent", value, model_version=version)
        await asyncio.sleep(REFRESH_S)


def state_routes(versions: Versions, access: AccessControl, needs_key: Sequence[params.Security]) -> APIRouter:
    """The model and the state of the replica; liveness and readiness need no key."""
    router, started = APIRouter(), time.monotonic()

    @router.get("/v1/model", dependencies=needs_key)
    async def model() -> ModelInfo:
        """The deployed model, its thresholds and limits."""
        limits = {name: getattr(versions.main.config, name) for name in LIMITS}
        return model_info(versions.main.detector.spec, limits | FILE_LIMITS)

    @router.get(f"{ADMIN}status", dependencies=needs_key)
    async def status() -> Status:
        """The replica that responds. Needs a key with the scope `admin`."""
        valid = [key for key in access.ring.keys.values() if key.is_valid]
        return Status(
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - started, 1),
            model_version=versions.main.detector.version,
            canary=versions.canary.detector.version if versions.canary else None,
            canary_fraction=versions.canary_fraction,
            abstain_domains=sorted(versions.main.abstain_domains),
            waiting_tokens=sum(engine.batcher.waiting_tokens for engine in versions.engines),
            keys=[KeyInfo(id=key.id, name=key.name, scopes=sorted(key.scopes)) for key in valid],
        )

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "alive"}

    @router.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether the model is loaded, warmed up and accepts requests."""
        if not versions.main.batcher.alive:
            raise ProblemError(503, "The replica does not accept requests: try again later.", RETRY_AFTER)
        state = {"status": "ready", "model_version": versions.main.detector.version}
        if (age := access.keys_age_s) > STALE_S:
            state["detail"] = f"API keys were last read {age:.0f} seconds ago: revoked keys may still be valid"
        return state

    return router
