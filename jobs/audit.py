"""Contents of the corpus, and shortcuts a detector could learn from it: python jobs/audit.py."""

import sys

from detect_ai.core.job import run_job
from detect_ai.corpus.audit import inspect

if __name__ == "__main__":
    sys.exit(run_job("audit", inspect))
