"""Score texts: python jobs/score.py data=texts.parquet, or bundle=… data=… score.out=… score.format=jsonl."""

import sys

from detect_ai.core.job import run_job
from detect_ai.detector.score import score

if __name__ == "__main__":
    sys.exit(run_job("score", score))
