"""Revision of the running code, for the provenance of a bundle."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path


def git_revision() -> str:
    """DETECT_AI_GIT_REVISION, else the revision of this checkout, else `source-` and a digest of the package's code.

    `ray job submit` uploads no history; the digest identifies the code there, as does the same call in any checkout.
    """
    if given := os.environ.get("DETECT_AI_GIT_REVISION"):
        return given
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return source_digest()
    top, revision = done.stdout.splitlines()
    return revision if Path(top).resolve() == root else source_digest()  # a repository around ours


def source_digest() -> str:
    """`source-` and the first 12 hex digits of a sha256 over the Python files of `detect_ai`."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return f"source-{digest.hexdigest()[:12]}"
