"""What a preset fills in, and each preset of a folder on small files in the layout that its authors published."""

import pickle

import pytest

from detect_ai.core.config import SourceConfig
from detect_ai.core.errors import CorpusError
from detect_ai.corpus.presets import PRESETS, applied
from detect_ai.corpus.sources import source_digest, source_name
from tests.unit.conftest import preset_rows as read
from tests.unit.conftest import some


def refusal(path, preset):
    with pytest.raises(CorpusError) as refused:
        read(path, preset)
    return str(refused.value)


def write_texts(folder, **files):
    for name, text in files.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_pickle(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))


# How a preset stands to what the user says


def test_a_preset_fills_in_what_the_user_left():
    source = applied(SourceConfig(path="x", preset="raid"))
    assert (source.kind, source.text, source.label, source.group) == ("csv", "generation", "model", "source_id")
    assert source.labels["human"] == 0
    assert {source.labels[name] for name in source.labels if name != "human"} == {1}


def test_what_the_user_sets_beside_a_preset_wins():
    source = SourceConfig(path="x", preset="raid", kind="parquet", group="title", labels={"human": 0, "gpt9": 1})
    assert applied(source) == SourceConfig(
        path="x",
        preset="raid",
        kind="parquet",
        text="generation",
        label="model",
        labels={"human": 0, "gpt9": 1},
        id="id",
        group="title",
        domain="domain",
        generator="model",
        attack="attack",
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_applied_twice_is_applied_once(preset):
    once = applied(SourceConfig(path="x", preset=preset))
    assert applied(once) == once
    assert once != SourceConfig(path="x", preset=preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_its_rows(preset):
    assert source_name(SourceConfig(path="train.csv", preset=preset)) == preset


@pytest.mark.parametrize("preset", [name for name in PRESETS if not PRESETS[name].layout])
def test_a_file_of_another_schema_is_refused_with_the_preset_named(tmp_path, preset):
    kind = applied(SourceConfig(preset=preset)).kind
    path = tmp_path / f"a.{kind}"
    path.write_text("a,b\n1,2\n" if kind == "csv" else '{"a": 1, "b": 2}\n')
    message = refusal(path, preset)
    assert message.startswith(f"source {path}: no column ")
    assert f"of the preset '{preset}'; found 'a', 'b'" in message


# Folders


def outfox(folder):
    for split in ("train", "test"):
        write_pickle(folder / f"common/{split}/{split}_problem_statements.pkl", [f"P1 {split}", f"P2 {split}"])
        write_pickle(folder / f"common/{split}/{split}_humans.pkl", [f"H1 {split}", f"H2 {split}"])
        write_pickle(folder / f"common/{split}/{split}_contexts.pkl", ["c", "c"])
        write_pickle(folder / f"chatgpt/{split}/{split}_lms.pkl", [f"C1 {split}", f"C2 {split}"])
    write_pickle(folder / "text_davinci_003/test/preprocessed_test_lms.pkl", ["D1 test", "D2 test"])
    write_pickle(folder / "chatgpt/test/test_outfox_attacks.pkl", ["A1", "A2"])
    write_pickle(folder / "dipper/chatgpt/test_attacks.pkl", ["A3", "A4"])
    return folder


def test_outfox(tmp_path):
    rows = sorted(read(outfox(tmp_path), "outfox"), key=lambda row: row["text"])
    assert some(rows, "text", "label", "generator", "split", "domain") == [
        ("C1 test", 1, "chatgpt", "test", "essay"),
        ("C1 train", 1, "chatgpt", "train", "essay"),
        ("C2 test", 1, "chatgpt", "test", "essay"),
        ("C2 train", 1, "chatgpt", "train", "essay"),
        ("D1 test", 1, "text_davinci_003", "test", "essay"),
        ("D2 test", 1, "text_davinci_003", "test", "essay"),
        ("H1 test", 0, "", "test", "essay"),
        ("H1 train", 0, "", "train", "essay"),
        ("H2 test", 0, "", "test", "essay"),
        ("H2 train", 0, "", "train", "essay"),
    ]


def test_the_group_of_an_outfox_essay_is_its_problem_statement(tmp_path):
    groups = {row["text"]: row["group"] for row in read(outfox(tmp_path), "outfox")}
    assert groups["C1 test"] == groups["D1 test"] == groups["H1 test"] != groups["H2 test"] == groups["C2 test"]
    assert len(set(groups.values())) == 4


class Harmful:
    def __reduce__(self):
        return eval, ("print('it ran')",)


@pytest.mark.parametrize("value", [Harmful(), [Harmful()], ["a", len], {"a"}, ["a", 5], "a"])
def test_a_pickle_that_holds_anything_but_texts_is_refused_and_runs_nothing(tmp_path, capsys, value):
    write_pickle(outfox(tmp_path) / "chatgpt/test/test_lms.pkl", value)
    expected = f"source {tmp_path}, chatgpt/test/test_lms.pkl: expected a pickled list of texts"
    assert refusal(tmp_path, "outfox").startswith(expected)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("data", [b"", b"no pickle at all", pickle.dumps(["a", "b"])[:-3]])
def test_a_damaged_pickle_is_refused(tmp_path, data):
    (outfox(tmp_path) / "chatgpt/test/test_lms.pkl").write_bytes(data)
    assert refusal(tmp_path, "outfox") == (
        f"source {tmp_path}, chatgpt/test/test_lms.pkl: expected a pickled list of texts, and no class in it"
    )


def test_outfox_texts_without_a_statement_each_are_refused(tmp_path):
    write_pickle(outfox(tmp_path) / "chatgpt/test/test_lms.pkl", ["a"])
    assert refusal(tmp_path, "outfox") == (
        f"source {tmp_path}, chatgpt/test/test_lms.pkl: expected one text for each of the 2 problem statements of test"
    )
    path = tmp_path / "common/test/test_problem_statements.pkl"
    path.unlink()
    assert refusal(tmp_path, "outfox") == (
        f"source {tmp_path}, chatgpt/test/test_lms.pkl: expected {path} to belong to it, and found no such file"
    )


def test_a_folder_of_another_layout_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for preset, expected in (("outfox", "common/train/train_humans.pkl"), ("ghostbuster", "essay/human/1.txt")):
        assert refusal(tmp_path, preset).startswith(f"source {tmp_path}: no file such as {expected}. ")


def ghostbuster(folder):
    write_texts(
        folder,
        **{
            "essay/human/1": "H1",
            "essay/gpt/1": "G1",
            "essay/gpt/logprobs/1-davinci": "-0.5",
            "essay/claude/2": "C2",
            "essay/prompts/1": "P1",
            "wp/gpt_prompt1/1": "W1",
            "wp/gpt_semantic/1": "W2",
            "reuter/human/AaronPressman/1": "R1",
            "reuter/gpt_writing/AaronPressman/1": "R2",
            "reuter/gpt/AaronPressman/headlines/1": "News",
            "reuter/gpt/AaronPressman/logprobs/1-davinci": "-0.5",
            "other/undetectable/1": "U1",
        },
    )
    return folder


def test_ghostbuster(tmp_path):
    assert some(read(ghostbuster(tmp_path), "ghostbuster"), "text", "label", "domain", "generator", "group") == [
        ("C2", 1, "essay", "claude", "essay/2"),
        ("G1", 1, "essay", "gpt", "essay/1"),
        ("H1", 0, "essay", "", "essay/1"),
        ("R2", 1, "reuter", "gpt_writing", "reuter/AaronPressman/1"),
        ("R1", 0, "reuter", "", "reuter/AaronPressman/1"),
        ("W1", 1, "wp", "gpt_prompt1", "wp/1"),
        ("W2", 1, "wp", "gpt_semantic", "wp/1"),
    ]


def test_the_digest_of_a_preset_is_over_the_files_with_rows(tmp_path):
    source = SourceConfig(path=str(ghostbuster(tmp_path)), preset="ghostbuster")
    before = source_digest(source)
    (tmp_path / "essay/prompts/1.txt").write_text("changed")
    assert source_digest(source) == before
    (tmp_path / "essay/human/1.txt").write_text("changed")
    assert source_digest(source) != before
