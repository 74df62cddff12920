"""Fine-tune the encoder on the prepared corpus: python jobs/train.py train.lr=1e-4."""

import sys

from detect_ai.core.job import run_job
from detect_ai.training.train import train

if __name__ == "__main__":
    sys.exit(run_job("train", train))
