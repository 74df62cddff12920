"""Checkpoint to candidate bundle, with temperature and thresholds: python jobs/calibrate.py."""

import sys

from detect_ai.core.job import run_job
from detect_ai.release.calibrate import calibrate_checkpoint

if __name__ == "__main__":
    sys.exit(run_job("calibrate", calibrate_checkpoint))
