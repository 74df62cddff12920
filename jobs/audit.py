"""Describe the corpus and find shortcuts that a detector could learn: python jobs/audit.py."""

import sys

from detect_ai.core.job import run_job
from detect_ai.corpus.audit import audit

if __name__ == "__main__":
    sys.exit(run_job("audit", audit))
