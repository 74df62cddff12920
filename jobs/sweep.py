"""Search hyper-parameters: python jobs/sweep.py."""

import sys

from detect_ai.core.job import run_job
from detect_ai.training.sweep import sweep

if __name__ == "__main__":
    sys.exit(run_job("sweep", sweep))
