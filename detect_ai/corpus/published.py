"""Descriptions of published data sets (`configs/sources/*.yaml`): origin, licence, files, conversion, expected rows."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import quote

import yaml
from pydantic import BaseModel, Field, RootModel, ValidationError

from detect_ai.core.config import FractionBelow1, Label, Name, Natural, Section, Text
from detect_ai.core.errors import ConfigError, first_problem

FOLDERS = "folders.yaml"
RAW_URL = "https://raw.githubusercontent.com"
_Schema = TypeVar("_Schema", bound=BaseModel)
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PublishedFile(Section):
    """A file of a repository. A file may be listed several times, for parts with different values."""

    path: Annotated[str, Field(pattern="^[^/]")]
    sha256: Sha256
    generator: str = "human"  # of its texts, if it is the same for the whole file
    domain: str = ""  # of its texts, if it is the same for the whole file
    group: str = ""  # files with different groups or domains have different topics, even at the same positions
    text: str = ""  # column of the text; empty: the column of the source
    markup: Literal["", "xml", "markdown", "tagged", "tokens"] = ""  # empty: the markup of the source
    members: str = "."  # of a ZIP file: pattern for the names of the members to read
    windows: Natural = 0  # maximum per document; 0: the number of the source
    # Positions of the rows or documents in the corpus, from 0, such as "0-3 7"; empty: all. They were drawn at random,
    # or rows that are in evaluation sets were left out.
    rows: Annotated[str, Field(pattern=r"^(\d+(-\d+)?( |$))*$")] = ""

    @cached_property
    def positions(self) -> frozenset[int] | None:
        """The positions in `rows`; None for all."""
        if not self.rows:
            return None
        ranges = [span.partition("-") for span in self.rows.split()]
        return frozenset(i for first, _, last in ranges for i in range(int(first), int(last or first) + 1))


class ExpectedRows(Section):
    """Rows of a source in the published corpus."""

    human: Natural
    ai: Natural


class PublishedFolder(Section):
    """A folder of the measured corpora."""

    human: Natural
    ai: Natural
    missing: dict[str, Text] = Field(default_factory=dict)  # source without a description: the reason


class Conversion(Section):
    """How texts are read from the files."""

    # records: CSV or XLSX rows, JSON lines, a JSON array of texts or objects, a JSON object of columns of equal length.
    # documents: text files, or text files in ZIP files.
    format: Literal["records", "documents"]
    # Split group. For records: a column. For documents: a pattern for path and text, whose group 1 names it.
    # Empty: the position of the record, or the path of the document.
    topic: str = ""
    columns: dict[str, str] = Field(default_factory=dict)  # text column: generator of its texts
    text: str = "text"  # column of the text, without `columns`
    label: str = ""  # column of the label
    labels: dict[str, Label] = Field(default_factory=dict)
    generator: str = ""  # of the AI texts, with `label`
    separator: str = ""  # pattern between the documents of a file
    extract: str = ""  # pattern whose group 1 matches the parts of a text in a document
    joint: str = "\n\n"  # inserted between these parts
    remove: list[str] = Field(default_factory=list)  # patterns of content that is not prose, matched line by line
    markup: Literal["", "xml", "markdown", "tagged", "tokens"] = ""
    windows: Natural = 1  # maximum number cut from each document, evenly spread; 1: its beginning
    shortest: Natural = 0  # lengths of windows are drawn from `shortest` to `longest`; 0: always `longest`
    longest: Natural = 700  # words; longer texts end earlier, at a sentence end
    min_words: Natural = 50  # shorter texts are dropped
    match_lengths: bool = False  # cut texts to the lengths of the other class
    # Quantiles of the other class's lengths by domain, for `match_lengths` if the source has only one class.
    lengths: dict[str, list[Natural]] = Field(default_factory=dict)


class PublishedSource(Section):
    """A published data set at a commit, and the folder of the corpus that it fills."""

    name: Name
    title: Text
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]  # owner/name on GitHub
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    licence: Text
    accept: bool = False  # the licence restricts use, or none is stated: the user has to accept it
    folder: Annotated[str, Field(pattern=r"^\w+$")]
    domain: Text
    split: Literal["train", "calibration"]  # train: a tenth of the topics becomes val
    files: Annotated[list[PublishedFile], Field(min_length=1)]
    convert: Conversion
    rows: ExpectedRows
    tolerance: FractionBelow1  # accepted relative difference from `rows`

    @property
    def url(self) -> str:
        """Web page of the repository at the commit."""
        return f"https://github.com/{self.repository}/tree/{self.commit}"

    def file_url(self, path: str, base_url: str = "") -> str:
        """URL of a raw file, below `base_url` if given."""
        return f"{(base_url or RAW_URL).rstrip('/')}/{self.repository}/{self.commit}/{quote(path)}"


def load_sources(folder: Path) -> list[PublishedSource]:
    """The sources described in a folder, by name. Raises ConfigError."""
    sources = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name == FOLDERS:
            continue
        source = _load(path, PublishedSource)
        if source.name != path.stem:
            raise ConfigError(f"{path}: name={source.name}: expected the name of the file, {path.stem}")
        sources.append(source)
    if not sources:
        raise ConfigError(f"fetch.sources={folder}: no descriptions of sources (*.yaml) there")
    return sources


def load_folders(folder: Path) -> dict[str, PublishedFolder]:
    """The folders of the measured corpora, by name; none if `folder` does not list them. Raises ConfigError."""
    path = folder / FOLDERS
    return _load(path, RootModel[dict[str, PublishedFolder]]).root if path.exists() else {}


def _load(path: Path, schema: type[_Schema]) -> _Schema:
    try:
        return schema.model_validate(yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader))
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected YAML in UTF-8 ({type(error).__name__})") from error
