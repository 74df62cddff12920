"""Publish the candidate through the gate as champion: python jobs/publish.py."""

import sys

from detect_ai.core.job import run_job
from detect_ai.release.publish import publish

if __name__ == "__main__":
    sys.exit(run_job("publish", publish))
