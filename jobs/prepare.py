"""Sources to a corpus: python jobs/prepare.py corpus=sample."""

import sys

from detect_ai.corpus.prepare import prepare
from detect_ai.stage import run_job

if __name__ == "__main__":
    sys.exit(run_job("prepare", prepare))
