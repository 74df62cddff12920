"""The README says what there is: every command, file and override in it exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from detect_ai.core.config import load_config
from detect_ai.schemas import DetectRequest, DetectResponse

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
LINES = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
JOBS = sorted({line[line.index("python jobs/") :] for line in LINES if "python jobs/" in line})
TARGETS = sorted(set(re.findall(r"(?:^|[`;] ?|[A-Z]=1 )make ([a-z-]+)", README, re.MULTILINE)))
LINKS = sorted({link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link})


def test_the_readme_has_commands_to_check() -> None:
    assert len(JOBS) >= 10
    assert {"demo", "test", "serve"} <= set(TARGETS)


@pytest.mark.parametrize("command", JOBS)
def test_a_job_of_the_readme_exists_and_its_overrides_compose(command: str) -> None:
    _, script, *overrides = shlex.split(command)
    assert (CHECKOUT / script).is_file()
    load_config(overrides)


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", LINKS)
def test_a_file_that_the_readme_links_exists(link: str) -> None:
    assert (CHECKOUT / link).exists()


def test_the_request_and_the_answer_shown_fit_the_api() -> None:
    [body] = re.findall(r"curl .*?-d '(\{.*?\})'", README, re.DOTALL)
    [answer] = re.findall(r"```json\n(\{\n.*?\n\})\n```", README, re.DOTALL)
    request = DetectRequest.model_validate_json(body)
    assert len(DetectResponse.model_validate_json(answer).verdicts) == len(request.all_texts())


@pytest.mark.parametrize("command", sorted({line.split()[1] for line in LINES if line.startswith("ray ")}))
def test_a_command_of_ray_in_the_readme_exists(command: str) -> None:
    from ray.scripts.scripts import cli

    assert command in cli.commands
