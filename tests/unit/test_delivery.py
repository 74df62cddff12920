"""Release notes, cloudbuild.yaml against Google's description of its API, and the images of both builders."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import googleapiclient.discovery_cache
import pytest
import yaml

from ops.gcp.check import complaints

CHECKOUT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
BUILD = yaml.safe_load((CHECKOUT / "cloudbuild.yaml").read_text(encoding="utf-8"))


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CHECKOUT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))
    return loaded


def release_notes(folder: Path, tag: str) -> subprocess.CompletedProcess[str]:
    """Run the release workflow's step in a folder with the files that it reads."""
    for name in ("pyproject.toml", "CHANGELOG.md"):
        if not (folder / name).exists():
            shutil.copy(CHECKOUT / name, folder)
    (script,) = [step["run"] for step in workflow("release")["jobs"]["build"]["steps"] if "awk" in step.get("run", "")]
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    environment = os.environ | {"GITHUB_REF_NAME": tag}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_changelog_has_a_section_of_the_version(tmp_path: Path) -> None:
    done = release_notes(tmp_path, f"v{VERSION}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "### Added" in (tmp_path / "notes/notes.md").read_text(encoding="utf-8")


def test_notes_are_one_section(tmp_path: Path) -> None:
    changelog = f"## [Unreleased]\nsoon\n\n## [{VERSION}]\n### Added\nnow\n\n## [0.0.9]\nbefore\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    assert release_notes(tmp_path, f"v{VERSION}").returncode == 0
    assert (tmp_path / "notes/notes.md").read_text() == "### Added\nnow\n\n"


@pytest.mark.parametrize("tag", ["v99.0.0", VERSION.replace(".", "x")])
def test_a_tag_of_another_version_is_no_release(tmp_path: Path, tag: str) -> None:
    assert release_notes(tmp_path, tag).returncode == 1


def test_a_version_without_notes_is_no_release(tmp_path: Path) -> None:
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\nsoon\n")
    assert release_notes(tmp_path, f"v{VERSION}").returncode == 1


def test_google_knows_every_field_of_the_build() -> None:
    documents = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    schemas = json.loads((documents / "cloudbuild.v1.json").read_text(encoding="utf-8"))["schemas"]
    build = {key: value for key, value in BUILD.items() if key != "substitutions"}  # our own names
    assert complaints(build, {"$ref": "Build"}, schemas, "cloudbuild.yaml") == []
    assert all(isinstance(value, str) for value in BUILD["substitutions"].values())


def test_every_substitution_has_a_default() -> None:
    used = set(re.findall(r"(?<!\$)\$\{?(\w+)", json.dumps(BUILD)))
    assert used - {"PROJECT_ID", "_TAG"} == BUILD["substitutions"].keys() - {"_TAG"}
    assert "_TAG" in BUILD["substitutions"]


def test_both_builders_build_the_same_images() -> None:
    ours = {}
    for step in BUILD["steps"]:
        if step.get("args", [""])[0] == "build":
            options = dict(zip(step["args"][1:-1:2], step["args"][2:-1:2], strict=True))
            assert options["--tag"] == f"${{_IMAGES}}/{step['id']}:${{_TAG}}"
            ours[step["id"]] = (options["--file"], options.get("--build-arg", ""))
    rows = workflow("images")["jobs"]["publish"]["strategy"]["matrix"]["include"]
    variable = "${{ vars.TORCH_INDEX }}"
    published = {row["image"]: (row["file"], row["arguments"].replace(variable, "${_TORCH_INDEX}")) for row in rows}
    assert ours == published
    assert BUILD["images"] == [f"${{_IMAGES}}/{name}:${{_TAG}}" for name in ours]
    assert all((CHECKOUT / file).is_file() for file, _ in ours.values())


def test_base_images_have_the_pinned_ray() -> None:
    pinned = re.search(r"^ray==([\d.]+)", (CHECKOUT / "requirements/train.txt").read_text(), re.MULTILINE)
    assert pinned
    for name in ("cloudbuild.yaml", ".github/workflows/images.yml"):
        assert re.findall(r"rayproject/ray:([\d.]+)-", (CHECKOUT / name).read_text()) == [pinned[1]]


def test_pull_requests_publish_nothing() -> None:
    jobs = workflow("images")["jobs"]
    assert jobs["build"]["permissions"] == {"contents": "read"}
    assert (jobs["build"]["if"], jobs["publish"]["if"]) == (
        "github.event_name == 'pull_request'",
        "github.event_name == 'push'",
    )
    assert jobs["build"]["steps"][-1]["with"]["push"] is False
