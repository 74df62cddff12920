"""The package without extras: the client and `detect-ai check --url`, on the packages that these need and no others."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Refuses every module but those of Python, of detect_ai and of the distributions named.
BLOCKER = """
import importlib.abc, importlib.metadata, json, os, re, sys

ALLOWED = {"detect_ai", *sys.stdlib_module_names, *sys.builtin_module_names}
for module, owners in importlib.metadata.packages_distributions().items():
    if {re.sub("[-_.]+", "-", owner).lower() for owner in owners} & set(json.loads(os.environ["CLOSURE"])):
        ALLOWED.add(module)

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED and not name.startswith("_sysconfigdata"):  # the latter is Python's
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in {name for name in sys.modules if name.partition(".")[0] not in ALLOWED}:
    del sys.modules[name]
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def closure() -> set[str]:
    """Names of the distributions that the package needs without extras, its own included."""
    names, queue = {"detect-ai"}, [Requirement(need) for need in PROJECT["dependencies"]]
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        if name not in names and (need.marker is None or need.marker.evaluate({"extra": ""})):
            names.add(name)
            queue += [Requirement(line) for line in importlib.metadata.requires(name) or []]
    return names


def blocked(closure: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code where only a closure can be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code],
        cwd=CHECKOUT,
        env=os.environ | {"CLOSURE": json.dumps(sorted(closure)), "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_at_most_15_packages_are_installed(closure: set[str]) -> None:
    assert len(closure) <= 15, sorted(closure)
    assert {"httpx", "pydantic"} < closure


@pytest.mark.parametrize("package", ["torch", "numpy", "ray"])
def test_blocker_refuses_packages_of_extras(closure: set[str], package: str) -> None:
    assert f"No module named '{package}'" in blocked(closure, f"import {package}").stderr


def test_client_and_command_line_need_no_extra(closure: set[str]) -> None:
    code = "import detect_ai, detect_ai.cli.__main__ as cli; detect_ai.Client, detect_ai.Verdict; cli.main(['--help'])"
    done = blocked(closure, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: detect-ai" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["check", "--bundle", "bundle", "essay.txt"], "local"),
        (["model", "--bundle", "bundle"], "local"),
        (["audit", "--root", "root"], "serve"),
        (["registry", "verify", "--root", "root"], "serve"),
        (["erase", "--root", "root", "id"], "serve"),
    ],
)
def test_command_names_its_missing_extra_in_one_line(closure: set[str], arguments: list[str], extra: str) -> None:
    done = blocked(closure, f"import detect_ai.cli.__main__ as cli; sys.exit(cli.main({arguments}))")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert f"pip install 'detect-ai[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_detector_names_its_missing_extra(closure: set[str]) -> None:
    code = "import detect_ai\ntry: detect_ai.Detector\nexcept ImportError as error: print(error)"
    assert "pip install 'detect-ai[local]'" in blocked(closure, code).stdout
