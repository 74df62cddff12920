"""The shape of the code: what imports what, and that importing starts nothing."""

from __future__ import annotations

import ast
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
JOBS = sorted((CHECKOUT / "jobs").glob("*.py"))
PURE = [
    "text",
    "metrics",
    "calibration",
    "batches",
    "windows",
    "schemas",
    "promotion",
    "errors",
    "config",
    "attacks",
    "wordlists",
    "mixing",
    "language",
    "prose",
    "conformal",
    "scaling",
    "categories",
    "summary",
    "breakdown",
    "intervals",
    "paired",
    "timing",
    "backends",
    "raid",
    "registers",
    "dataset",
    "verdicts",
    "space",
    "training",
    "sweep",
    "exchange",
    "parts",
    "plans",
    "client",
    "model_info",
    "wording",
    "cli",
]

# Notes what happens while everything is imported. What another package does while *it* is imported (torch asks
# ldconfig, urllib3 tries a socket) is not ours: between it and our file stands a frame of the import system.
IMPORT_EVERYTHING = """
import importlib, json, os, pkgutil, runpy, sys, threading

CHECKOUT = os.getcwd()
sys.path.insert(0, CHECKOUT)
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"}
CALLS_OUT = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
WRITES = {"os.mkdir", "os.remove", "os.rename", "os.truncate", "tempfile.mkstemp", "tempfile.mkdtemp", "socket.bind"}
ours, network = [], []

def is_ours():
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib"):
            return False
        if name.startswith(CHECKOUT) and "/.venv/" not in name:
            return True
        frame = frame.f_back
    return False

def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in CALLS_OUT:
        network.append([event, str(arguments)])
    elif (writes or event in STARTS | WRITES) and is_ours():
        ours.append([event, str(arguments)])

sys.addaudithook(watch)
import detect_ai, serve_app
names = [m.name for p in (detect_ai, serve_app) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in names:
    importlib.import_module(name)
for job in sorted(os.listdir("jobs")):
    if job.endswith(".py"):
        runpy.run_path(os.path.join(CHECKOUT, "jobs", job), run_name="imported")
import logging, ray
print(json.dumps({
    "modules": len(names), "ours": ours, "network": network, "threads": threading.active_count(),
    "ray": ray.is_initialized(), "handlers": len(logging.getLogger().handlers),
}))
"""


def python(code: str, **environment: str) -> str:
    """Run code in the checkout. Returns all that it wrote."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=CHECKOUT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def files_of_the_checkout() -> set[Path]:
    """All but those of the environment, of git, and of what other tests leave meanwhile."""
    return {path for path in CHECKOUT.rglob("*") if not {".venv", ".git", ".hypothesis"} & set(path.parts)}


def test_importing_every_module_and_job_starts_nothing_writes_nothing_and_says_nothing(tmp_path: Path) -> None:
    before = files_of_the_checkout()
    output = python(IMPORT_EVERYTHING, HOME=str(tmp_path)).splitlines()
    assert len(output) == 1
    found = json.loads(output[0])
    assert found.pop("modules") > 35
    assert found == {"ours": [], "network": [], "threads": 1, "ray": False, "handlers": 0}
    assert list(tmp_path.iterdir()) == []
    after = files_of_the_checkout()
    assert after - before == set()


@pytest.mark.parametrize("module", ["detect_ai", *(f"detect_ai.{name}" for name in PURE)])
def test_a_pure_module_loads_neither_torch_nor_ray(module: str) -> None:
    loaded = python(f"import {module}, sys; print({{'torch', 'ray', 'transformers'}} & set(sys.modules))")
    assert loaded.strip() == "set()"


def test_importing_the_package_takes_little_and_loads_nothing_else() -> None:
    code = "import sys, time; s = time.process_time(); before = set(sys.modules); import detect_ai; "
    seconds, loaded = python(
        code + "print(time.process_time() - s); print(sorted(set(sys.modules) - before))"
    ).splitlines()
    assert float(seconds) < 0.5
    assert loaded == "['detect_ai']"


def imported(path: Path) -> set[str]:
    """Top packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("detect_ai", {"serve_app", "jobs", "examples", "tests"}), ("serve_app", {"jobs", "examples", "tests"})],
)
def test_dependencies_point_one_way(package: str, forbidden: set[str]) -> None:
    files = list((CHECKOUT / package).rglob("*.py"))
    assert files
    assert {str(path): imported(path) & forbidden for path in files if imported(path) & forbidden} == {}


def test_there_is_a_job_for_every_stage() -> None:
    stages = {"prepare", "sweep", "train", "calibrate", "evaluate", "publish", "rollback", "deploy", "pipeline"}
    stages |= {"export"}
    assert stages <= {path.stem for path in JOBS}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_has_at_most_40_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_says_what_it_does(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert f"python jobs/{path.name}" in capsys.readouterr().out
