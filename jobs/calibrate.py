"""Calibrate a checkpoint and write the candidate bundle: python jobs/calibrate.py."""

import sys

from detect_ai.core.job import run_job
from detect_ai.release.calibrate import calibrate_checkpoint

if __name__ == "__main__":
    sys.exit(run_job("calibrate", calibrate_checkpoint))
