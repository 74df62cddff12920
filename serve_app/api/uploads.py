"""File uploads: from the multipart form of a request to the verdicts of its files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from detect_ai.schemas import FileOptions, FilesResponse, FileVerdict, Label, Reason, Verdict
from detect_ai.text.normalize import Normalised, expanded_length, normalise
from serve_app.engine.engine import EncodedRequest, Engine, Options, RequestInfo
from serve_app.errors import ProblemError, invalid_request
from serve_app.files.reader import KINDS, MAX_FILES, SLACK, FileText, Upload

MAX_FIELDS = 16  # other than files
MAX_FIELD_BYTES = 100
MAX_NAME_CHARS = 255
MAX_HIDDEN_FRACTION = 0.05  # of the characters of a file: more hidden text makes its verdict uncertain
NO_FILES = "`files`: expected one or more files, each a part of this name with a `filename`."


async def read_form(request: Request) -> tuple[list[Upload], FileOptions]:
    """Parse the files and options of a request. Raises ProblemError: 400, 413, 415 or 422."""
    _, parameters = parse_options_header(request.headers["content-type"])
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise ProblemError(415, "Expected a form in UTF-8: leave `charset` out of the header `Content-Type`.")
    limits = {"max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD_BYTES}
    parser = MultiPartParser(request.headers, request.stream(), **limits)
    parser.spool_max_size = 0  # keep files in memory: the size of the body is limited already
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        problems = {
            "Too many files": (413, f"More than {MAX_FILES} files: send several requests."),
            "Too many fields": (422, f"More than {MAX_FIELDS} fields that are not files. {NO_FILES}"),
            "Part exceeded": (422, f"A field other than `files` has more than {MAX_FIELD_BYTES} bytes. {NO_FILES}"),
            "": (400, "The body is not valid multipart/form-data with its `boundary`."),
        }
        message = getattr(error, "message", "")
        raise ProblemError(*next(problems[start] for start in problems if message.startswith(start))) from None
    try:
        parts = form.multi_items()
        files = [value for name, value in parts if name == "files" and isinstance(value, UploadFile)]
        if not files or any(isinstance(value, UploadFile) != (name == "files") for name, value in parts):
            raise ProblemError(422, NO_FILES)
        uploads = [Upload(file_name(file.filename or ""), await file.read()) for file in files]
        return uploads, FileOptions.model_validate({name: value for name, value in parts if name != "files"})
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from None
    finally:
        await form.close()


def file_name(sent: str) -> str:
    """The name of a file without its directories, from Windows or Unix."""
    return PurePosixPath(PureWindowsPath(sent).name).name[:MAX_NAME_CHARS]


async def detect_files(engine: Engine, uploads: Sequence[Upload], options: FileOptions, request: RequestInfo) -> bytes:
    """The JSON of a FilesResponse. Raises ProblemError for an invalid request."""
    started = time.perf_counter()
    engine.check_target(options.target_fpr)
    files = await engine.files.texts(uploads, request.caller)
    for upload, file in zip(uploads, files, strict=True):
        result = "read" if isinstance(file, FileText) else file.reason
        engine.record("files", kind=KINDS.get(upload.suffix, "other"), result=result)

    def encode() -> EncodedRequest:
        nonlocal files
        normalised, files = fit(files, engine.config.max_chars)
        return engine.encode_normalised(
            [file.text for file in files if isinstance(file, FileText)],
            normalised,
            Options.of(options),
        )

    def respond(verdicts: list[Verdict]) -> bytes:
        read = [file for file in files if isinstance(file, FileText)]
        verdicts[:] = map(report_hidden, verdicts, read)  # in place: the engine counts the final verdicts
        remaining, entries = iter(verdicts), []
        for upload, file in zip(uploads, files, strict=True):
            entry = FileVerdict(name=upload.name, num_chars=0)
            if isinstance(file, FileText):
                entry.num_chars, entry.verdict = len(file.text), next(remaining)
                entry.text = file.text if options.return_text else None
            else:
                entry.problem = file.problem(request.id)
            entries.append(entry)
        seconds, version = round(time.perf_counter() - started, 6), engine.detector.version
        response = FilesResponse(request_id=request.id, model_version=version, files=entries, seconds=seconds)
        return response.model_dump_json().encode()

    size = sum(len(file.text) for file in files if isinstance(file, FileText))
    return await engine.run(encode, respond, size, request)


def fit(
    files: Sequence[FileText | ProblemError], max_chars: int
) -> tuple[list[Normalised], list[FileText | ProblemError]]:
    """Normalise files in order, up to `max_chars` in total; files that do not fit become problems."""
    normalised: list[Normalised] = []
    fitting: list[FileText | ProblemError] = []
    total, budget = 0, SLACK * max_chars
    for file in files:
        if isinstance(file, FileText):
            num_chars = expanded_length(file.text)
            result = normalise(file.text) if num_chars <= budget else None  # limits the time this takes
            if result is not None:
                budget -= num_chars
                num_chars = len(result.text)
            if result is not None and total + num_chars <= max_chars:
                total += num_chars
                normalised.append(result)
            else:
                before = f", the files before it {total}" if total else ""
                detail = f"The file has {num_chars} characters{before}; the limit is {max_chars}"
                file = ProblemError(413, f"{detail}: send it alone or split it.")
        fitting.append(file)
    return normalised, fitting


def report_hidden(verdict: Verdict, file: FileText) -> Verdict:
    """A verdict that counts hidden text as tampering, and is uncertain if there is much of it."""
    if not file.hidden:
        return verdict
    changes: dict[str, object] = {"tampering": {**verdict.tampering, "hidden": file.hidden}}
    if file.hidden > MAX_HIDDEN_FRACTION * (len(file.text) + file.hidden):
        changes |= {"label": Label.UNCERTAIN, "reasons": [*verdict.reasons, Reason.HIDDEN_TEXT]}
    return verdict.model_copy(update=changes)
