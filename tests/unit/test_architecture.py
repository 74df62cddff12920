"""Package layering, and imports without side effects."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
JOBS = sorted((CHECKOUT / "jobs").glob("*.py"))
# Layers from bottom to top; packages of one layer may import each other.
LAYERS = [
    ("core", "text", "metrics", "schemas", "reports"),
    ("models",),
    ("calibration",),
    ("corpus",),
    ("training",),
    ("detector",),
    ("evaluation",),
    ("release",),
    ("monitoring",),
    ("client", "cli"),
]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
SERVICE = [
    "errors auth files",
    "engine",
    "api",
    "service",
    "one_process desired_state autoscaling",
    "deployment",
    "deploy",
    "kubernetes restore",
    "__init__",
]
SERVICE_LEVEL = {name: level for level, names in enumerate(SERVICE) for name in names.split()}
# Importing these loads neither Ray nor torch.
PURE = ("core", "text", "metrics", "schemas", "reports", "calibration", "client", "cli")

# Records what our code does during imports. Side effects of other packages (torch calls ldconfig, urllib3 opens a
# socket) are ignored: a frame of the import system separates them from our files.
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
    """Run code in the checkout and return its output."""
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


def test_imports_have_no_side_effects(tmp_path: Path) -> None:
    output = python(IMPORT_EVERYTHING, HOME=str(tmp_path)).splitlines()
    assert len(output) == 1
    effects = json.loads(output[0])
    assert effects.pop("modules") > 90
    assert effects == {"ours": [], "network": [], "threads": 1, "ray": False, "handlers": 0}
    assert list(tmp_path.iterdir()) == []


PURE_IMPORTS = f"""
import importlib, pkgutil, sys
import detect_ai
print(sorted({{m.split(".")[0] for m in sys.modules}} - set(sys.stdlib_module_names) - BEFORE - {{"detect_ai"}}))
names = [m.name for m in pkgutil.walk_packages(detect_ai.__path__, "detect_ai.") if m.name.split(".")[1] in {PURE}]
for name in names:
    importlib.import_module(name)
print(sorted({{'torch', "ray", "transformers"}} & set(sys.modules)))
"""


def test_pure_packages_load_neither_torch_nor_ray() -> None:
    before = "import sys; BEFORE = {name.split('.')[0] for name in sys.modules}\n"
    with_package, with_all = python(before + PURE_IMPORTS).splitlines()
    assert with_package == "[]"
    assert with_all == "[]"


def test_one_process_serves_without_ray() -> None:
    code = "import sys, serve_app.one_process; print({'ray', 'datasets', 'hydra', 'matplotlib'} & set(sys.modules))"
    assert python(code) == "set()\n"


def test_only_modules_of_deployments_import_ray() -> None:
    files = (CHECKOUT / "serve_app").rglob("*.py")
    users = {path.stem for path in files if any(module.split(".")[0] == "ray" for module in imported(path))}
    assert users == {"autoscaling", "deploy", "deployment", "kubernetes", "rate_actor"}


def test_driver_and_stream_readers_do_not_load_torch() -> None:
    modules = "detect_ai.training.sweep, detect_ai.training.data, detect_ai.release.publish, serve_app.deploy"
    assert python(f"import sys, {modules}; print('torch' in sys.modules)") == "False\n"


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def test_packages_import_only_lower_layers() -> None:
    upward = []
    for path in sorted((CHECKOUT / "detect_ai").rglob("*.py")):
        package = path.relative_to(CHECKOUT / "detect_ai").with_suffix("").parts[0]
        if package != "__init__":
            names = {module.split(".")[1] for module in imported(path) if module.startswith("detect_ai.")}
            above = {name for name in names & set(LEVEL) if LEVEL[name] > LEVEL[package]}
            upward += [f"{path.relative_to(CHECKOUT)} imports {name}" for name in sorted(above)]
    assert upward == []


def test_packages_of_the_service_import_only_lower_layers() -> None:
    upward = []
    for path in sorted((CHECKOUT / "serve_app").rglob("*.py")):
        level = SERVICE_LEVEL[path.relative_to(CHECKOUT / "serve_app").with_suffix("").parts[0]]
        names = {module.split(".")[1] for module in imported(path) if module.startswith("serve_app.")}
        upward += [f"{path.relative_to(CHECKOUT)} imports {name}" for name in names if SERVICE_LEVEL[name] > level]
    assert upward == []


def test_every_package_has_a_layer() -> None:
    packages = {path.stem for path in (CHECKOUT / "detect_ai").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert packages - {"__init__", "__pycache__", "py"} <= set(LEVEL)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("detect_ai", {"serve_app", "jobs", "examples", "tests"}), ("serve_app", {"jobs", "examples", "tests"})],
)
def test_library_imports_no_application_code(package: str, forbidden: set[str]) -> None:
    # `detect-ai serve` imports the service when it runs.
    files = set((CHECKOUT / package).rglob("*.py")) - {CHECKOUT / "detect_ai/cli/__main__.py"}
    assert files
    assert {module for path in files for module in imported(path) if module.split(".")[0] in forbidden} == set()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_is_short_and_prints_help(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert f"python jobs/{path.name}" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) <= 40


def test_architecture_page_lists_every_module() -> None:
    page = (CHECKOUT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    layout = set(re.findall(r"[a-z_]+", page[page.index("```\ndetect_ai/") : page.index("Layers, from bottom to top")]))
    modules = {
        path.stem for package in ("detect_ai", "serve_app", "jobs") for path in (CHECKOUT / package).rglob("*.py")
    }
    assert modules - {"__init__", "__main__"} <= layout
