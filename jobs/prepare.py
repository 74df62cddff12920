"""Prepare a corpus from labelled sources: python jobs/prepare.py corpus=sample."""

import sys

from detect_ai.core.job import run_job
from detect_ai.corpus.prepare import prepare

if __name__ == "__main__":
    sys.exit(run_job("prepare", prepare))
