"""The command line: output, JSON and exit codes, with a bundle and with a service."""

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

from detect_ai import client
from detect_ai.calibration.domains import calibrate, whole_documents
from detect_ai.cli.__main__ import main
from detect_ai.cli.verdicts import WARNING, explanation, out_of_100, percent
from detect_ai.core.config import CalibrationConfig
from detect_ai.core.ray_runtime import free_port
from detect_ai.detector import bundle
from detect_ai.detector.detector import Detector
from detect_ai.schemas import Label, ModelInfo, Verdict
from tests.fixtures import tiny_models
from tests.fixtures.fake_service import RESPONSE, Reply, problem, service, serving, verdict

TEXTS = [tiny_models.text(("human", "ai")[seed % 2], random.Random(seed), 60) for seed in range(20)]
SENTENCE = "The old bridge went near the market."


@pytest.fixture(scope="module")
def decided(tiny_bundle, tmp_path_factory):
    """The tiny bundle, calibrated so that the lower half of some texts is labelled human and the upper half AI."""
    folder = tmp_path_factory.mktemp("decided") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    before = Detector.load(folder)
    scores = np.sort(before.score([document.input_ids for document in before.read(TEXTS)]))
    low, middle, high = scores[0], np.median(scores), scores[-1]
    both = np.concatenate([np.linspace(low, middle, 40), np.linspace(middle, high, 40)])
    scored = whole_documents(np.repeat([0, 1], 40), both, before.spec.window, "")
    settings = CalibrationConfig(target_fprs=[0.05, 0.1], default_target_fpr=0.05, guarantee="expectation")
    bundle.write_spec(folder, replace(before.spec, calibration=calibrate(scored, settings, before.spec.window)))
    return folder


@pytest.fixture(scope="module")
def detector(decided):
    return Detector.load(decided)


@pytest.fixture(scope="module")
def files(detector, tmp_path_factory):
    """A file for each label."""
    folder = tmp_path_factory.mktemp("files")
    texts = ["Too short.", *TEXTS]
    by_label = dict(zip((verdict.label for verdict in detector.detect(texts)), texts, strict=True))
    assert set(by_label) == set(Label)
    paths = {label: folder / f"{label}.txt" for label in sorted(by_label)}
    for label, path in paths.items():
        path.write_text(by_label[label])
    return paths


def check(folder, *arguments):
    return main(["check", "--bundle", str(folder), *map(str, arguments)])


def json_lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("labels", "options", "code"),
    [
        ([Label.HUMAN], [], 0),
        ([Label.HUMAN, Label.UNCERTAIN], [], 4),
        ([Label.HUMAN, Label.UNCERTAIN], ["--uncertain-ok"], 0),
        ([Label.UNCERTAIN, Label.AI, Label.HUMAN], ["--uncertain-ok"], 3),
    ],
)
def test_exit_code_is_that_of_the_strongest_verdict(decided, files, labels, options, code):
    assert check(decided, *(files[label] for label in labels), *options) == code


def test_failed_file_takes_precedence_and_does_not_stop_the_others(decided, files, tmp_path, capsys):
    missing = tmp_path / "missing.txt"
    assert check(decided, missing, files[Label.AI], "--json") == 2
    output = capsys.readouterr()
    first, second = map(json.loads, output.out.splitlines())
    assert first == {"file": str(missing), "verdict": None, "error": "No such file or directory"}
    assert second["verdict"]["label"] == "ai"
    assert output.err == f"error: {missing}: No such file or directory\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", " \n\u200b\ufeff\u00ad".encode(), "no text"),
        ("latin.txt", b"ma\xefs canary", "position 2"),
        ("image", b"a\0b", "NUL"),
        ("pdf.txt", b"%PDF-1.7 canary", "PDF"),
        ("paper.PDF", b"%PDF", "--url"),
        ("page.html", b"<p>canary", "txt or md"),
    ],
)
def test_bad_file_is_reported_in_one_line_without_its_text(decided, tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert check(decided, path) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {path}: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert "canary" not in output.err


def test_wrong_usage_exits_with_2_and_one_line(tmp_path, capsys):
    a_file = tmp_path / "file"
    a_file.touch()
    for arguments, message in [
        (["check", "-"], "--bundle"),
        (["model", "--bundle", "/nowhere"], "/nowhere"),
        (["model", "--bundle", str(a_file)], str(a_file)),
        (["check", "-", "--url", "nowhere"], "DETECT_AI_URL"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_unknown_target_lists_the_known_ones(decided, files, capsys):
    assert check(decided, files[Label.AI], "--target-fpr", "0.2") == 2
    assert "0.05, 0.1" in capsys.readouterr().err


def test_prevalence_changes_the_numbers_and_not_the_label(decided, files, detector, capsys):
    assert check(decided, files[Label.AI], "--prevalence", "0.05") == 3
    [expected] = detector.detect([files[Label.AI].read_text()], prevalence=0.05)
    output = " ".join(capsys.readouterr().out.split())
    assert f"{percent(expected.probability)}, if 5 of 100 texts are AI" in output
    assert f"If 5 of 100 texts are AI, {out_of_100(expected.ppv)} texts labelled AI are really AI." in output
    assert check(decided, files[Label.AI], files[Label.HUMAN], "--prevalence", "1.5") == 2
    assert capsys.readouterr().err == "error: prevalence=1.5: expected a number above 0 and below 1\n"


def test_help_documents_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    output = capsys.readouterr().out
    assert all(f"\n  {code} " in output for code in (0, 1, 2, 3, 4, 130))


def test_json_holds_the_verdicts_of_the_library(decided, files, detector, capsys):
    names = [str(path) for path in files.values()]
    check(decided, *names, "--json", "--spans", "--target-fpr", "0.1")
    lines = json_lines(capsys)
    assert [line["file"] for line in lines] == names
    for line, path in zip(lines, files.values(), strict=True):
        [expected] = detector.detect([path.read_text()], 0.1, True)
        assert Verdict.model_validate(line["verdict"]) == expected


def test_verdict_comes_first_and_the_warning_last(decided, files, capsys):
    check(decided, files[Label.AI], files[Label.HUMAN])
    output = capsys.readouterr().out
    assert output.startswith(f"{files[Label.AI]}: Likely AI-generated\n")
    assert f"\n{files[Label.HUMAN]}: No sign of AI\n" in output
    assert " ".join(output.split()).endswith(WARNING)
    assert output.count(WARNING[:20]) == 1


def test_text_out_of_scope_gets_no_probability(decided, tmp_path, capsys):
    path = tmp_path / "short.txt"
    path.write_text("Too short.")
    check(decided, path, "--spans")
    output = capsys.readouterr().out
    assert output.startswith(f"{path}: Uncertain: too short")
    assert "%" not in output


def test_content_that_is_not_prose_is_shown(decided, files, tmp_path, capsys):
    path = tmp_path / "code.txt"
    path.write_text("def rain(train):\n    return train + 1\n" * 20)
    check(decided, path, files[Label.AI])
    output = capsys.readouterr().out
    assert output.startswith(f"{path}: Uncertain: mostly code\n")
    assert output.count("Read as: 98% code, 2% prose.") == output.count("Read as: ") == 1


@pytest.mark.parametrize(
    ("p_value", "reached"),
    [(0.02, "up to 2 of 100 human texts may score"), (1.0, "more than half of the human texts may score")],
)
def test_a_verdict_on_a_new_kind_of_writing_says_so(p_value, reached):
    values = verdict("text", compared_with="new_domain", nearest_domain="e-mail", p_value=p_value, label="ai")
    lines = "\n".join(explanation("text", Verdict.model_validate(values)))
    assert "labels up to 10 of 100 human texts AI (with 95% confidence; most like this text: e-mail)" in lines
    assert f"Of a kind of writing that it has never seen, {reached} this high." in lines
    assert "In calibration" not in lines


def test_a_verdict_for_a_population_names_it():
    values = verdict("text", compared_with="population", nearest_domain="our students", label="ai")
    lines = "\n".join(explanation("text", Verdict.model_validate(values)))
    assert "one population (our students), of whose human texts it labels up to 10 of 100 AI" in lines
    assert "Of that population, 40 of 100 human texts scored this high" in lines
    assert "calibration" not in lines


def test_control_characters_are_not_printed(tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\u202e.txt"
    path.write_text("One\x1b]0;title\x07 sentence.", newline="")
    spans = [{"start": 0, "end": len(path.read_text()), "probability": 0.5}]
    reply = Reply({**RESPONSE, "verdicts": [verdict("x", spans=spans, ai_fraction=1.0)]})
    with serving(lambda _: reply) as server:
        assert main(["check", "--url", server.url, "--spans", str(path)]) == 0
    output = capsys.readouterr().out
    assert "One\N{REPLACEMENT CHARACTER}]0;title" in output
    assert not {"\x1b", "\x07", "\u202e"} & set(output)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_standard_input_is_read(decided, files, capsys, monkeypatch, encoding):
    data = files[Label.AI].read_text().encode(encoding)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert check(decided, "-", "--json") == 3
    [line] = json_lines(capsys)
    assert line["file"] == "-"
    assert line["verdict"]["tampering"] == {}  # the byte order mark does not count


def test_closed_standard_input_is_an_input_error(decided, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert check(decided, "-") == 2
    assert "standard input" in capsys.readouterr().err


def test_model_is_printed_as_json(decided, detector, capsys):
    assert main(["model", "--bundle", str(decided)]) == 0
    info = ModelInfo.model_validate_json(capsys.readouterr().out)
    assert (info.model_version, [row.target_fpr for row in info.thresholds]) == (detector.version, [0.05, 0.1])


def test_options_are_passed_to_the_service(files, capsys, monkeypatch):
    with serving(service) as server:
        monkeypatch.setenv("DETECT_AI_URL", server.url)
        options = ["--target-fpr", "0.05", "--prevalence", "0.2", "--spans", "--json"]
        assert main(["check", str(files[Label.AI]), *options]) == 0
    text = files[Label.AI].read_text()
    sent = {"texts": [text], "target_fpr": 0.05, "prevalence": 0.2, "return_spans": True}
    assert json.loads(server.requests[0].body) == sent
    assert json_lines(capsys)[0]["verdict"] == verdict(text)


def test_document_is_sent_to_the_service(tmp_path, capsys):
    path = tmp_path / "paper.docx"
    path.write_bytes(b"PK canary")
    spans = [{"start": 0, "end": len(SENTENCE), "probability": 0.25}]
    file = {"name": "paper.docx", "num_chars": 36, "text": SENTENCE, "verdict": verdict("x", spans=spans)}
    with serving(lambda _: Reply({**RESPONSE, "files": [file]})) as server:
        assert main(["check", "--url", server.url, str(path), "--spans"]) == 0
    assert server.paths() == ["/v1/detect/file"]
    assert b"PK canary" in server.requests[0].body
    assert f"25%  {SENTENCE}" in capsys.readouterr().out


def test_unreadable_document_does_not_stop_the_others(tmp_path, files, capsys):
    path = tmp_path / "paper.pdf"
    path.write_bytes(b"%PDF")
    file = {"name": "paper.pdf", "num_chars": 0, "problem": problem(422, "no text in it").content}

    def respond(request):
        return Reply({**RESPONSE, "files": [file]}) if request.path.endswith("file") else service(request)

    with serving(respond) as server:
        assert main(["check", "--url", server.url, str(path), "missing.docx", str(files[Label.AI])]) == 2
    output = capsys.readouterr()
    assert output.err == f"error: {path}: no text in it\nerror: missing.docx: No such file or directory\n"
    assert f"{files[Label.AI]}: No sign of AI" in output.out


@pytest.mark.parametrize(
    ("status", "code", "requests"), [(401, 2, 1), (403, 2, 1), (404, 2, 1), (500, 1, 1), (422, 2, 2)]
)
def test_error_that_concerns_all_files_ends_the_command(files, status, code, requests):
    with serving(lambda _: problem(status)) as server:
        assert main(["check", "--url", server.url, *map(str, list(files.values())[:2])]) == code
    assert len(server.requests) == requests


def test_unreachable_service_exits_with_1(files, capsys, monkeypatch):
    monkeypatch.setattr(client, "MAX_ATTEMPTS", 1)
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["check", "--url", url, str(files[Label.AI])]) == 1
    assert capsys.readouterr().err.startswith(f"error: {url}")


def run(*arguments, **options):
    """Run the command in a process that prints its loaded modules as the last line of standard error."""
    imports = "import sys; from detect_ai.cli.__main__ import main"
    code = f"{imports}; code = main(); print(*sys.modules, file=sys.stderr); exit(code)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_bundle_is_used_without_ray(decided, files):
    done = run("check", "--bundle", decided, files[Label.AI], "--json")
    assert done.returncode == 3, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert not {"ray", "httpx"} & set(done.stderr.split())


def test_service_is_used_without_torch(files):
    with serving(service) as server:
        done = run("check", files[Label.AI], env={**os.environ, "DETECT_AI_URL": server.url})
    assert done.returncode == 0, done.stderr
    assert not {"ray", "torch"} & set(done.stderr.split())


@pytest.mark.parametrize(("target", "lines"), [("| true", 0), ("> /dev/full", 1)])
def test_closed_or_full_output_exits_with_1_without_traceback(decided, target, lines):
    command = f"{sys.executable} -m detect_ai.cli model --bundle {decided} {target}; echo $PIPESTATUS"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n"
    assert done.stderr.count("\n") == lines
    assert "Traceback" not in done.stderr
