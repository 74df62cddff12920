"""Presets: column and label mappings of published data sets. Fields that a user sets override a preset."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from detect_ai.core.config import SourceConfig

Values = dict[str, Any]
_HUMAN_OR_AI = {"human": 0, "ai": 1}


@dataclass(frozen=True)
class Preset:
    """The mapping of a published schema."""

    sets: Mapping[str, Any] = field(default_factory=dict)  # fields of `SourceConfig` and their values
    # Converts one row of the file to our rows, if renaming columns is not enough.
    rows: Callable[[Values], list[Values]] | None = None
    needs: tuple[str, ...] = ()  # columns of the file that `rows` reads


def preset_of(source: SourceConfig) -> Preset:
    """The preset of a source, or the default preset of its kind."""
    return PRESETS[source.preset] if source.preset else _KINDS.get(source.kind, Preset())


def with_preset(source: SourceConfig) -> SourceConfig:
    """A source with the values of its preset for every field that still has its default."""
    default = SourceConfig()
    fixed = {k: v for k, v in preset_of(source).sets.items() if getattr(source, k) == getattr(default, k)}
    return source.model_copy(update=fixed)


def _essay(values: Values) -> list[Values]:
    return [{**values, "domain": "essay"}]


def _hc3(values: Values) -> list[Values]:
    question = values.get("question")
    group = hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:16] if isinstance(question, str) else ""
    common = {**values, "generator": "chatgpt", "domain": values.get("source"), "group": group}
    rows: list[Values] = []
    for label, column in (("human", "human_answers"), ("ai", "chatgpt_answers")):
        answers = values.get(column) or []
        answers = answers if isinstance(answers, list) else [answers]
        rows += [{**common, "text": text, "label": label} for text in answers]
    return rows


# `sci_gen` is the only domain with an underscore; `test_ood_set_gpt.csv` has names such as `cnn_gpt4_para`.
_MAGE_SRC = re.compile(r"(?P<domain>sci_gen|[^_]+)_(?:machine_(?:continuation|specified|topical)_)?(?P<generator>.+)")


def _mage(values: Values) -> list[Values]:
    match = _MAGE_SRC.fullmatch(str(values.get("src")))
    domain, generator = match.group("domain", "generator") if match else ("", "")
    generator = generator.replace("trubo", "turbo")  # as published
    if re.fullmatch(r"\d+B", generator):
        generator = f"llama-{generator}"
    return [{**values, "domain": domain, "generator": generator}]


def _m4(values: Values) -> list[Values]:
    number = values.get("source_ID", values.get("source_id"))  # both spellings occur
    source = str(values.get("source") or "")
    common = {
        **values,
        "generator": values.get("model"),
        "domain": re.sub(r"-\d{8}.*", "", source),  # wikipedia-20220301.en
        "group": "" if number is None else f"{source}-{number}",
    }
    sides = (("human", "human_text"), ("ai", "machine_text"))
    return [{**common, "text": values.get(column), "label": label} for label, column in sides]


_NAMED = {name: name for name in ("group", "domain", "generator")}
_KINDS = {"sample": Preset({"id": "id", **_NAMED}), "folder": Preset({"generator": "generator"})}
_RAID_MODELS = "chatgpt gpt4 gpt3 gpt2 cohere cohere-chat mpt mpt-chat mistral mistral-chat llama-chat".split()  # noqa: SIM905
PRESETS: dict[str, Preset] = {
    # kaggle.com/competitions/llm-detect-ai-generated-text
    "kaggle": Preset(
        {"kind": "csv", "label": "generated", "id": "id", "group": "prompt_id", "domain": "domain"}, _essay
    ),
    # kaggle.com/datasets/thedrcat/daigt-v2-train-dataset
    "daigt_v2": Preset({"kind": "csv", "group": "prompt_name", "generator": "source", "domain": "domain"}, _essay),
    # Dugan et al. 2024, arXiv:2405.07940
    "raid": Preset(
        {
            "kind": "csv",
            "text": "generation",
            "label": "model",
            "labels": {"human": 0} | dict.fromkeys(_RAID_MODELS, 1),
            "id": "id",
            "group": "source_id",
            "domain": "domain",
            "generator": "model",
            "attack": "attack",
        },
    ),
    # Guo et al. 2023, arXiv:2301.07597
    "hc3": Preset(
        {"kind": "jsonl", "labels": _HUMAN_OR_AI, **_NAMED}, _hc3, ("question", "human_answers", "chatgpt_answers")
    ),
    # Li et al. 2024, arXiv:2305.13242: 0 is machine, 1 is human
    "mage": Preset(
        {"kind": "csv", "labels": {"0": 1, "1": 0}, "domain": "domain", "generator": "generator"}, _mage, ("src",)
    ),
    # Wang et al. 2024, arXiv:2305.14902
    "m4": Preset({"kind": "jsonl", "labels": _HUMAN_OR_AI, **_NAMED}, _m4, ("human_text", "machine_text")),
}
