"""Checkpoint to candidate bundle, with temperature and thresholds: python jobs/calibrate.py."""

import sys

from detect_ai.calibrating import calibrate_checkpoint
from detect_ai.core.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("calibrate", calibrate_checkpoint))
