"""Compare logged texts with a reference: python jobs/drift.py, or replay data=… monitoring.drift.simulate=[domain]."""

import sys

from detect_ai.core.job import run_job
from detect_ai.monitoring.drift import drift

if __name__ == "__main__":
    sys.exit(run_job("drift", drift))
