"""What the stage `export` measured, as a table for people, and the machine that it was measured on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "onnxruntime")
_HEAD = (
    "| candidate | texts/s | times as fast (least–most) | one text alone, ms | MiB | AUROC | TPR at 1% FPR | "
    "log-odds differ by | and move with the batch by | |"
)


def table(result: Mapping[str, Any]) -> str:
    """The result of the stage as Markdown."""
    at = result["machine"]
    lines = [
        f"{at['date']}, {at['processor']}, {at['cores']} cores, {at['threads']} threads, {at['device']}; "
        + ", ".join(f"{name} {found}" for name, found in at["versions"].items()),
        "",
        _HEAD,
        "|---" * (_HEAD.count("|") - 1) + "|",
        *(_line(row, result["chosen"]) for row in result["candidates"]),
        *(f"| {name} |{' |' * 8} left out: {reason} |" for name, reason in result["left_out"].items()),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any], chosen: str | None) -> str:
    said = "**chosen**" if row["name"] == chosen else "passes" if row["passes"] else " ".join(row["reasons"])
    cells = [
        row["name"],
        f"{row['texts_per_s']:.1f}",
        f"{row['speedup']:.2f} ({row['speedup_low']:.2f}–{row['speedup_high']:.2f})",
        f"{row['alone_ms']:.1f}",
        f"{row['bytes'] / 2**20:.0f}",
        *("–" if row[name] is None else f"{row[name]:.4f}" for name in ("auroc", "tpr_at_fpr_1")),
        *(f"{row[name]:.1g}" for name in ("difference", "moves")),
        said,
    ]
    return f"| {' | '.join(cells)} |"


def machine(threads: int, device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": torch.multiprocessing.cpu_count(),
        "threads": threads,
        "device": device,
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
