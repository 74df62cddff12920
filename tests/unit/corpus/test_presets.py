"""Presets: each on rows in the schema published by its authors."""

import pandas as pd
import pytest

from detect_ai.core.config import SourceConfig
from detect_ai.corpus.presets import PRESETS, with_preset
from tests.unit.conftest import refusal, rows, some, write


def read(folder, preset, *given, unlabelled=False):
    """The rows of a file of the preset's kind."""
    kind = with_preset(SourceConfig(preset=preset)).kind
    path = folder / f"a.{kind}"
    if kind == "csv":
        pd.DataFrame(given).to_csv(path, index=False, encoding="utf-8-sig")
    else:
        write(path, *given)
    return rows(path, unlabelled, kind=kind, preset=preset)


def test_preset_fills_in_fields_that_a_user_did_not_set():
    source = with_preset(SourceConfig(path="x", preset="raid"))
    assert (source.kind, source.text, source.label, source.group) == ("csv", "generation", "model", "source_id")
    assert (source.labels["human"], source.labels["llama-chat"], sum(source.labels.values())) == (0, 1, 11)
    assert with_preset(source) == source
    own = {"kind": "parquet", "group": "title", "labels": {"human": 0, "gpt9": 1}}
    source = with_preset(SourceConfig(path="x", preset="raid", **own))
    assert {name: getattr(source, name) for name in own} == own
    assert source.text == "generation"


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_refuses_another_schema(tmp_path, preset):
    assert f"of the preset '{preset}'; found 'a', 'b'" in refusal(read, tmp_path, preset, {"a": 1, "b": 2})


RAID = {"adv_source_id": "g1", "source_id": "h1", "decoding": "greedy", "repetition_penalty": "no", "domain": "news"}
HC3 = {"question": "Why?", "human_answers": ["So.", "Thus."], "chatgpt_answers": ["Because."], "source": "finance"}
M4 = {"prompt": "P", "human_text": "By a person.", "machine_text": "By AI.", "model": "gpt4", "source": "arxiv"}


@pytest.mark.parametrize(
    ("preset", "given", "names", "expected"),
    [
        (
            "kaggle",
            [
                {"id": "0059830c", "prompt_id": "0", "text": "Cars.", "generated": "0"},
                {"id": "a1", "prompt_id": "1", "text": "AI.", "generated": "1"},
            ],
            ("id", "group", "text", "label", "domain", "source"),
            [("0059830c", "0", "Cars.", 0, "essay", "kaggle"), ("a1", "1", "AI.", 1, "essay", "kaggle")],
        ),
        (
            "daigt_v2",
            [
                {"text": "Phones.", "label": "0", "prompt_name": "Phones and driving", "source": "persuade_corpus"},
                {"text": "Cars.", "label": "1", "prompt_name": "Car-free cities", "source": "chat_gpt_moth"},
            ],
            ("text", "label", "group", "generator", "domain"),
            [
                ("Phones.", 0, "Phones and driving", "", "essay"),
                ("Cars.", 1, "Car-free cities", "chat_gpt_moth", "essay"),
            ],
        ),
        (
            "raid",
            [
                {**RAID, "id": "h1", "model": "human", "attack": "none", "generation": "By a person."},
                {**RAID, "id": "g1", "model": "mistral-chat", "attack": "none", "generation": "By a model."},
                {**RAID, "id": "g2", "model": "chatgpt", "attack": "homoglyph", "generation": "Ву а model."},
            ],
            ("id", "text", "label", "group", "domain", "generator", "attack"),
            [
                ("h1", "By a person.", 0, "h1", "news", "", "none"),
                ("g1", "By a model.", 1, "h1", "news", "mistral-chat", "none"),
                ("g2", "Ву а model.", 1, "h1", "news", "chatgpt", "homoglyph"),
            ],
        ),
        (
            "hc3",
            [HC3, {**HC3, "human_answers": [None, "So."], "chatgpt_answers": 5}, {**HC3, "chatgpt_answers": []}],
            ("text", "label", "generator", "domain", "problem"),
            [
                ("So.", 0, "", "finance", ""),
                ("Thus.", 0, "", "finance", ""),
                ("Because.", 1, "chatgpt", "finance", ""),
                ("", 0, "", "finance", "no_text"),
                ("So.", 0, "", "finance", ""),
                ("", 1, "chatgpt", "finance", "no_text"),
                ("So.", 0, "", "finance", ""),
                ("Thus.", 0, "", "finance", ""),
            ],
        ),
        (
            "mage",
            [
                {"text": "By a person.", "label": "1", "src": "cmv_human"},
                {"text": "By a model.", "label": "0", "src": "cmv_machine_continuation_gpt-3.5-trubo"},
            ],
            ("text", "label", "domain", "generator"),
            [("By a person.", 0, "cmv", ""), ("By a model.", 1, "cmv", "gpt-3.5-turbo")],
        ),
        (
            "m4",
            [{**M4, "source_ID": 704.0007}, {**M4, "source": "wikipedia-20220301.en", "source_id": 11}],
            ("text", "label", "generator", "domain", "group"),
            [
                ("By a person.", 0, "", "arxiv", "arxiv-704.0007"),
                ("By AI.", 1, "gpt4", "arxiv", "arxiv-704.0007"),
                ("By a person.", 0, "", "wikipedia", "wikipedia-20220301.en-11"),
                ("By AI.", 1, "gpt4", "wikipedia", "wikipedia-20220301.en-11"),
            ],
        ),
    ],
)
def test_preset_maps_the_published_schema(tmp_path, preset, given, names, expected):
    assert some(read(tmp_path, preset, *given), *names) == expected


def test_raid_test_file_has_no_labels(tmp_path):
    records = read(tmp_path, "raid", {"id": "a", "generation": "Whose?"}, unlabelled=True)
    assert some(records, "id", "text", "label", "problem") == [("a", "Whose?", None, "")]


def test_hc3_answers_to_a_question_are_a_group(tmp_path):
    groups = [row["group"] for row in read(tmp_path, "hc3", HC3, {**HC3, "question": "Who?"})]
    assert groups[0] == groups[1] == groups[2] != groups[3] == groups[4] == groups[5]
    assert "Why?" not in groups[0]


@pytest.mark.parametrize(
    ("src", "domain", "generator"),
    [
        ("roct_machine_continuation_flan_t5_large", "roct", "flan_t5_large"),
        ("sci_gen_machine_specified_bloom_7b", "sci_gen", "bloom_7b"),
        ("wp_machine_topical_text-davinci-003", "wp", "text-davinci-003"),
        ("yelp_machine_continuation_13B", "yelp", "llama-13B"),
        ("imdb_gpt4_para", "imdb", "gpt4_para"),
        ("", "", ""),
    ],
)
def test_mage_domains_and_generators(tmp_path, src, domain, generator):
    records = read(tmp_path, "mage", {"text": "By a model.", "label": "0", "src": src})
    assert some(records, "domain", "generator") == [(domain, generator)]


def test_m4_row_without_number_is_its_own_group(tmp_path):
    human, ai = read(tmp_path, "m4", {**M4, "source_ID": None})
    assert (human["group"], ai["group"]) == (human["id"], ai["id"])
