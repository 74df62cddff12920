"""Set thresholds for your writers: python jobs/recalibrate.py recalibrate.humans=… recalibrate.population="…"."""

import sys

from detect_ai.core.job import run_job
from detect_ai.release.recalibrate import recalibrate

if __name__ == "__main__":
    sys.exit(run_job("recalibrate", recalibrate))
