"""Presets: each on a small file in the schema that its authors published."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detect_ai.core.config import SourceConfig
from detect_ai.corpus.presets import PRESETS, with_preset
from tests.unit.conftest import preset_rows as read
from tests.unit.conftest import refusal, some


def write_csv(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8-sig" if path.stem == "mage" else "utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_preset_fills_in_the_defaults():
    source = with_preset(SourceConfig(path="x", preset="raid"))
    assert (source.kind, source.text, source.label, source.group) == ("csv", "generation", "model", "source_id")
    assert {label for name, label in source.labels.items() if name != "human"} == {1}
    assert source.labels["human"] == 0


def test_user_fields_override_a_preset():
    own = {"kind": "parquet", "group": "title", "labels": {"human": 0, "gpt9": 1}}
    source = with_preset(SourceConfig(path="x", preset="raid", **own))
    assert {name: getattr(source, name) for name in own} == own
    assert source.text == "generation"


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_refuses_another_schema(tmp_path, preset):
    once = with_preset(SourceConfig(path="x", preset=preset))
    assert with_preset(once) == once
    path = tmp_path / f"a.{once.kind}"
    path.write_text("a,b\n1,2\n" if once.kind == "csv" else '{"a": 1, "b": 2}\n')
    assert f"of the preset '{preset}'; found 'a', 'b'" in refusal(read, path, preset)


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


def test_raid_models_are_ai(tmp_path):
    models = {"chatgpt", "gpt4", "gpt3", "gpt2", "llama-chat", "mistral", "mistral-chat", "mpt", "mpt-chat"}
    models |= {"cohere", "cohere-chat"}
    rows = [[f"g{i}", "", "s", model, "", "", "none", "books", "", "", "T"] for i, model in enumerate(models)]
    assert {row["label"] for row in read(write_csv(tmp_path / "train.csv", RAID, *rows), "raid")} == {1}


def test_raid_test_file_has_no_labels(tmp_path):
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


def test_hc3_answer_without_text_is_a_problem(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", hc3_row(human_answers=[None, "So."], chatgpt_answers=5))
    assert some(read(path, "hc3"), "text", "label", "problem") == [
        ("", 0, "no_text"),
        ("So.", 0, ""),
        ("", 1, "no_text"),
    ]


def test_mage_labels_are_reversed(tmp_path):
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
def test_mage_domains_and_generators(tmp_path, src, domain, generator):
    path = write_csv(tmp_path / "mage.csv", "text,label,src", ["By a model.", "0", src])
    assert some(read(path, "mage"), "domain", "generator") == [(domain, generator)]


def test_mage_human_domains(tmp_path):
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


def test_m4_spelling_variants(tmp_path):
    row = m4_row("gpt4", source="wikipedia-20220301.en", source_id=11)
    del row["source_ID"]
    found = read(write_jsonl(tmp_path / "a.jsonl", row), "m4")
    assert some(found, "domain", "group") == [("wikipedia", "wikipedia-20220301.en-11")] * 2


def test_m4_row_without_number_is_its_own_group(tmp_path):
    human, ai = read(write_jsonl(tmp_path / "a.jsonl", m4_row("gpt4", source_ID=None)), "m4")
    assert (human["group"], ai["group"]) == (human["id"], ai["id"])
