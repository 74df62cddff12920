"""The lock files: complete, hashed, with equal versions, and without packages that their users do not need."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = ["serve", "train", "dev", "tools"]
# The extras that `make lock` reads for each file.
CONTENT = {"serve": ["serve"], "train": ["train", "sample", "sweep", "gcp"], "dev": ["all", "bench", "dev"]}
PIN = re.compile(
    r"([a-z0-9-]+)==(\S+)( ; [^\\]+)? \\(\n    --hash=sha256:[0-9a-f]{64} \\)*\n    --hash=sha256:[0-9a-f]{64}\n"
)


def text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")


def pins(name: str) -> dict[str, str]:
    """Versions by canonical name."""
    return {match[1]: match[2] for match in PIN.finditer(text(name))}


def direct(extra: str) -> list[Requirement]:
    """Requirements of an extra, of the extras that it includes, and of the package without extras."""
    found = [Requirement(need) for need in EXTRAS["dependencies"]]
    for need in map(Requirement, EXTRAS["optional-dependencies"][extra]):
        found += [inner for name in need.extras for inner in direct(name)] if need.name == "detect-ai" else [need]
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_a_version_with_hashes_or_a_comment(name: str) -> None:
    rest = re.sub(r"^ *#.*\n", "", PIN.sub("", text(name)), flags=re.MULTILINE)
    assert rest.strip() == ""
    assert len(pins(name)) > 20


@pytest.mark.parametrize("name", [*LOCKS, "torch"])
def test_no_lock_names_an_index(name: str) -> None:
    assert "://" not in text(name)
    assert re.findall("^-.*", text(name), flags=re.MULTILINE) == []


@pytest.mark.parametrize("name", CONTENT)
def test_every_direct_dependency_is_locked_within_its_bounds(name: str) -> None:
    versions = pins(name) | {"torch": pins("train")["torch"]}
    for need in (need for extra in CONTENT[name] for need in direct(extra)):
        assert need.specifier.contains(versions[canonicalize_name(need.name)], prereleases=True), need


def test_one_version_of_each_package() -> None:
    tested = pins("dev")
    for name in ("serve", "train"):
        assert pins(name).items() <= tested.items()
    assert text("torch").splitlines()[1:] == [f"torch=={tested['torch']}"]


def test_the_service_needs_neither_ray_nor_developer_tools() -> None:
    tools = {"pytest", "dvc", "celery", "playwright", "mypy", "pre-commit"}
    assert (tools | {"ray", "wandb", "datasets", "matplotlib"}) & pins("serve").keys() == set()
    assert tools & pins("train").keys() == set()


def test_the_service_is_locked_without_cuda() -> None:
    assert [name for name in pins("serve") if re.match("torch|nvidia|cuda|triton", name)] == []
    assert any(name.startswith("nvidia-") for name in pins("train"))


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    lines = (ROOT / "constraints-min.txt").read_text(encoding="utf-8").splitlines()
    oldest = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if not line.startswith("#")}
    bounds = {canonicalize_name(need.name): need for extra in ("train", "sample") for need in direct(extra)}
    assert oldest.keys() == bounds.keys()
    assert [need for name, need in bounds.items() if not need.specifier.contains(oldest[name])] == []
