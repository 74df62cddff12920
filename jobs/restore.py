"""Serve the last deployed state again after the head node was lost: python jobs/restore.py."""

import sys
from pathlib import Path

from detect_ai.core.job import run_job

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app is in the checkout, not in the package
    from serve_app.restore import restore

    sys.exit(run_job("restore", restore))
