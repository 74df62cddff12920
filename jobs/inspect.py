"""What the corpus holds, and what a detector could learn from it by mistake: python jobs/inspect.py."""

import os.path
import sys

# A job has jobs/ first on its path, so this file hides the standard library's `inspect` from whatever a job imports. It
# takes jobs/ off the path, where no job looks for anything, and hands over to the real one.
HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib may import `inspect`
sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != HERE]

if __name__ == "inspect":
    del sys.modules["inspect"]
    import inspect  # noqa: F401 - the import system returns what now stands in sys.modules

if __name__ == "__main__":
    from detect_ai.core.job import run_job
    from detect_ai.corpus.audit import inspect as inspect_corpus

    sys.exit(run_job("inspect", inspect_corpus))
