import re
import shutil
import subprocess
import sys
from pathlib import Path

import detect_ai

# Calls `git_revision` in the copy of the package in the working directory.
CODE = "import sys; sys.path.insert(0, '.'); from detect_ai.core.revision import git_revision; print(git_revision())"


def test_copy_without_history_has_a_source_digest(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECT_AI_GIT_REVISION", raising=False)
    shutil.copytree(
        Path(detect_ai.__file__).parent, tmp_path / "detect_ai", ignore=shutil.ignore_patterns("__pycache__")
    )

    def revision():
        command = [sys.executable, "-c", CODE]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    first = revision()
    assert re.fullmatch("source-[0-9a-f]{12}", first)
    (tmp_path / "detect_ai/metrics.py").open("a").write("\n# changed\n")
    assert revision() != first
    monkeypatch.setenv("DETECT_AI_GIT_REVISION", "abc")
    assert revision() == "abc"
