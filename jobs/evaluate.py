"""Evaluate a bundle on labelled texts: python jobs/evaluate.py run=… for the test split, or bundle=… data=…."""

import sys

from detect_ai.core.job import run_job
from detect_ai.evaluation.evaluate import evaluate, result_name

if __name__ == "__main__":
    sys.exit(run_job("evaluate", evaluate, result_name=result_name))
