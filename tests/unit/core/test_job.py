import json
import logging
import sys
from itertools import pairwise

import pyarrow as pa
import pytest
from pyarrow import csv
from ray.exceptions import RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from detect_ai import __version__
from detect_ai.core.config import load_config
from detect_ai.core.errors import ConfigError, CorpusError, GateError, ResourceError, TrainingError, ours
from detect_ai.core.job import read_result, result_key, run_job, run_stage
from detect_ai.core.storage import Storage
from detect_ai.corpus.shards import reraise_own_errors

SECRET = "the midnight text that nobody may read"


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECT_AI_STORAGE_ROOT", str(tmp_path))
    return tmp_path


def works(config, storage):
    """Do something. The rest of the docstring is not shown."""
    return {"lr": config.train.lr, "name": "naïve"}


def raising(error):
    def stage(config, storage):
        raise error

    return stage


def wrapped(error):
    """What Ray raises in the driver for an error in a task: of both types, and its text is a traceback."""
    traceback = f'Traceback (most recent call last):\n  File "x.py", line 1, in f\n{type(error).__name__}: {error}'
    return RayTaskError("f", traceback, error, ip="127.0.0.1").as_instanceof_cause()


def chained(*errors):
    """Each error raised from the next one."""
    for outer, inner in pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


def job(stage, *argv, capsys):
    capsys.readouterr()
    status = run_job("train", stage, argv)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error:")]


# Exit status and output


def test_a_stage_that_works_exits_with_0_and_prints_its_result_as_the_last_line(root, capsys):
    def chatty(config, storage):
        sys.stdout.write("something before\n")
        return works(config, storage)

    status, out, _ = job(chatty, "train.lr=3e-5", capsys=capsys)
    assert status == 0
    assert json.loads(out.splitlines()[-1]) == {"lr": 3e-5, "name": "naïve"}


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CorpusError("source x.csv: empty"), 2, "error: source x.csv: empty"),
        (GateError("AUROC is 0.5"), 1, "error: AUROC is 0.5"),
        (ResourceError("3 CPUs missing"), 1, "error: 3 CPUs missing"),
        (TrainingError("the loss is nan"), 1, "error: the loss is nan"),
        (ZeroDivisionError("by zero"), 1, "error: ZeroDivisionError: by zero (--verbose shows the traceback)"),
        (RuntimeError("many\nlines\nlast"), 1, "error: RuntimeError: last (--verbose shows the traceback)"),
        (RuntimeError(), 1, "error: RuntimeError:  (--verbose shows the traceback)"),
        (CorpusError("first\nsecond"), 2, "error: first"),
    ],
)
def test_bad_input_exits_with_2_and_everything_else_with_1_in_one_error_line(root, capsys, error, status, line):
    found, out, err = job(raising(error), capsys=capsys)
    assert (found, out, errors(err)) == (status, "", [line])


def test_a_configuration_that_is_wrong_stops_the_job_before_the_stage_and_writes_nothing(root, capsys):
    status, out, err = job(raising(AssertionError("the stage ran")), "train.lr=0", capsys=capsys)
    assert (status, out) == (2, "")
    assert errors(err) == ["error: config: train.lr=0: expected greater than 0"]
    assert list(root.iterdir()) == []


def test_a_stage_that_fails_leaves_no_result(root, capsys):
    job(raising(CorpusError("x")), capsys=capsys)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(("flags", "expected"), [([], False), (["--verbose"], True)])
def test_the_traceback_stands_behind_verbose(root, capsys, flags, expected):
    _, _, err = job(raising(RuntimeError("boom")), *flags, capsys=capsys)
    assert ("Traceback" in err) is expected
    assert errors(err)[0].startswith("error: RuntimeError: boom")
    assert ("--verbose" in err) is not expected


def test_flags_may_stand_between_overrides(root, capsys, tmp_path):
    (tmp_path / "mine/train").mkdir(parents=True)
    (tmp_path / "mine/train/slow.yaml").write_text("lr: 1e-6\n")
    argv = ("train=slow", "--config-dir", str(tmp_path / "mine"), "seed=4")
    status, out, _ = job(lambda config, _: {"lr": config.train.lr, "seed": config.seed}, *argv, capsys=capsys)
    assert (status, json.loads(out)) == (0, {"lr": 1e-6, "seed": 4})


def test_help_shows_the_first_line_of_the_stages_docstring(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_job("train", works, ["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "python jobs/train.py" in shown
    assert "Do something. The rest of the docstring is not shown." in shown


def test_a_relative_root_is_absolute_in_the_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECT_AI_STORAGE_ROOT", raising=False)
    status, out, _ = job(lambda config, _: {"root": config.storage.root}, "storage.root=here", capsys=capsys)
    assert (status, json.loads(out)) == (0, {"root": str(tmp_path / "here")})


# Results


def test_the_result_lies_beside_the_resolved_configuration(root, capsys):
    job(works, "run=first", "train.lr=3e-5", capsys=capsys)
    record = json.loads((root / "runs/first/train.json").read_text())
    assert record["result"] == {"lr": 3e-5, "name": "naïve"}
    expected = load_config(["run=first", "train.lr=3e-5"]).to_dict()
    assert record["config"] == expected
    assert (record["stage"], record["run"], record["detect_ai"]) == ("train", "first", __version__)
    assert record["seconds"] >= 0


def test_a_later_stage_reads_the_result_of_an_earlier_one(tmp_path):
    storage = Storage(str(tmp_path))
    run_stage("train", works, load_config(["run=first"]), storage)
    assert read_result(storage, "first", "train") == {"lr": 1.5e-4, "name": "naïve"}
    assert storage.exists(result_key("first", "train"))


def test_a_stage_that_did_not_run_yet_is_named_with_the_command(tmp_path):
    with pytest.raises(ConfigError) as refused:
        read_result(Storage(str(tmp_path)), "first", "train")
    assert str(refused.value) == (
        f"run=first: no result of 'train' under {tmp_path}: run `python jobs/train.py run=first` first"
    )


def test_a_result_may_be_kept_under_a_name_that_the_configuration_gives(root, capsys):
    argv = ("run=first", "data=/x/texts.csv")
    status = run_job("evaluate", works, argv, result_name=lambda config: f"evaluate-{config.data[3:8]}")
    assert status == 0
    assert json.loads((root / "runs/first/evaluate-texts.json").read_text())["result"]["name"] == "naïve"
    assert read_result(Storage(str(root)), "first", "evaluate-texts")["name"] == "naïve"
    assert [path.name for path in (root / "runs/first").iterdir()] == ["evaluate-texts.json"]


def test_a_name_of_a_result_that_cannot_be_made_is_one_line_too(root, capsys):
    assert run_job("evaluate", works, (), result_name=raising_name) == 2
    assert errors(capsys.readouterr().err) == ["error: data=: no name"]


def raising_name(config):
    raise ConfigError("data=: no name")


# Errors inside errors

CAUSE = CorpusError("source x.csv: no column 'text'")


@pytest.mark.parametrize(
    "error",
    [
        CAUSE,
        chained(RuntimeError("outer"), ValueError("middle"), CAUSE),
        wrapped(CAUSE),
        chained(RuntimeError("Ray Data"), wrapped(CAUSE)),
        wrapped(wrapped(CAUSE)),
        WorkerGroupError("rank 1 failed", {1: CAUSE}),
        WorkerGroupError("rank 1 failed", {0: KeyError("x"), 1: UserExceptionWithTraceback(CAUSE, "a traceback")}),
        WorkerGroupError("rank 0 failed", {0: wrapped(UserExceptionWithTraceback(CAUSE, "a traceback"))}),
        ControllerError(wrapped(CAUSE)),
    ],
    ids=[
        "itself",
        "chain",
        "task",
        "chain of a task",
        "task in task",
        "worker",
        "worker with traceback",
        "worker task",
        "controller",
    ],
)
def test_our_error_is_found_inside_what_ray_puts_around_it(root, capsys, error):
    assert ours(error) is CAUSE
    status, _, err = job(raising(error), capsys=capsys)
    assert (status, errors(err)) == (2, ["error: source x.csv: no column 'text'"])


def test_an_error_without_one_of_ours_stays_itself():
    error = chained(RuntimeError("outer"), KeyError("inner"))
    assert ours(error) is error


def test_causes_that_go_round_in_a_circle_end():
    first, second = RuntimeError("1"), RuntimeError("2")
    first.__cause__, second.__cause__ = second, first
    assert ours(first) is first


# What nobody may read


def parser_error(data):
    with pytest.raises(pa.ArrowInvalid) as failed:
        csv.read_csv(pa.BufferReader(data), convert_options=csv.ConvertOptions(column_types={"label": pa.int8()}))
    assert SECRET in str(failed.value)
    return failed.value


@pytest.fixture(
    params=[
        f"text,label\nshort,0\n{SECRET}, with a comma,1\n",
        f'text,label\n"not closed,0\n{SECRET}\n',
        f"label,text\n{SECRET},0\n",
    ],
    ids=["a column too many", "a quote that is not closed", "text for a number"],
)
def leaky(request):
    """An error of the CSV parser that repeats a row."""
    return parser_error(request.param.encode())


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped], ids=["here", "in a task"])
def test_no_text_of_a_document_stands_in_an_error_line(root, capsys, leaky, wrap):
    status, _, err = job(raising(wrap(leaky)), capsys=capsys)
    assert status == 1
    assert len(errors(err)) == 1
    assert SECRET not in err


def test_what_we_said_in_a_worker_is_raised_without_the_wrappers_of_ray():
    with pytest.raises(CorpusError) as refused, reraise_own_errors():
        raise wrapped(CAUSE)
    assert (type(refused.value), str(refused.value)) == (CorpusError, str(CAUSE))


def test_what_we_did_not_say_is_raised_as_it_is():
    error = wrapped(OSError("no space left"))
    with pytest.raises(type(error)) as raised, reraise_own_errors():
        raise error
    assert raised.value is error
