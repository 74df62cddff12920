"""The version before the champion becomes champion again, and the service agrees: python jobs/rollback.py."""

import sys
from pathlib import Path

from detect_ai.core.job import run_job

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app lives in the checkout, beside jobs/
    from serve_app.deploy import rollback_service

    sys.exit(run_job("rollback", rollback_service))
