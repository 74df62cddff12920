"""The paraphrase attack, by a tiny T5 of random weights."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from detect_ai.core.config import Config
from detect_ai.core.errors import InputError
from detect_ai.evaluation import robustness
from detect_ai.evaluation.paraphrase import MAX_TOKENS, Paraphraser

WORDS = re.findall(
    r"\S+", "the council met on a bridge and it will cost more . paraphrase : people want buses near river"
)
TEXT = "The council met on a bridge. It will cost more.  People want buses. The river will cost more. It met people."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": len(vocabulary)}
    T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **sizes)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def paraphrase(folder):
    return Paraphraser(folder, sentences_at_once=2)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_seed_gives_a_paraphrase(paraphrase):
    new = paraphrase(TEXT, rng())
    assert new != TEXT
    assert new == paraphrase(TEXT, rng())
    assert new != paraphrase(TEXT, rng(1))


def test_other_random_numbers_are_left_alone(paraphrase):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    paraphrase(TEXT, rng())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("text", ["", " ", "\n\n"])
def test_a_text_without_sentences_stays(paraphrase, text):
    assert paraphrase(text, rng()) == text


def test_greedy_takes_no_chances(folder):
    greedy = Paraphraser(folder, sampled=False)
    assert greedy(TEXT, rng()) == greedy(TEXT, rng(1))


def test_a_passage_is_a_few_sentences_and_what_parts_them_stays(paraphrase, monkeypatch):
    seen = []
    monkeypatch.setattr(paraphrase, "_say", lambda passages: seen.extend(passages) or [f"<{p[:2]}>" for p in passages])
    assert paraphrase(f" {TEXT}\n", rng()) == " <Th>  <Pe> <It>\n"
    assert seen[0] == "The council met on a bridge. It will cost more."
    assert len(seen) == 3
    seen.clear()
    paraphrase("It met. " * 40, rng())
    assert len(seen) == 20


def test_what_is_too_long_for_the_model_stays(paraphrase):
    long = "River " * MAX_TOKENS + "met."
    new = paraphrase(f"{long} It met people. People met. It will cost more.", rng())
    assert new.startswith(f"{long} It met people. ")
    assert not new.endswith("People met. It will cost more.")
    assert paraphrase(f"{long} {long}", rng()) == f"{long} {long}"


def test_a_passage_of_which_the_model_says_nothing_stays(paraphrase, monkeypatch):
    ends = torch.tensor([[0, 1], [0, 1], [0, 1]])
    monkeypatch.setattr(paraphrase._model, "generate", lambda **_: ends)
    assert paraphrase(TEXT, rng()) == TEXT


def test_the_template_frames_the_passage(folder, monkeypatch):
    framed = Paraphraser(folder, template="<sent> {text} </sent>")
    prompts = []
    tokenizer = framed._tokenizer

    def tokenise(texts, **options):
        prompts.extend(texts)
        return tokenizer(texts, **options)

    tokenise.batch_decode = tokenizer.batch_decode
    framed._tokenizer = tokenise
    framed("It met {people}.", rng())
    assert set(prompts) == {"<sent> It met {people}. </sent>"}


def refusal(folder, **options):
    with pytest.raises(InputError) as refused:
        Paraphraser(folder, **options)
    return str(refused.value)


def test_a_folder_without_a_model_is_refused(folder, tmp_path):
    assert "missing: expected a local directory" in refusal(tmp_path / "missing")
    assert "expected safetensors" in refusal(tmp_path)
    shutil.copy(folder / "model.safetensors", tmp_path)
    assert "expected a sequence-to-sequence model" in refusal(tmp_path)


def test_code_in_a_folder_never_runs(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForSeq2SeqLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    assert "expected a sequence-to-sequence model" in refusal(tmp_path)
    assert not ran.exists()


def test_missing_weights_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["decoder.final_layer_norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert "decoder.final_layer_norm.weight" in refusal(tmp_path)


@pytest.mark.parametrize("options", [{"template": "paraphrase:"}, {"sentences_at_once": 0}])
def test_options_that_cannot_be_are_refused(folder, options):
    assert "paraphrase: need {text} in the template" in refusal(folder, **options)


def test_an_evaluation_attacks_by_the_model_that_it_is_given(folder):
    config = Config()
    config.evaluation.attacks = ["homoglyph"]
    assert list(robustness._attacks(config)) == ["homoglyph"]
    config.evaluation.paraphraser, config.evaluation.paraphrase_template = str(folder), "people : {text}"
    found = robustness._attacks(config)
    assert list(found) == ["homoglyph", "paraphrase"]
    assert found["paraphrase"](TEXT, rng()) == Paraphraser(folder, "people : {text}")(TEXT, rng()) != TEXT
