"""Descriptions of published data sets (`configs/sources/*.yaml`): origin, licence, files, conversion, expected rows."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import yaml
from pydantic import Field, ValidationError

from detect_ai.core.config import FractionBelow1, Label, Name, Natural, Section, Text
from detect_ai.core.errors import ConfigError, first_problem

RAW_URL = "https://raw.githubusercontent.com"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PublishedFile(Section):
    """A file of a repository."""

    path: Annotated[str, Field(pattern="^[^/]")]
    sha256: Sha256
    generator: str = "human"  # of its texts, where the file decides it
    domain: str = ""  # of its texts, where the file decides it
    text: str = ""  # key of the text in its objects, if not that of the source
    aligned: bool = True  # its rows have the topics of the rows at the same positions of other files
    # Positions of the rows that the corpus contains, from 0, such as "0-3 7"; empty: all. It drew them at random,
    # or left out rows that are in evaluation sets.
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


class Conversion(Section):
    """How texts are read from the files."""

    format: Literal["text_columns", "labelled_rows", "parallel_json"]
    topic: str = ""  # column that names the split group; empty: the row's position
    columns: dict[str, str] = Field(default_factory=dict)  # of text_columns: column of a text, its generator
    text: str = "text"  # column of the text
    label: str = "label"  # of labelled_rows: column of the label
    labels: dict[str, Label] = Field(default_factory=dict)  # of labelled_rows
    generator: str = ""  # of the AI texts of labelled_rows
    longest: Natural = 700  # words; longer texts end earlier, at a sentence end
    match_lengths: bool = False  # cut texts to the lengths of the other class


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
    tolerance: FractionBelow1  # relative difference from `rows` that is accepted

    @property
    def url(self) -> str:
        """Address of the repository at the commit, for people."""
        return f"https://github.com/{self.repository}/tree/{self.commit}"

    def file_url(self, path: str, base_url: str = "") -> str:
        """Address of a raw file, below `base_url` if given."""
        return f"{(base_url or RAW_URL).rstrip('/')}/{self.repository}/{self.commit}/{quote(path)}"


def load_sources(folder: Path) -> list[PublishedSource]:
    """The sources described in a folder, by name. Raises ConfigError."""
    sources = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            source = PublishedSource.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_problem(error)}") from error
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: expected YAML in UTF-8 ({type(error).__name__})") from error
        if source.name != path.stem:
            raise ConfigError(f"{path}: name={source.name}: expected the name of the file, {path.stem}")
        sources.append(source)
    if not sources:
        raise ConfigError(f"fetch.sources={folder}: no descriptions of sources (*.yaml) there")
    return sources
