"""Forms with files: from the body of a request to the body of its answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from detect_ai.core.config import ServeConfig
from detect_ai.schemas import FileOptions, FilesResponse, FileVerdict, Verdict
from detect_ai.text.normalize import Normalised, expanded_length, normalise
from serve_app.api.errors import ProblemError, invalid_request
from serve_app.engine.engine import Charge, EncodedRequest, Engine, Options
from serve_app.files.reader import SLACK, Upload

MAX_FIELDS = 16  # beside files
MAX_FIELD_BYTES = 100
MAX_NAME_CHARS = 255


class InMemoryParser(MultiPartParser):
    """Reads a form without writing a file to disk, whatever its size: the body is bounded already."""

    spool_max_size = 0  # never


async def read_form(request: Request, config: ServeConfig) -> tuple[list[Upload], FileOptions]:
    """The files and the options of a request.

    Raises:
        ProblemError: 400 for no form, 413 for too many files, 415 for another encoding than UTF-8, 422.
    """
    _, parameters = parse_options_header(request.headers["content-type"])
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise ProblemError(415, "Expected a form in UTF-8: leave `charset` out of the header `Content-Type`.")
    parser = InMemoryParser(
        request.headers,
        request.stream(),
        max_files=config.max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        if str(getattr(error, "message", "")).startswith("Too many files"):
            raise ProblemError(
                413, f"More than {config.max_files} files, at most {config.max_files} are read: send several requests."
            ) from None
        raise ProblemError(400, "The body is not valid multipart/form-data, parted by its `boundary`.") from None
    try:
        uploads = [Upload(file_name(each.filename or ""), await each.read()) for each in files_of(form)]
        return uploads, options_of(form)
    finally:
        await form.close()


def files_of(form: FormData) -> list[UploadFile]:
    """The files of a form. Raises ProblemError when there is none, or something else in their place."""
    found = [(name, value) for name, value in form.multi_items() if name == "files" or isinstance(value, UploadFile)]
    files = [value for name, value in found if name == "files" and isinstance(value, UploadFile)]
    if not found or len(files) < len(found):
        raise ProblemError(422, "`files`: expected one or more files, each a part of this name with a `filename`.")
    return files


def options_of(form: FormData) -> FileOptions:
    """The other fields of a form. Raises ProblemError for an unknown one, or a value of another kind."""
    fields = {name: value for name, value in form.multi_items() if name != "files"}
    try:
        return FileOptions.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False)) from None


def file_name(sent: str) -> str:
    """The name of a file without folders, of either system."""
    return PurePosixPath(PureWindowsPath(sent).name).name[:MAX_NAME_CHARS]


async def detect_files(
    engine: Engine, uploads: Sequence[Upload], options: FileOptions, request_id: str, caller: str, charge: Charge
) -> bytes:
    """The JSON of a FilesResponse. Raises ProblemError when the request as a whole is wrong."""
    started = time.perf_counter()
    engine.check_target(options.target_fpr)
    texts = await engine.files.texts(uploads)

    def encode() -> EncodedRequest:
        nonlocal texts
        normalised, texts = fit(texts, engine.config.max_chars)
        return engine.encode_normalised(
            [text for text in texts if isinstance(text, str)],
            normalised,
            Options(options.target_fpr, options.return_spans or options.explain, options.explain),
        )

    def respond(verdicts: list[Verdict]) -> bytes:
        response = FilesResponse(
            request_id=request_id,
            model_version=engine.detector.version,
            files=_entries(uploads, texts, verdicts, options.return_text, request_id),
            seconds=round(time.perf_counter() - started, 6),
        )
        return response.model_dump_json().encode()

    size = sum(len(text) for text in texts if isinstance(text, str))
    return await engine.run(encode, respond, size, caller, charge)


def fit(found: Sequence[str | ProblemError], max_chars: int) -> tuple[list[Normalised], list[str | ProblemError]]:
    """Texts normalised, in order, for as long as all together stay within a bound; the others become problems.

    No more than a few times the bound is normalised for it.
    """
    normalised: list[Normalised] = []
    fitting: list[str | ProblemError] = []
    chars, left = 0, SLACK * max_chars
    for text in found:
        if isinstance(text, str):
            num_chars, one = expanded_length(text), None
            if num_chars <= left:
                left -= num_chars
                one = normalise(text)
                num_chars = len(one.text)
            if one is not None and chars + num_chars <= max_chars:
                chars += num_chars
                normalised.append(one)
            else:
                text = too_long(num_chars, chars, max_chars)
        fitting.append(text)
    return normalised, fitting


def too_long(num_chars: int, before: int, max_chars: int) -> ProblemError:
    """What is said of a file that does not fit in with those before it."""
    others = f" after {before} of the files before it" if before else ""
    return ProblemError(
        413, f"The file has {num_chars} characters{others}, at most {max_chars} are read: send it alone or in parts."
    )


def _entries(
    uploads: Sequence[Upload],
    found: Sequence[str | ProblemError],
    verdicts: Sequence[Verdict],
    return_text: bool,
    request_id: str,
) -> list[FileVerdict]:
    remaining = iter(verdicts)
    entries = []
    for upload, text in zip(uploads, found, strict=True):
        if isinstance(text, str):
            told = text if return_text else None
            entry = FileVerdict(name=upload.name, num_chars=len(text), text=told, verdict=next(remaining))
        else:
            entry = FileVerdict(name=upload.name, num_chars=0, problem=text.problem(request_id))
        entries.append(entry)
    return entries
