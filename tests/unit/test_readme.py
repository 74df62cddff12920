"""README, docs and Kubernetes manifests: every command, file and override in them exists."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from detect_ai.core.compose import load_config
from detect_ai.schemas import DetectRequest, Verdict

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]}
LINES = [
    line.split("  #")[0].strip()
    for text in PAGES.values()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
BLOCKS = [
    (kind, block) for text in PAGES.values() for kind, block in re.findall(r"```(yaml|json)\n(.*?)```", text, re.DOTALL)
]


def strings(value: object) -> Iterator[str]:
    """All strings in a parsed document."""
    if isinstance(value, str):
        yield " ".join(value.split())
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


MANIFESTS = [
    text
    for path in sorted((CHECKOUT / "ops/kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    for text in strings(document)
]
COMMANDS = LINES + MANIFESTS + [text for _, block in BLOCKS for text in strings(yaml.safe_load(block))]  # JSON is YAML
# Lines with `…` are patterns, not commands.
JOBS = sorted({job for line in COMMANDS for job in re.findall(r"python (?:/app/)?jobs/.*", line) if "…" not in job})
TARGETS = sorted(set(re.findall(r"(?:^|[`;] ?|[A-Z]=1 )make ([a-z-]+)", README, re.MULTILINE)))
LINKS = sorted(
    {
        (path, link)
        for path, text in PAGES.items()
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
        if "://" not in link
    }
)


def test_the_docs_have_commands_to_check() -> None:
    assert len(JOBS) >= 10
    assert {kind for kind, block in BLOCKS if "jobs/retrain.py" in block} == {"json"}
    assert len([job for job in JOBS if "/app/jobs/" in job]) == 2
    assert len([job for job in JOBS if "$" in job]) >= 2
    assert {"demo", "test", "serve"} <= set(TARGETS)


@pytest.mark.parametrize("command", JOBS)
def test_job_commands_compose(command: str) -> None:
    value = re.sub(r"\$\(.*?\)|\$\w+", "x", command)  # a value in place of the shell's
    _, script, *overrides = shlex.split(value)
    assert (CHECKOUT / script.removeprefix("/app/")).is_file()
    load_config([override for override in overrides if not override.startswith("--")])


@pytest.mark.parametrize("target", TARGETS)
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_linked_files_exist(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


def test_requests_and_verdict_of_the_readme_fit_the_api() -> None:
    bodies = re.findall(r"curl .*?-d '(\{.*?\})'", README, re.DOTALL)
    [verdict] = re.findall(r"```json\n(\{\"label.*?\})\n```", README, re.DOTALL)
    assert bodies
    assert all(DetectRequest.model_validate_json(body).all_texts() for body in bodies)
    assert set(json.loads(verdict)) <= set(Verdict.model_fields)


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("command", sorted({line.split()[1] for line in LINES if line.startswith("ray ")}))
def test_ray_commands_exist(command: str) -> None:
    from ray.scripts.scripts import cli

    assert command in cli.commands
