"""The notebook examples/quickstart.ipynb: its cells run in order, with the champion of a registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from detect_ai.schemas import Label

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_cells_run_in_order(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(Storage(str(tmp_path)))
    version = registry.add(tiny_bundle)
    registry.set_champion(version)
    monkeypatch.setenv("DETECT_AI_STORAGE_ROOT", str(tmp_path))
    names: dict[str, Any] = {}
    for cell in CODE:
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    assert names["detector"].version == version
    assert names["verdict"].label in set(Label)
    assert names["rare"].probability < names["verdict"].probability
    assert len(names["verdicts"]) == len(names["texts"]) == 2 * sum(names["labels"])
    assert names["rates"]["AI texts labelled AI (TPR)"] + names["rates"]["AI texts abstained on"] <= 1


def test_notebook_holds_no_output() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)
