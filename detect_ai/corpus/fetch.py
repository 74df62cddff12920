"""Stage `fetch`: download published data sets at pinned commits and write the folders that a corpus reads.

Files are kept under `<fetch.data>/downloads` by sha256, so an interrupted run resumes with the missing files.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import tenacity

from detect_ai.core.compose import CONFIG_DIR
from detect_ai.core.config import Config, check_names
from detect_ai.core.errors import ConfigError, CorpusError
from detect_ai.core.storage import Storage, parquet
from detect_ai.corpus.converters import PUBLISHED_SCHEMA, check_counts, published_rows
from detect_ai.corpus.published import PublishedFile, PublishedFolder, PublishedSource, load_folders, load_sources

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 << 20
MAX_ATTEMPTS = 4
TIMEOUT_S = 60
_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=8)


class _TransientError(CorpusError):
    """A failed download that may succeed on retry."""


def fetch(config: Config, storage: Storage) -> dict[str, Any]:
    """Download, check and convert the published sources of a corpus."""
    settings = config.fetch
    data = Storage(settings.data)
    descriptions = Path(settings.sources) if settings.sources else CONFIG_DIR / "sources"
    described = load_sources(descriptions)
    check_names("fetch.only", settings.only, [source.name for source in described])
    wanted, undescribed = _wanted_folders(config, {source.folder for source in described})
    chosen = [s for s in described if (s.name in settings.only if settings.only else s.folder in wanted)]
    if not chosen:
        folders = ", ".join(sorted({source.folder for source in described}))
        raise ConfigError(f"corpus={config.corpus.name}: expected a corpus that reads {data.root}/… one of {folders}")
    for folder in undescribed:
        logger.warning("fetch: no source is described for %s, which the corpus reads", folder)
    common = {"data": data.root, "not_described": undescribed}
    if settings.dry_run:
        measured = _folders(load_folders(descriptions), described)
        return common | {"folders": measured, "sources": [_description(source) for source in chosen]}
    done: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
        for source in chosen:
            try:
                done.append(_fetch_source(source, config, data, client))
            except (CorpusError, OSError) as error:
                # An OSError of the file system names a path; neither kind contains document text.
                failed[source.name] = f"{error}"
                logger.error("fetch: %s: %s", source.name, failed[source.name])
    if failed:
        reasons = "; ".join(failed.values())
        raise CorpusError(f"{len(failed)} of {len(chosen)} sources failed, the others are complete: {reasons}")
    return common | {"sources": done}


def _wanted_folders(config: Config, described: set[str]) -> tuple[set[str], list[str]]:
    """The described folders under `fetch.data` that the corpus reads, and those it reads that no source describes."""
    root = Path(config.fetch.data).expanduser().absolute()
    paths = [Path(s.path).expanduser().absolute() for s in config.corpus.sources if s.path and "://" not in s.path]
    folders = {path.relative_to(root).parts[0] for path in paths if root in path.parents}
    return folders & described, sorted(folders - described)


def _folders(measured: dict[str, PublishedFolder], sources: list[PublishedSource]) -> list[dict[str, Any]]:
    """For each folder of the measured corpora: numbers of texts, how many of them are described, missing sources."""
    return [
        {
            "folder": name,
            "complete": not folder.missing,
            **folder.model_dump(),
            "described_human": sum(source.rows.human for source in sources if source.folder == name),
            "described_ai": sum(source.rows.ai for source in sources if source.folder == name),
        }
        for name, folder in measured.items()
    ]


def _description(source: PublishedSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "title": source.title,
        "url": source.url,
        "licence": source.licence,
        "accept": source.accept,
        "folder": source.folder,
        "files": len(source.files),
        **source.rows.model_dump(),
    }


def _fetch_source(source: PublishedSource, config: Config, data: Storage, client: httpx.Client) -> dict[str, Any]:
    """Download and convert one source. Raises CorpusError."""
    if source.accept and not config.fetch.accept_licence:
        raise CorpusError(
            f"source {source.name}: its licence asks for your consent ({source.licence}; {source.url}): "
            f"read it and repeat with --accept-licence, or choose other sources with fetch.only"
        )
    downloaded = 0
    contents: dict[str, bytes] = {}
    for file in {file.path: file for file in source.files}.values():  # a path may be listed several times
        key = f"downloads/{source.name}/{file.sha256}"
        content = data.read_bytes(key) if data.exists(key) else b""
        if not content or _sha256(content) != file.sha256:
            content = _download(source, file, config.fetch.base_url, client)
            data.write_bytes(key, content)
            downloaded += 1
        contents[file.path] = content
    rows = published_rows(source, contents)
    check_counts(source, rows)
    target = f"{source.folder}/{source.name}.parquet"
    data.write_bytes(target, parquet(pa.Table.from_pylist(rows, PUBLISHED_SCHEMA)))
    ai = sum(row["label"] for row in rows)
    logger.info("fetch: %s: %d human and %d AI texts in %s", source.name, len(rows) - ai, ai, target)
    return {"name": source.name, "file": target, "human": len(rows) - ai, "ai": ai, "downloaded": downloaded}


def _download(source: PublishedSource, file: PublishedFile, base_url: str, client: httpx.Client) -> bytes:
    """The content of a file, checked. Transient errors are retried. Raises CorpusError."""
    url = source.file_url(file.path, base_url)
    where = f"source {source.name}, {file.path}"

    def attempt() -> bytes:
        content = bytearray()
        try:
            with client.stream("GET", url) as response:
                if response.status_code != 200:
                    kind = _TransientError if response.status_code in _RETRIED_STATUS else CorpusError
                    raise kind(f"{where}: the server answered {response.status_code} for {url}")
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MAX_FILE_BYTES:
                        raise CorpusError(f"{where}: more than {MAX_FILE_BYTES >> 20} MB")
        except httpx.HTTPError as error:
            raise _TransientError(f"{where}: cannot be downloaded from {url} ({type(error).__name__})") from error
        except httpx.InvalidURL as error:
            raise CorpusError(f"fetch.base_url={base_url}: expected an http:// or https:// address") from error
        return bytes(content)

    content = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_TransientError),
        stop=tenacity.stop_after_attempt(MAX_ATTEMPTS),
        wait=_BACKOFF,
        reraise=True,
    )(attempt)
    if _sha256(content) != file.sha256:
        raise CorpusError(f"{where}: sha256 {_sha256(content)}; expected {file.sha256}")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
