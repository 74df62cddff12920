"""Download the published sources of a corpus and convert them: python jobs/fetch.py corpus=public --list."""

import sys

from detect_ai.core.job import run_job
from detect_ai.corpus.fetch import fetch

FLAGS = {
    "--list": ("fetch.dry_run=true", "list the sources with their licences and sizes, download nothing"),
    "--accept-licence": ("fetch.accept_licence=true", "accept the licences of sources that ask for consent"),
}

if __name__ == "__main__":
    sys.exit(run_job("fetch", fetch, flags=FLAGS))
