"""Figures of the candidate bundle on the test split: python jobs/evaluate.py."""

import sys

from detect_ai.evaluation import evaluate
from detect_ai.stage import run_job

if __name__ == "__main__":
    sys.exit(run_job("evaluate", evaluate))
