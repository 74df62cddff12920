"""Figures of a run as JSON lines."""

from detect_ai.core.storage import Storage
from detect_ai.training.runlog import RunLog, read


def test_lines_wait_for_one_that_is_written_at_once(tmp_path):
    storage = Storage(str(tmp_path))
    log = RunLog(storage, "runs/a", 0)
    log.write({"kind": "training", "step": 1}, now=False)
    assert read(storage, "runs/a") == []
    log.write({"kind": "evaluation", "step": 2})
    assert [line["step"] for line in read(storage, "runs/a")] == [1, 2]


def test_a_run_that_goes_on_keeps_the_lines_up_to_its_step_and_no_error(tmp_path):
    storage = Storage(str(tmp_path))
    log = RunLog(storage, "runs/a", 0)
    for step, kind in ((2, "training"), (4, "training"), (4, "error"), (6, "training")):
        log.write({"kind": kind, "step": step})
    log = RunLog(storage, "runs/a", 4)
    log.write({"kind": "training", "step": 5})
    assert [(line["step"], line["kind"]) for line in read(storage, "runs/a")] == [(s, "training") for s in (2, 4, 5)]
