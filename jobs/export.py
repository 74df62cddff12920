"""Export a bundle to the fastest backend of equal quality on this machine: python jobs/export.py run=… (bundle=…)."""

import sys

from detect_ai.core.job import run_job
from detect_ai.release.export import export

if __name__ == "__main__":
    sys.exit(run_job("export", export))
