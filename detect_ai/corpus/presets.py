"""Published data sets: how their schemas map to ours. What a user sets beside a preset wins.

Every label is turned to 0 (human) or 1 (ai) here; the tests prove each mapping on a file in the published schema.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyarrow import fs as pafs

from detect_ai.core.config import SourceConfig
from detect_ai.corpus.formats import Row, UnreadableError, Values, text_row

_HUMAN_OR_AI = {"human": 0, "ai": 1}


@dataclass(frozen=True)
class Layout:
    """How a folder holds rows, for data sets whose folders and files say what a text is.

    Attributes:
        accepts: whether a file holds rows, by its path below the source.
        read: rows of one file: (filesystem, the source's path, the file's path below it).
        expected: what `accepts` looks for, for an error.
    """

    accepts: Callable[[str], bool]
    read: Callable[[pafs.FileSystem, str, str], Iterator[Row]]
    expected: str


@dataclass(frozen=True)
class Preset:
    """A published schema.

    Attributes:
        sets: fields of `SourceConfig` that it fixes.
        rows: makes rows of ours from one row of the file, where it takes more than names of columns.
        needs: columns of the file that `rows` reads.
        layout: of a folder.
    """

    sets: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[Values], list[Values]] | None = None
    needs: tuple[str, ...] = ()
    layout: Layout | None = None


def preset_of(source: SourceConfig) -> Preset:
    """The preset of a source, or what its kind fixes without one."""
    return PRESETS[source.preset] if source.preset else _KINDS.get(source.kind, Preset())


def applied(source: SourceConfig) -> SourceConfig:
    """A source with what its preset fixes in the place of every default that the user left."""
    default = SourceConfig()
    fixed = {k: v for k, v in preset_of(source).sets.items() if getattr(source, k) == getattr(default, k)}
    return replace(source, **fixed)


def _key(text: Any) -> str:
    """A short name for a question or a prompt that rows share."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16] if isinstance(text, str) and text else ""


# Tables


def _essay(values: Values) -> list[Values]:
    return [{**values, "domain": "essay"}]


def _hc3(values: Values) -> list[Values]:
    common = {
        **values,
        "generator": "chatgpt",
        "domain": values.get("source"),
        "group": _key(values.get("question")),
    }
    answers = (("human", "human_answers"), ("ai", "chatgpt_answers"))
    return [{**common, "text": text, "label": label} for label, column in answers for text in _list(values.get(column))]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


# `sci_gen` is the one domain with an underscore; of `test_ood_set_gpt.csv` come names such as `cnn_gpt4_para`.
_MAGE_SRC = re.compile(r"(?P<domain>sci_gen|[^_]+)_(?:machine_(?:continuation|specified|topical)_)?(?P<generator>.+)")


def _mage(values: Values) -> list[Values]:
    found = _MAGE_SRC.fullmatch(str(values.get("src")))
    domain, generator = found.group("domain", "generator") if found else ("", "")
    generator = generator.replace("trubo", "turbo")  # as published
    if re.fullmatch(r"\d+B", generator):
        generator = f"llama-{generator}"
    return [{**values, "domain": domain, "generator": generator}]


def _m4(values: Values) -> list[Values]:
    number = values.get("source_ID", values.get("source_id"))  # spelt in both ways
    source = str(values.get("source") or "")
    common = {
        **values,
        "generator": values.get("model"),
        "domain": re.sub(r"-\d{8}.*", "", source),  # wikipedia-20220301.en
        "group": "" if number is None else f"{source}-{number}",
    }
    sides = (("human", "human_text"), ("ai", "machine_text"))
    return [{**common, "text": values.get(column), "label": label} for label, column in sides]


# Folders


def _is_text_file(path: str) -> bool:
    return path.lower().endswith((".txt", ".md"))


def _read_folder(filesystem: pafs.FileSystem, root: str, path: str) -> Iterator[Row]:
    *folders, name = path.split("/")
    label = folders[0] if folders else None
    with filesystem.open_input_stream(f"{root}/{path}") as stream:
        yield text_row(
            stream,
            label=label,
            generator=label,
            folder="/".join(folders[1:]),
            file=name.rpartition(".")[0],
        )


_GHOSTBUSTER = re.compile(
    r"(?P<domain>essay|reuter|wp)/(?P<writer>(?!prompts/|headlines/)[^/]+)/"
    r"(?P<twin>(?:(?!logprobs/|prompts/|headlines/)[^/]+/)?[^/]+)\.txt"
)


def _read_ghostbuster(filesystem: pafs.FileSystem, root: str, path: str) -> Iterator[Row]:
    found = _GHOSTBUSTER.fullmatch(path)
    assert found, "`accepts` let the file pass"
    domain, writer, twin = found.group("domain", "writer", "twin")
    with filesystem.open_input_stream(f"{root}/{path}") as stream:
        yield text_row(stream, label=writer, generator=writer, domain=domain, group=f"{domain}/{twin}")


_OUTFOX = re.compile(r"(?P<model>[^/]+)/(?P<split>train|valid|test)/(?:\w+_)?(?P<kind>humans|lms)\.pkl")


def _read_outfox(filesystem: pafs.FileSystem, root: str, path: str) -> Iterator[Row]:
    found = _OUTFOX.fullmatch(path)
    assert found, "`accepts` let the file pass"
    model, split, kind = found.group("model", "split", "kind")
    texts = _unpickled(filesystem, f"{root}/{path}")
    statements = _unpickled(filesystem, f"{root}/common/{split}/{split}_problem_statements.pkl")
    if len(texts) != len(statements):
        raise UnreadableError(f"expected one text for each of the {len(statements)} problem statements of {split}")
    common = {"label": "human" if kind == "humans" else "ai", "generator": model, "split": split, "domain": "essay"}
    for text, statement in zip(texts, statements, strict=True):
        yield Row({"text": text, "group": _key(statement), **common})


class _TextsOnly(pickle.Unpickler):
    """Unpickles lists of texts, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError("a pickle of texts names no class")


def _unpickled(filesystem: pafs.FileSystem, path: str) -> list[str]:
    try:
        with filesystem.open_input_stream(path) as stream:
            data = stream.read()
    except FileNotFoundError:
        raise UnreadableError(f"expected {path} to belong to it, and found no such file") from None
    try:
        texts = _TextsOnly(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise UnreadableError("expected a pickled list of texts, and no class in it") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UnreadableError("expected a pickled list of texts")
    return texts


def _columns(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_KINDS: dict[str, Preset] = {
    "sample": Preset(_columns("id", "group", "domain", "generator")),
    "folder": Preset(
        _columns("generator"),
        layout=Layout(_is_text_file, _read_folder, "text file (.txt or .md) in a folder named after its label"),
    ),
}

PRESETS: dict[str, Preset] = {
    # kaggle.com/competitions/llm-detect-ai-generated-text
    "kaggle": Preset(
        {"kind": "csv", "label": "generated", "id": "id", "group": "prompt_id", "domain": "domain"},
        rows=_essay,
    ),
    # kaggle.com/datasets/thedrcat/daigt-v2-train-dataset
    "daigt_v2": Preset(
        {"kind": "csv", "group": "prompt_name", "generator": "source", "domain": "domain"},
        rows=_essay,
    ),
    # Dugan et al. 2024, arXiv:2405.07940
    "raid": Preset(
        {
            "kind": "csv",
            "text": "generation",
            "label": "model",
            "labels": {"human": 0}
            | dict.fromkeys(["chatgpt", "gpt4", "gpt3", "gpt2", "cohere", "cohere-chat", "mpt", "mpt-chat"], 1)
            | dict.fromkeys(["mistral", "mistral-chat", "llama-chat"], 1),
            "id": "id",
            "group": "source_id",
            "domain": "domain",
            "generator": "model",
            "attack": "attack",
        },
    ),
    # Guo et al. 2023, arXiv:2301.07597
    "hc3": Preset(
        {"kind": "jsonl", "labels": _HUMAN_OR_AI, **_columns("group", "domain", "generator")},
        rows=_hc3,
        needs=("question", "human_answers", "chatgpt_answers"),
    ),
    # Li et al. 2024, arXiv:2305.13242: its 0 is machine, its 1 human
    "mage": Preset(
        {"kind": "csv", "labels": {"0": 1, "1": 0}, **_columns("domain", "generator")},
        rows=_mage,
        needs=("src",),
    ),
    # Wang et al. 2024, arXiv:2305.14902
    "m4": Preset(
        {"kind": "jsonl", "labels": _HUMAN_OR_AI, **_columns("group", "domain", "generator")},
        rows=_m4,
        needs=("human_text", "machine_text"),
    ),
    # Koike et al. 2024, arXiv:2307.11729: the folder `data` of its repository
    "outfox": Preset(
        {"kind": "folder", "labels": _HUMAN_OR_AI, **_columns("group", "domain", "generator", "split")},
        layout=Layout(
            lambda path: bool(_OUTFOX.fullmatch(path)), _read_outfox, "file such as common/train/train_humans.pkl"
        ),
    ),
    # Verma et al. 2024, arXiv:2305.15047
    "ghostbuster": Preset(
        {
            "kind": "folder",
            "labels": {"human": 0}
            | dict.fromkeys(["gpt", "claude", "gpt_prompt1", "gpt_prompt2", "gpt_semantic", "gpt_writing"], 1),
            **_columns("group", "domain", "generator"),
        },
        layout=Layout(
            lambda path: bool(_GHOSTBUSTER.fullmatch(path)), _read_ghostbuster, "file such as essay/human/1.txt"
        ),
    ),
}
