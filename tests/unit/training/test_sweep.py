"""What a sweep cannot do is said before it reads anything or starts Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from detect_ai.core.config import load_config
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.training import sweep


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep.cluster, "connect", lambda: pytest.fail("it started Ray"))


def test_a_sweep_over_nothing_is_refused(tmp_path: Path) -> None:
    config = load_config(["~sweep.space.lr"])
    with pytest.raises(ConfigError, match=r"^config: sweep.space is empty: name what to try, such as sweep=grid"):
        sweep.sweep(config, Storage(str(tmp_path)))


def test_without_optuna_its_search_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"sweep.search=optuna: .*pip install 'detect-ai\[sweep\]'"):
        sweep.sweep(load_config(["sweep=optuna"]), Storage(str(tmp_path)))
