"""Pause verdicts for some domains: python jobs/abstain.py serve.abstain_domains=[news]; [] resumes them."""

import sys
from pathlib import Path

from detect_ai.core.job import run_job

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app is in the checkout, not in the package
    from serve_app.deploy import abstain

    sys.exit(run_job("abstain", abstain))
