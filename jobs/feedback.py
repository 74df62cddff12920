"""Report on labels of served texts: python jobs/feedback.py. Needs a service with monitoring.log=true."""

import sys

from detect_ai.core.job import run_job
from detect_ai.monitoring.feedback import report

if __name__ == "__main__":
    sys.exit(run_job("feedback", report))
