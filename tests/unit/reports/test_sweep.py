"""The report of a sweep, and the configuration that it hands on."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from detect_ai.core.config import Config, load_config
from detect_ai.reports.sweep import sweep_report

SPACE = ["sweep=random", "+sweep.space.decay=[linear,cosine]", "+sweep.space.batch_size={low: 8, high: 32}"]


def trial(number: int, status: str = "finished") -> dict[str, Any]:
    rng = random.Random(number)
    epochs = {"finished": 3, "stopped": 1, "failed": 0}[status]
    curve = [
        {"epoch": e, "step": 40 * e, "auroc": 0.9 + 0.03 * e - number / 200, "val_loss": 0.5 / e, "train_loss": 0.5 / e}
        for e in range(1, epochs + 1)
    ]
    figures = {"auroc": None, "val_loss": None, "accuracy": None, "epoch": None} if not curve else {
        "auroc": curve[-1]["auroc"], "val_loss": curve[-1]["val_loss"], "accuracy": 0.9, "epoch": epochs
    }  # fmt: skip
    values = {"lr": 10 ** rng.uniform(-5, -3), "decay": rng.choice(["linear", "cosine"]), "batch_size": 8 + number}
    error = "the training loss is nan at step 3 <learning rate 1e+30>" if status == "failed" else None
    key = f"runs/mine/sweep-1/{number}/checkpoint_1"
    return {"trial": str(number), "values": values, "status": status, "curve": curve, "error": error, **figures} | (
        {"checkpoint": key} if curve else {"checkpoint": None}
    )


def page(config: Config, trials: list[dict[str, Any]]) -> str:
    result = {"best": trials[0], "trials": trials, "concurrent": 1, "corpus": "corpora/mine-1"}
    return sweep_report(config, "runs/mine/sweep-1", result)


@pytest.fixture(scope="module")
def report() -> str:
    trials = [trial(n) for n in range(6)] + [trial(6, "stopped"), trial(7, "failed")]
    return page(load_config(SPACE), trials)


def test_every_trial_has_a_row_and_a_failed_one_its_reason(report: str) -> None:
    assert report.count('<th scope="row">') == 8
    assert "&lt;learning rate 1e+30&gt;" in report


def test_every_key_that_varies_has_a_figure(report: str) -> None:
    assert report.count("<svg") == 3 + 1  # and the learning curves


def test_a_trial_that_failed_is_drawn_as_far_as_it_came() -> None:
    curve = [{"epoch": 1, "step": 80, "auroc": 0.95, "val_loss": 0.3, "train_loss": 0.3}]
    early, late = trial(7, "failed"), {**trial(7, "failed"), "curve": curve}
    drawn = [page(load_config(["sweep=grid"]), [trial(0), failed]).count("<use") for failed in (early, late)]
    assert drawn[1] == drawn[0] + 2  # a point of AUROC and one of loss


def test_axes_have_plain_numbers(report: str) -> None:
    """No markup of formulas: text stays text in these figures."""
    assert "mathdefault" not in report
    assert re.search(r">0\.0001<|>1e-04<|>1e-05<", report)


def test_a_few_values_get_ticks_of_their_own() -> None:
    trials = [{**trial(n), "values": {"lr": lr}} for n, lr in enumerate((1e-5, 2e-4))]
    found = page(load_config(["sweep=grid", "sweep.space.lr=[1e-5,2e-4]"]), trials)
    assert {">1e-05<", ">0.0002<"} <= set(re.findall(r">[\d.e-]+<", found.split("<svg", 1)[1]))


def test_steps_are_whole_numbers() -> None:
    first = trial(0)
    first["curve"] = [{**first["curve"][0], "step": 9}]
    ticks = re.findall(r">(\d+\.\d+)<", page(load_config(["sweep=grid"]), [first]).split('id="curves', 1)[1])
    assert not [tick for tick in ticks if 8 < float(tick) < 10]
