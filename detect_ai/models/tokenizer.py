"""Tokenizer: converts whole normalised texts to token ids, without special tokens or truncation."""

from __future__ import annotations

import hashlib
import json
from collections import ChainMap
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from detect_ai.core.errors import BundleError, ConfigError

Ids = NDArray[np.int32]
MAX_CACHED_WORDS = 100_000  # about 30 MB
MAX_CACHED_LENGTH = 32  # characters of a cached word: a text without spaces is one word


class Tokenizer:
    """A fast tokenizer and the special tokens around a window. Disables truncation and padding set in its file."""

    def __init__(self, fast: FastTokenizer, pad_id: int) -> None:
        fast.no_truncation()  # files of sentence encoders often set truncation to 128 tokens
        fast.no_padding()
        self._fast = fast
        self._words: dict[str, list[int]] | None = {} if _splits_at_spaces(fast) else None
        self.pad_id = pad_id
        bare, framed = (fast.encode("a", add_special_tokens=special).ids for special in (False, True))
        start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        self.prefix = np.asarray(framed[:start], dtype=np.int32)
        self.suffix = np.asarray(framed[start + len(bare) :], dtype=np.int32)

    @classmethod
    def from_pretrained(cls, path: str, revision: str | None = None) -> Tokenizer:
        """Load from a local directory or the hub. Raises ConfigError if there is no padding token."""
        from transformers import AutoTokenizer

        pretrained = AutoTokenizer.from_pretrained(path, revision=revision, use_fast=True, trust_remote_code=False)
        if pretrained.pad_token_id is None:
            raise ConfigError(f"model.path={path}: its tokenizer has no padding token; expected an encoder's")
        return cls(pretrained.backend_tokenizer, pad_id=int(pretrained.pad_token_id))

    @classmethod
    def load(cls, folder: Path, pad_id: int) -> Tokenizer:
        """Load from a folder written by `save`. Raises BundleError if there is no readable tokenizer."""
        path = folder / "tokenizer.json"
        try:
            return cls(FastTokenizer.from_file(str(path)), pad_id)
        except Exception as error:
            raise BundleError(f"{path}: expected a tokenizer file of the tokenizers library: {error}") from error

    def save(self, folder: Path, window: int) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, with which transformers truncates to `window` tokens."""
        self._fast.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": window,
            "pad_token": self._fast.id_to_token(self.pad_id),
            "model_input_names": ["input_ids", "attention_mask"],
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    @property
    def fingerprint(self) -> str:
        """sha256 over the whole tokenizer: vocabulary, rules and special tokens."""
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of normalised texts: one int32 array each, shape (num_tokens,)."""
        known = self._words
        if known is None:
            return [np.asarray(ids, dtype=np.int32) for ids in self._encode(list(texts))]
        # A cache of words is 4 to 10 times as fast, because most words of a text have occurred before.
        if len(known) > MAX_CACHED_WORDS:
            known = self._words = {}  # not cleared: another thread may be reading the old one
        words = [text.split(" ") for text in texts]
        new = list(set().union(*words).difference(known))
        encoded = dict(zip(new, self._encode(new), strict=True))
        long = {word: ids for word, ids in encoded.items() if len(word) > MAX_CACHED_LENGTH}
        known.update(item for item in encoded.items() if item[0] not in long)
        lookup = ChainMap(long, known).__getitem__ if long else known.__getitem__
        return [np.fromiter(chain.from_iterable(map(lookup, of_text)), np.int32) for of_text in words]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._fast.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[Ids, NDArray[np.int32]]:
        """Token ids of one normalised text, and the character span of each token: shape (num_tokens, 2)."""
        encoding = self._fast.encode(text, add_special_tokens=False)
        offsets = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        return np.asarray(encoding.ids, dtype=np.int32), offsets

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary, including added tokens."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def num_special(self) -> int:
        """Number of special tokens around each window."""
        return len(self.prefix) + len(self.suffix)


def _splits_at_spaces(fast: FastTokenizer) -> bool:
    """Whether the tokens of a text are the concatenated tokens of its space-separated words.

    True for BERT and similar models (DistilBERT, MiniLM, E5 …); not if a token may begin with the preceding space.
    """
    rules = json.loads(fast.to_str())
    kinds = [(rules[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    beyond_words = [
        token
        for token in rules["added_tokens"]
        if token["lstrip"] or token["rstrip"] or token["single_word"] or " " in token["content"]
    ]
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not beyond_words
