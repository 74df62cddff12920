"""Deploy the champion: python jobs/deploy.py serve.port=8000."""

import sys
from pathlib import Path

from detect_ai.core.job import run_job

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # serve_app is in the checkout, not in the package
    from serve_app.deploy import deploy_to_cluster

    sys.exit(run_job("deploy", deploy_to_cluster))
