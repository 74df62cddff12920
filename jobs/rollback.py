"""Roll back to the previous champion and redeploy: python jobs/rollback.py."""

import sys
from pathlib import Path

from detect_ai.core.job import run_job

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app is in the checkout, not in the package
    from serve_app.deploy import rollback_service

    sys.exit(run_job("rollback", rollback_service))
