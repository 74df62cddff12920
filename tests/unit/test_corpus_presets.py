"""Each preset on a small file in the schema that its authors published."""

import csv
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.config import SourceConfig
from detect_ai.corpus.presets import PRESETS, applied
from detect_ai.corpus.read import pieces, read_piece, source_digest, source_name
from detect_ai.errors import CorpusError


def read(path, preset, unlabelled=False, **given):
    found = pieces(SourceConfig(path=str(path), preset=preset, **given), unlabelled)
    return [row for piece in found for table in read_piece(piece) for row in table.to_pylist()]


def some(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


def refusal(path, preset):
    with pytest.raises(CorpusError) as refused:
        read(path, preset)
    return str(refused.value)


def write_csv(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8-sig" if path.stem == "mage" else "utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


# Tables


def test_kaggle(tmp_path):
    rows = ["0059830c", "0", "Cars.", "0"], ["a1", "1", "AI.", "1"]
    path = write_csv(tmp_path / "train_essays.csv", "id,prompt_id,text,generated", *rows)
    assert some(read(path, "kaggle"), "id", "group", "text", "label", "domain", "source", "problem") == [
        ("0059830c", "0", "Cars.", 0, "essay", "kaggle", ""),
        ("a1", "1", "AI.", 1, "essay", "kaggle", ""),
    ]


def test_daigt_v2(tmp_path):
    path = write_csv(
        tmp_path / "train_v2_drcat_02.csv",
        "text,label,prompt_name,source,RDizzl3_seven",
        ["Phones.", "0", "Phones and driving", "persuade_corpus", "False"],
        ["Cars.", "1", "Car-free cities", "chat_gpt_moth", "True"],
    )
    assert some(read(path, "daigt_v2"), "text", "label", "group", "generator", "domain") == [
        ("Phones.", 0, "Phones and driving", "", "essay"),
        ("Cars.", 1, "Car-free cities", "chat_gpt_moth", "essay"),
    ]


RAID = "id,adv_source_id,source_id,model,decoding,repetition_penalty,attack,domain,title,prompt,generation"


def test_raid(tmp_path):
    path = write_csv(
        tmp_path / "train.csv",
        RAID,
        ["h1", "h1", "h1", "human", "", "", "none", "news", "T", "", "By a person."],
        ["g1", "g1", "h1", "mistral-chat", "greedy", "no", "none", "news", "T", "P", "By a model."],
        ["g2", "g1", "h1", "chatgpt", "greedy", "no", "homoglyph", "news", "T", "P", "Ву а model."],
    )
    assert some(read(path, "raid"), "id", "text", "label", "group", "domain", "generator", "attack") == [
        ("h1", "By a person.", 0, "h1", "news", "", "none"),
        ("g1", "By a model.", 1, "h1", "news", "mistral-chat", "none"),
        ("g2", "Ву а model.", 1, "h1", "news", "chatgpt", "homoglyph"),
    ]


def test_every_model_of_raid_is_ai(tmp_path):
    models = {"chatgpt", "gpt4", "gpt3", "gpt2", "llama-chat", "mistral", "mistral-chat", "mpt", "mpt-chat"}
    models |= {"cohere", "cohere-chat"}
    rows = [[f"g{i}", "", "s", model, "", "", "none", "books", "", "", "T"] for i, model in enumerate(models)]
    assert {row["label"] for row in read(write_csv(tmp_path / "train.csv", RAID, *rows), "raid")} == {1}


def test_the_test_file_of_raid_is_read_without_labels(tmp_path):
    path = write_csv(tmp_path / "test.csv", "id,generation", ["a", "Whose?"])
    assert some(read(path, "raid", unlabelled=True), "id", "text", "label", "problem") == [("a", "Whose?", None, "")]


def hc3_row(**changes):
    row = {"question": "Why?", "human_answers": ["So.", "Thus."], "chatgpt_answers": ["Because."], "source": "finance"}
    return row | changes


def test_hc3(tmp_path):
    path = write_jsonl(tmp_path / "all.jsonl", hc3_row(index=None), hc3_row(question="Who?", chatgpt_answers=[]))
    rows = read(path, "hc3")
    assert some(rows, "text", "label", "generator", "domain", "problem") == [
        ("So.", 0, "", "finance", ""),
        ("Thus.", 0, "", "finance", ""),
        ("Because.", 1, "chatgpt", "finance", ""),
        ("So.", 0, "", "finance", ""),
        ("Thus.", 0, "", "finance", ""),
    ]
    assert rows[0]["group"] == rows[1]["group"] == rows[2]["group"] != rows[3]["group"] == rows[4]["group"]
    assert "Why?" not in rows[0]["group"]


def test_hc3_from_parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist([hc3_row()]), tmp_path / "a.parquet")
    assert some(read(tmp_path, "hc3", kind="parquet"), "text", "label", "domain") == [
        ("So.", 0, "finance"),
        ("Thus.", 0, "finance"),
        ("Because.", 1, "finance"),
    ]


def test_an_answer_of_hc3_that_is_no_text_is_a_row_with_a_problem(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", hc3_row(human_answers=[None, "So."], chatgpt_answers=5))
    assert some(read(path, "hc3"), "text", "label", "problem") == [
        ("", 0, "no_text"),
        ("So.", 0, ""),
        ("", 1, "no_text"),
    ]


def test_the_zero_of_mage_is_machine_and_its_one_human(tmp_path):
    path = write_csv(
        tmp_path / "mage.csv",
        "text,label,src",
        ["By a person.", "1", "cmv_human"],
        ["By a model.", "0", "cmv_machine_continuation_gpt-3.5-trubo"],
    )
    assert some(read(path, "mage"), "text", "label", "domain", "generator") == [
        ("By a person.", 0, "cmv", ""),
        ("By a model.", 1, "cmv", "gpt-3.5-turbo"),
    ]


@pytest.mark.parametrize(
    ("src", "domain", "generator"),
    [
        ("roct_machine_continuation_flan_t5_large", "roct", "flan_t5_large"),
        ("sci_gen_machine_specified_bloom_7b", "sci_gen", "bloom_7b"),
        ("wp_machine_topical_text-davinci-003", "wp", "text-davinci-003"),
        ("yelp_machine_continuation_13B", "yelp", "llama-13B"),
        ("cnn_gpt4", "cnn", "gpt4"),
        ("imdb_gpt4_para", "imdb", "gpt4_para"),
        ("", "", ""),
    ],
)
def test_the_sources_of_mage_name_domain_and_generator(tmp_path, src, domain, generator):
    path = write_csv(tmp_path / "mage.csv", "text,label,src", ["By a model.", "0", src])
    assert some(read(path, "mage"), "domain", "generator") == [(domain, generator)]


def test_the_domain_of_human_texts_of_mage_is_that_of_its_machine_texts(tmp_path):
    path = write_csv(tmp_path / "mage.csv", "text,label,src", ["a", "1", "sci_gen_human"], ["b", "1", "imdb_human"])
    assert some(read(path, "mage"), "domain", "label") == [("sci_gen", 0), ("imdb", 0)]


def m4_row(model, **changes):
    row = {"prompt": "P", "human_text": "By a person.", "machine_text": f"By {model}.", "model": model}
    return row | {"source": "arxiv", "source_ID": 704.0007} | changes


def test_m4(tmp_path):
    write_jsonl(tmp_path / "arxiv_cohere.jsonl", m4_row("cohere"))
    write_jsonl(tmp_path / "arxiv_llama2.jsonl", m4_row("llama-2-70b-chat"))
    assert some(read(tmp_path, "m4"), "text", "label", "generator", "domain", "group") == [
        ("By a person.", 0, "", "arxiv", "arxiv-704.0007"),
        ("By cohere.", 1, "cohere", "arxiv", "arxiv-704.0007"),
        ("By a person.", 0, "", "arxiv", "arxiv-704.0007"),
        ("By llama-2-70b-chat.", 1, "llama-2-70b-chat", "arxiv", "arxiv-704.0007"),
    ]


def test_m4_spells_its_numbers_in_two_ways(tmp_path):
    row = m4_row("gpt4", source="wikipedia-20220301.en", source_id=11)
    del row["source_ID"]
    found = read(write_jsonl(tmp_path / "a.jsonl", row), "m4")
    assert some(found, "domain", "group") == [("wikipedia", "wikipedia-20220301.en-11")] * 2


def test_a_row_of_m4_without_number_is_a_group_of_its_own(tmp_path):
    human, ai = read(write_jsonl(tmp_path / "a.jsonl", m4_row("gpt4", source_ID=None)), "m4")
    assert (human["group"], ai["group"]) == (human["id"], ai["id"])


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
        return print, ("it ran",)


@pytest.mark.parametrize("value", [Harmful(), [Harmful()], ["a", print], {"a"}, ["a", 5], "a"])
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
