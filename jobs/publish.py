"""Publish the candidate as champion if it passes the promotion gate: python jobs/publish.py."""

import sys

from detect_ai.core.job import run_job
from detect_ai.release.publish import publish

if __name__ == "__main__":
    sys.exit(run_job("publish", publish))
