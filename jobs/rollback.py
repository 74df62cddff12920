"""The version before the champion becomes champion again: python jobs/rollback.py."""

import sys

from detect_ai.publishing import rollback
from detect_ai.stage import run_job

if __name__ == "__main__":
    sys.exit(run_job("rollback", rollback))
