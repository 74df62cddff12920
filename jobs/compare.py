"""Compare bundles on the same texts: python jobs/compare.py compare.bundles=[a,b] data=texts.parquet."""

import sys

from detect_ai.core.job import run_job
from detect_ai.evaluation.compare import compare

if __name__ == "__main__":
    sys.exit(run_job("compare", compare))
