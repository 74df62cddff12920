"""The package without extras: the client and `detect-ai check --url`, with only the packages that they need."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Hides all modules except those of Python and the named ones.
HIDE = """
import json, os, sys

ALLOWED = {*json.loads(os.environ["ALLOWED"]), *sys.stdlib_module_names, *sys.builtin_module_names}

class Visible:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ALLOWED or name.startswith("_sysconfigdata"):  # the latter is Python's, too
            return self.finder.find_spec(name, path, target)

for name in [name for name in sys.modules if name.partition(".")[0] not in ALLOWED]:
    del sys.modules[name]
sys.meta_path = [Visible(finder) for finder in sys.meta_path]
"""


def distributions(*extras: str) -> set[str]:
    """Names of the distributions that the package needs with some extras, including itself."""
    optional = PROJECT["optional-dependencies"]
    names, queue = (
        {("detect-ai", "")},
        [*PROJECT["dependencies"], *(need for extra in extras for need in optional[extra])],
    )
    while queue:
        need = Requirement(queue.pop())
        for extra in ("", *need.extras):
            if (item := (canonicalize_name(need.name), extra)) not in names:
                names.add(item)
                inner = [Requirement(line) for line in importlib.metadata.requires(item[0]) or []]
                queue += [str(r) for r in inner if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in names}


@pytest.fixture(scope="module")
def closure() -> set[str]:
    return distributions()


@cache
def owners_of_modules() -> dict[str, set[str]]:
    found = importlib.metadata.packages_distributions()
    return {module: set(map(canonicalize_name, owners)) for module, owners in found.items()}


def with_only(closure: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code that can import only the modules of some distributions."""
    modules = [module for module, owners in owners_of_modules().items() if closure & owners]
    return subprocess.run(
        [sys.executable, "-c", HIDE + code],
        cwd=CHECKOUT,
        env=os.environ | {"ALLOWED": json.dumps(["detect_ai", "serve_app", *modules]), "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_at_most_15_packages_are_installed(closure: set[str]) -> None:
    assert len(closure) <= 15, sorted(closure)
    assert {"httpx", "pydantic"} < closure


def test_packages_of_extras_are_hidden(closure: set[str]) -> None:
    code = "from importlib.util import find_spec; print([find_spec(name) for name in ('torch', 'numpy', 'ray')])"
    assert with_only(closure, code).stdout == "[None, None, None]\n"


def test_client_and_command_line_need_no_extra(closure: set[str]) -> None:
    code = "import detect_ai, detect_ai.cli.__main__ as cli; detect_ai.Client, detect_ai.Verdict; cli.main(['--help'])"
    done = with_only(closure, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: detect-ai" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["check", "--bundle", "bundle", "essay.txt"], "local"),
        (["model", "--bundle", "bundle"], "local"),
        (["audit", "--root", "root"], "serve"),
        (["registry", "verify", "--root", "root"], "serve"),
        (["serve", "--bundle", "bundle"], "serve"),
        (["erase", "--root", "root", "id"], "serve"),
    ],
)
def test_command_names_its_missing_extra_in_one_line(closure: set[str], arguments: list[str], extra: str) -> None:
    done = with_only(closure, f"import detect_ai.cli.__main__ as cli; sys.exit(cli.main({arguments}))")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert f"pip install 'detect-ai[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_detector_names_its_missing_extra(closure: set[str]) -> None:
    code = "import detect_ai\ntry: detect_ai.Detector\nexcept ImportError as error: print(error)"
    assert "pip install 'detect-ai[local]'" in with_only(closure, code).stdout


def test_a_bundle_runs_on_the_extra_local() -> None:
    code = """
import detect_ai, pathlib
detector = detect_ai.Detector.load(pathlib.Path("tests/fixtures/bundle_format_4/bundle"))
print(len(detector.detect(["The old bridge went near the market. "] * 2)))
"""
    done = with_only(distributions("local"), code)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_a_service_of_one_process_needs_the_extra_serve_alone() -> None:
    done = with_only(distributions("serve"), "sys.path.insert(0, '.')\nimport serve_app.one_process")
    assert (done.returncode, done.stderr) == (0, "")
