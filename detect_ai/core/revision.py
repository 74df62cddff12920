"""Revision of the running code, for the provenance of a bundle."""

from __future__ import annotations

import hashlib
import os
import subprocess
from contextlib import suppress
from pathlib import Path


def git_revision() -> str:
    """DETECT_AI_GIT_REVISION, else the revision of this checkout, else `source-` and a digest of the package.

    `ray job submit` uploads no git history; there the digest of the package's sources identifies the code.
    """
    if given := os.environ.get("DETECT_AI_GIT_REVISION"):
        return given
    package = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(package.parent), "rev-parse", "--show-toplevel", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
        top, revision = done.stdout.splitlines()
        if Path(top).resolve() == package.parent:  # not an enclosing repository
            return revision
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return f"source-{digest.hexdigest()[:12]}"
