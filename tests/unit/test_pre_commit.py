"""The secret scan before a commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("key = 'AKIA" + "Z7QXJ3MPVN5RT2WL'", 1),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", 1),
        ("url = 'https://ada:" + "f7Kq2mXw@example.org/'", 1),
        ("url = 'https://ada:secret@example.org/'", 0),
        (f"sha256 = '{'5654f8c5eaa0d4fa' * 4}'", 0),
    ],
)
def test_credentials_stop_a_commit(tmp_path: Path, line: str, code: int) -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (hook,) = [hook for hook in local["hooks"] if hook["id"] == "detect-secrets"]
    program = Path(sys.executable).with_name(Path(hook["entry"]).name)
    (tmp_path / "settings.py").write_text(f"{line}\n", encoding="utf-8")
    done = subprocess.run([program, *hook["args"], "settings.py"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == code
