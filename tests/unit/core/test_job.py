import json
import logging
import shutil
from itertools import pairwise

import pyarrow as pa
import pytest
from pyarrow import csv
from ray.exceptions import RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from detect_ai import __version__
from detect_ai.core.compose import load_config
from detect_ai.core.errors import ConfigError, CorpusError, GateError, unwrap_ray_error
from detect_ai.core.job import read_result, run_job, run_stage
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
    return {"lr": config.train.lr, "name": "naïve"}


def raising(error):
    def stage(config, storage):
        raise error

    return stage


def wrapped(error):
    """Error of a task as Ray raises it in the driver: an instance of both types, with a traceback as its text."""
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


def test_result_is_the_output(root, capsys):
    status, out, _ = job(works, "train.lr=3e-5", capsys=capsys)
    assert (status, json.loads(out)) == (0, {"lr": 3e-5, "name": "naïve"})


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (CorpusError("source x.csv: empty\nsecond"), 2, "error: source x.csv: empty"),
        (GateError("AUROC is 0.5"), 1, "error: AUROC is 0.5"),
        (RuntimeError("many\nlines\nlast"), 1, "error: RuntimeError: last (--verbose shows the traceback)"),
        (RuntimeError(), 1, "error: RuntimeError:  (--verbose shows the traceback)"),
        (
            shutil.Error([("a", "b", "[Errno 28] full: 'b'")]),
            1,
            "error: OSError: [Errno 28] full: 'b' (--verbose shows the traceback)",
        ),
    ],
)
def test_error_is_one_line_with_an_exit_status(root, capsys, error, status, line):
    code, out, err = job(raising(error), capsys=capsys)
    assert (code, out, errors(err)) == (status, "", [line])
    assert list(root.iterdir()) == []


def test_invalid_configuration_writes_nothing(root, capsys):
    status, out, err = job(raising(AssertionError("the stage ran")), "train.lr=0", capsys=capsys)
    assert (status, out, len(errors(err))) == (2, "", 1)
    assert "train.lr=0" in err
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(("flags", "expected"), [([], False), (["--verbose"], True)])
def test_verbose_prints_the_traceback(root, capsys, flags, expected):
    _, _, err = job(raising(RuntimeError("boom")), *flags, capsys=capsys)
    assert ("Traceback" in err) is expected
    assert errors(err)[0].startswith("error: RuntimeError: boom")
    assert ("--verbose" in err) is not expected


def test_flags_and_overrides_mix(root, capsys, tmp_path):
    (tmp_path / "mine/train").mkdir(parents=True)
    (tmp_path / "mine/train/slow.yaml").write_text("lr: 1e-6\n")
    argv = ("train=slow", "--config-dir", str(tmp_path / "mine"), "seed=4")
    status, out, _ = job(lambda config, _: {"lr": config.train.lr, "seed": config.seed}, *argv, capsys=capsys)
    assert (status, json.loads(out)) == (0, {"lr": 1e-6, "seed": 4})


def test_relative_root_becomes_absolute(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECT_AI_STORAGE_ROOT", raising=False)
    status, out, _ = job(lambda config, _: {"root": config.storage.root}, "storage.root=here", capsys=capsys)
    assert (status, json.loads(out)) == (0, {"root": str(tmp_path / "here")})


# Results


def test_result_is_saved_with_its_configuration(root, capsys):
    job(works, "run=first", "train.lr=3e-5", capsys=capsys)
    record = json.loads((root / "runs/first/train.json").read_text())
    assert record["result"] == {"lr": 3e-5, "name": "naïve"}
    expected = load_config(["run=first", "train.lr=3e-5"]).model_dump()
    assert record["config"] == expected
    assert (record["stage"], record["run"], record["detect_ai"]) == ("train", "first", __version__)
    assert record["seconds"] >= 0


def test_missing_result_names_the_command(tmp_path):
    storage = Storage(str(tmp_path))
    with pytest.raises(ConfigError, match=r"run `python jobs/train\.py run=first` first"):
        read_result(storage, "first", "train")
    run_stage("train", works, load_config(["run=first"]), storage)
    assert read_result(storage, "first", "train") == {"lr": 1.5e-4, "name": "naïve"}


def test_result_name_from_the_configuration(root):
    argv = ("run=first", "data=/x/texts.csv")
    assert run_job("evaluate", works, argv, result_name=lambda config: f"evaluate-{config.data[3:8]}") == 0
    assert read_result(Storage(str(root)), "first", "evaluate-texts")["name"] == "naïve"
    assert [path.name for path in (root / "runs/first").iterdir()] == ["evaluate-texts.json"]


def test_settle_sees_the_overrides_of_the_command_line(root):
    given = []
    argv = ("run=first", "~sweep.space.lr", "train.lr=1e-5")
    assert run_job("train", works, argv, settle=lambda config, overrides: given.extend(overrides)) == 0
    assert given == list(argv)


# Wrapped errors

CAUSE = CorpusError("source x.csv: no column 'text'")


@pytest.mark.parametrize(
    "error",
    [
        CAUSE,
        chained(RuntimeError("outer"), ValueError("middle"), CAUSE),
        wrapped(CAUSE),
        chained(RuntimeError("Ray Data"), wrapped(wrapped(CAUSE))),
        WorkerGroupError("rank 1", {0: KeyError("x"), 1: wrapped(UserExceptionWithTraceback(CAUSE, "a traceback"))}),
        ControllerError(wrapped(CAUSE)),
    ],
)
def test_error_is_unwrapped_from_ray(root, capsys, error):
    assert unwrap_ray_error(error) is CAUSE
    status, _, err = job(raising(error), capsys=capsys)
    assert (status, errors(err)) == (2, ["error: source x.csv: no column 'text'"])


def test_foreign_error_is_unchanged():
    error = chained(RuntimeError("outer"), KeyError("inner"))
    assert unwrap_ray_error(error) is error
    error.__cause__.__cause__ = error  # a cycle
    assert unwrap_ray_error(error) is error


# Document text


@pytest.mark.parametrize(
    "data",
    [
        f"text,label\nshort,0\n{SECRET}, with a comma,1\n",
        f'text,label\n"not closed,0\n{SECRET}\n',
        f"label,text\n{SECRET},0\n",
    ],
)
@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
def test_error_line_has_no_document_text(root, capsys, data, wrap):
    options = csv.ConvertOptions(column_types={"label": pa.int8()})
    with pytest.raises(pa.ArrowInvalid, match=SECRET) as failed:
        csv.read_csv(pa.BufferReader(data.encode()), convert_options=options)
    status, _, err = job(raising(wrap(failed.value)), capsys=capsys)
    assert status == 1
    assert len(errors(err)) == 1
    assert SECRET not in err


def test_only_own_errors_are_reraised_without_ray():
    with pytest.raises(CorpusError) as refused, reraise_own_errors():
        raise wrapped(CAUSE)
    assert (type(refused.value), str(refused.value)) == (CorpusError, str(CAUSE))
    error = wrapped(OSError("no space left"))
    with pytest.raises(type(error)) as raised, reraise_own_errors():
        raise error
    assert raised.value is error
