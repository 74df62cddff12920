"""The command as a script meets it: words, JSON and exit codes, over a bundle and over a service."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from detect_ai import __version__
from detect_ai.calibration.calibration import calibrate
from detect_ai.cli import main
from detect_ai.core.ray_runtime import free_port
from detect_ai.detector import bundle
from detect_ai.detector.detector import Detector
from detect_ai.schemas import Label, ModelInfo, Verdict
from detect_ai.wording import WARNING
from tests.fixtures import tiny_models
from tests.fixtures.fake_service import ANSWER, Reply, problem, service, serving, verdict

TEXTS = [tiny_models.text(("human", "ai")[seed % 2], random.Random(seed), 60) for seed in range(20)]
SENTENCE = "The old bridge went near the market."


@pytest.fixture(autouse=True)
def _no_service_by_default(monkeypatch):
    for name in ("DETECT_AI_URL", "DETECT_AI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def decided(tiny_bundle, tmp_path_factory):
    """The tiny bundle, calibrated so that it calls the lower half of some texts human and the upper half AI."""
    folder = tmp_path_factory.mktemp("decided") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    before = Detector.load(folder)
    scores = np.sort(before.score([each.input_ids for each in before.read(TEXTS)]))
    low, middle, high = scores[0], np.median(scores), scores[-1]
    both = np.concatenate([np.linspace(low, middle, 40), np.linspace(middle, high, 40)])
    bundle.seal(folder, replace(before.spec, calibration=calibrate(np.repeat([0, 1], 40), both, [0.05, 0.1])))
    return folder


@pytest.fixture(scope="module")
def detector(decided):
    return Detector.load(decided)


@pytest.fixture(scope="module")
def files(detector, tmp_path_factory):
    """A file for each label."""
    folder = tmp_path_factory.mktemp("files")
    texts = ["Too short.", *TEXTS]
    found = dict(zip((each.label for each in detector.detect(texts)), texts, strict=True))
    assert set(found) == set(Label)
    paths = {label: folder / f"{label}.txt" for label in sorted(found)}
    for label, path in paths.items():
        path.write_text(found[label])
    return paths


def judge(folder, *arguments):
    return main(["check", "--bundle", str(folder), *map(str, arguments)])


def json_lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# Exit codes


@pytest.mark.parametrize(
    ("labels", "options", "code"),
    [
        ([Label.HUMAN], [], 0),
        ([Label.HUMAN, Label.UNCERTAIN], [], 4),
        ([Label.HUMAN, Label.UNCERTAIN], ["--uncertain-ok"], 0),
        ([Label.UNCERTAIN, Label.AI, Label.HUMAN], [], 3),
        ([Label.UNCERTAIN, Label.AI], ["--uncertain-ok"], 3),
    ],
)
def test_the_exit_code_tells_the_strongest_verdict(decided, files, labels, options, code):
    assert judge(decided, *(files[label] for label in labels), *options) == code


def test_a_file_that_cannot_be_judged_comes_before_any_verdict_and_does_not_stop_the_others(
    decided, files, tmp_path, capsys
):
    assert judge(decided, tmp_path / "missing.txt", files[Label.AI], "--json") == 2
    said = capsys.readouterr()
    first, second = map(json.loads, said.out.splitlines())
    assert first == {"file": str(tmp_path / "missing.txt"), "verdict": None, "error": "No such file or directory"}
    assert second["verdict"]["label"] == "ai"
    assert said.err == f"error: {tmp_path / 'missing.txt'}: No such file or directory\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b" \n", "there is no text in it"),
        ("latin.txt", b"ma\xefs canary", "not UTF-8 (the byte at 2): save it as UTF-8 text"),
        ("image", b"a\0b", "no text, but a file of another kind: save it as txt"),
        ("paper.docx", b"PK", "docx and pdf are read by a service only: give --url, or save it as txt"),
        ("paper.PDF", b"%PDF", "docx and pdf are read by a service only: give --url, or save it as txt"),
        ("page.html", b"<p>canary", "expected txt or md, or docx and pdf by a service: save it as txt"),
    ],
)
def test_bad_input_is_said_in_one_line_that_repeats_no_text(decided, tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert judge(decided, path) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"error: {path}: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "-"], "no detector: give --bundle PATH or --url URL, or set DETECT_AI_URL"),
        (["model", "--bundle", "/nowhere"], "bundle /nowhere: no detector.json"),
        (["check", "-", "--url", "nowhere"], "the address of the service is none of http or https alone"),
    ],
)
def test_wrong_usage_exits_with_2_and_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_an_unknown_target_names_those_there_are(decided, files, capsys):
    assert judge(decided, files[Label.AI], "--target-fpr", "0.2") == 2
    assert "target_fpr=0.2: this model has thresholds for 0.05, 0.1" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["check"], ["check", "-", "--bundle", "a", "--url", "b"]])
def test_argparse_exits_with_2_too(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("command", [[], ["check"], ["model"]])
def test_the_help_documents_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n  {code} " in said for code in (0, 1, 2, 3, 4, 130))


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"detect-ai {__version__}\n"


# Words and JSON


def test_json_is_one_line_a_file_and_the_verdict_is_that_of_the_library(decided, files, detector, capsys):
    names = [str(path) for path in files.values()]
    judge(decided, *names, "--json", "--spans", "--target-fpr", "0.1")
    lines = json_lines(capsys)
    assert [line["file"] for line in lines] == names
    for line, path in zip(lines, files.values(), strict=True):
        [expected] = detector.detect([path.read_text()], 0.1, True)
        assert Verdict.model_validate(line["verdict"]) == expected


def test_the_verdict_stands_first_and_the_warning_last(decided, files, capsys):
    judge(decided, files[Label.AI], files[Label.HUMAN])
    said = capsys.readouterr().out
    assert said.startswith(f"{files[Label.AI]}: Likely AI-generated\n  It may be human all the same: ")
    assert f"\n{files[Label.HUMAN]}: No sign of AI\n" in said
    assert " ".join(said.split()).endswith(WARNING)
    assert said.count("A score is no proof.") == 1


def test_a_text_that_cannot_be_judged_gets_no_number(decided, tmp_path, capsys):
    path = tmp_path / "short.txt"
    path.write_text("Too short.")
    judge(decided, path, "--spans")
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: Can't tell: too short")
    assert "%" not in said


def test_spans_show_every_sentence_with_its_probability(decided, files, detector, capsys):
    judge(decided, files[Label.AI], "--spans")
    said = " ".join(capsys.readouterr().out.split())
    text = files[Label.AI].read_text()
    for span in detector.detect([text], return_spans=True)[0].spans:
        assert f"% {text[span.start : span.end]}" in said


def test_nothing_of_a_text_or_a_name_steers_the_terminal(tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\u202e.txt"
    path.write_text("One\x1b]0;title\x07 sentence.", newline="")
    spans = [{"start": 0, "end": len(path.read_text()), "probability": 0.5}]

    def answer(asked):
        return Reply({**ANSWER, "verdicts": [verdict("x", spans=spans, ai_fraction=1.0)]})

    with serving(answer) as server:
        assert main(["check", "--url", server.url, "--spans", str(path)]) == 0
    said = capsys.readouterr().out
    assert "One\N{REPLACEMENT CHARACTER}]0;title" in said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


def test_the_standard_input_is_a_file_too(decided, files, capsys, monkeypatch):
    data = b"\xef\xbb\xbf" + files[Label.AI].read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert judge(decided, "-", "--json") == 3
    [line] = json_lines(capsys)
    assert line["file"] == "-"
    assert line["verdict"]["tampering"] == {}  # a byte order mark is none


def test_what_windows_calls_unicode_is_read(decided, files, tmp_path):
    path = tmp_path / "notepad.txt"
    path.write_text(files[Label.AI].read_text(), encoding="utf-16")
    assert judge(decided, path) == 3


def test_model_tells_thresholds_and_guarantee_without_loading_weights(decided, detector, capsys):
    assert main(["model", "--bundle", str(decided)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"Model {detector.version}: tiny, trained on the corpus made (en).")
    assert "--target-fpr 0.05 (the default): AI from a probability of" in said
    assert said.endswith("Never judge a person by a score alone.")
    assert main(["model", "--bundle", str(decided), "--json"]) == 0
    assert ModelInfo.model_validate_json(capsys.readouterr().out).model_version == detector.version


# Over a service


def test_a_service_judges_with_the_options_given(files, capsys, monkeypatch):
    with serving(service) as server:
        monkeypatch.setenv("DETECT_AI_URL", server.url)
        assert main(["check", str(files[Label.AI]), "--target-fpr", "0.05", "--spans", "--json"]) == 0
    [asked] = server.asked
    text = files[Label.AI].read_text()
    assert json.loads(asked.body) == {"texts": [text], "target_fpr": 0.05, "return_spans": True}
    assert json_lines(capsys)[0]["verdict"] == verdict(text)


def test_a_document_is_taken_apart_by_the_service(tmp_path, capsys):
    path = tmp_path / "paper.docx"
    path.write_bytes(b"PK canary")
    spans = [{"start": 0, "end": len(SENTENCE), "probability": 0.25}]
    found = {"name": "paper.docx", "num_chars": 36, "text": SENTENCE, "verdict": verdict("x", spans=spans)}
    with serving(lambda asked: Reply({**ANSWER, "files": [found]})) as server:
        assert main(["check", "--url", server.url, str(path), "--spans"]) == 0
    assert server.paths() == ["/v1/detect/file"]
    assert b"PK canary" in server.asked[0].body
    assert f"25%  {SENTENCE}" in capsys.readouterr().out


def test_a_document_that_the_service_cannot_read_does_not_stop_the_others(tmp_path, files, capsys):
    path = tmp_path / "paper.pdf"
    path.write_bytes(b"%PDF")
    found = {"name": "paper.pdf", "num_chars": 0, "problem": problem(422, "no text in it").content}

    def answer(asked):
        return Reply({**ANSWER, "files": [found]}) if asked.path.endswith("file") else service(asked)

    with serving(answer) as server:
        assert main(["check", "--url", server.url, str(path), str(files[Label.AI])]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: {path}: no text in it\n"
    assert f"{files[Label.AI]}: No sign of AI" in said.out


@pytest.mark.parametrize(
    ("status", "code", "requests"), [(401, 2, 1), (403, 2, 1), (404, 2, 1), (500, 1, 1), (422, 2, 2)]
)
def test_what_no_other_file_would_change_ends_the_command(files, status, code, requests):
    with serving(lambda _: problem(status)) as server:
        assert main(["check", "--url", server.url, *map(str, list(files.values())[:2])]) == code
    assert len(server.asked) == requests


def test_nobody_there_exits_with_1(files, capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["check", "--url", url, str(files[Label.AI])]) == 1
    assert capsys.readouterr().err.startswith(f"error: {url} cannot be reached")


# As a process


def run(*arguments, **options):
    """The command in a process of its own, which tells the modules that it loaded as its last line of errors."""
    code = "import sys; from detect_ai.cli import main; code = main(); print(*sys.modules, file=sys.stderr); exit(code)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_a_bundle_is_judged_without_ray(decided, files):
    done = run("check", "--bundle", decided, files[Label.AI], "--json")
    assert done.returncode == 3, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert not {"ray", "httpx"} & set(done.stderr.split())


def test_a_service_is_asked_without_torch(files):
    with serving(service) as server:
        done = run("check", files[Label.AI], env={**os.environ, "DETECT_AI_URL": server.url})
    assert done.returncode == 0, done.stderr
    assert not {"ray", "torch", "numpy"} & set(done.stderr.split())


def test_a_reader_that_goes_away_leaves_no_traceback(decided):
    command = f"{sys.executable} -m detect_ai.cli model --bundle {decided} | true; echo $PIPESTATUS"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("1\n", "")
