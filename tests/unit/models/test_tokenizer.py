import json
import shutil

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer

from detect_ai.core.errors import BundleError, ConfigError
from detect_ai.models.tokenizer import Tokenizer

LONG = "the council went to the bridge " * 200


@pytest.fixture(scope="module")
def tokenizer(encoder):
    return Tokenizer.from_pretrained(str(encoder))


@pytest.fixture
def truncating(encoder, tmp_path):
    """The tokenizer of a sentence encoder: its file asks for truncation to 8 tokens and padding to 16."""
    folder = shutil.copytree(encoder, tmp_path / "short")
    fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.enable_truncation(8)
    fast.enable_padding(length=16)
    fast.save(str(folder / "tokenizer.json"))
    assert len(fast.encode(LONG).ids) == 16
    return folder


@pytest.mark.parametrize("load", [lambda f: Tokenizer.from_pretrained(str(f)), lambda f: Tokenizer.load(f, 0)])
def test_truncation_and_padding_of_the_file_are_ignored(truncating, tokenizer, load):
    loaded = load(truncating)
    expected = tokenizer.encode([LONG, "rain"])
    assert [len(ids) for ids in expected] == [1200, 1]
    assert [ids.tolist() for ids in loaded.encode([LONG, "rain"])] == [ids.tolist() for ids in expected]
    assert loaded.encode_with_offsets(LONG)[0].tolist() == expected[0].tolist()
    assert loaded.fingerprint == tokenizer.fingerprint


def test_special_tokens_around_a_text(tokenizer, encoder):
    vocabulary = json.loads((encoder / "tokenizer.json").read_text())["model"]["vocab"]
    assert tokenizer.prefix.tolist() == [vocabulary["[CLS]"]]
    assert tokenizer.suffix.tolist() == [vocabulary["[SEP]"]]
    assert (tokenizer.pad_id, tokenizer.num_special) == (vocabulary["[PAD]"], 2)


def test_tokenizer_without_special_tokens():
    fast = FastTokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(fast, pad_id=2)
    assert (tokenizer.prefix.tolist(), tokenizer.suffix.tolist(), tokenizer.num_special) == ([], [], 0)
    assert tokenizer._words is None, "only tokenizers of BERT's kind may cache words"


@given(text=st.text(st.sampled_from("abc the. BRIDGE 中é-'"), max_size=60))
@example(text="")
def test_offsets_point_into_the_text(tokenizer, text):
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode([text])[0].tolist()
    assert offsets.shape == (len(ids), 2)
    assert (np.diff(offsets[:, 0]) >= 0).all()
    assert all(text[start:end].strip() for start, end in offsets)


def test_saved_tokenizer_encodes_alike(tokenizer, tmp_path):
    tokenizer.save(tmp_path, 64)
    again = Tokenizer.load(tmp_path, tokenizer.pad_id)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.prefix.tolist() == tokenizer.prefix.tolist()
    texts = ["The council went to the bridge.", "naïve 中 42!"]
    assert [i.tolist() for i in again.encode(texts)] == [i.tolist() for i in tokenizer.encode(texts)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.model_max_length, theirs.pad_token_id) == (64, tokenizer.pad_id)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"]["vocab"].update({"zebra": len(content["model"]["vocab"])}),
        lambda content: content["normalizer"].update({"lowercase": False}),
        lambda content: content.update({"post_processor": None}),
    ],
    ids=["vocabulary", "rule", "special tokens"],
)
def test_fingerprint_changes_with(encoder, tokenizer, tmp_path, change):
    content = json.loads((encoder / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path, 0).fingerprint != tokenizer.fingerprint


def test_missing_or_damaged_tokenizer_is_refused(tmp_path):
    for _ in ("missing", "damaged"):
        with pytest.raises(BundleError, match="expected a tokenizer file of the tokenizers library"):
            Tokenizer.load(tmp_path, 0)
        (tmp_path / "tokenizer.json").write_text("{")


def test_tokenizer_without_padding_token_is_refused(encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "unpadded")
    path = tmp_path / "unpadded/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))
    with pytest.raises(ConfigError, match="no padding token"):
        Tokenizer.from_pretrained(str(tmp_path / "unpadded"))


@pytest.fixture(scope="module")
def whole(encoder):
    """The tokenizer as defined by its file."""
    return FastTokenizer.from_file(str(encoder / "tokenizer.json"))


@given(st.lists(st.text(), max_size=4))
@example(["", " ", "  a  b ", "a\x1cb\x85c\u3000d e", "[SEP]a [PAD] b[MASK]"])
@example(["e\u0301 \u0301a", "\u4e2d\u6587 x", "x" * 300])
def test_cached_words_give_the_tokens_of_whole_texts(tokenizer, whole, texts):
    expected = [whole.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == expected
    assert all(ids.dtype == np.int32 for ids in tokenizer.encode(texts))


def test_word_cache_is_bounded_in_words_and_their_length(encoder, whole, monkeypatch):
    monkeypatch.setattr("detect_ai.models.tokenizer.MAX_CACHED_WORDS", 3)
    small = Tokenizer.from_pretrained(str(encoder))
    long = "rain " + "council" * 500
    for text in ("the old bridge of the town", "a quiet market", "bread and rain", "the boat", long, long):
        assert small.encode([text])[0].tolist() == whole.encode(text, add_special_tokens=False).ids
        assert len(small._words) <= 6
        assert all(len(word) <= 32 for word in small._words)
    assert "rain" in small._words
