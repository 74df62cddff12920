"""Text to token ids: whole normalised texts, without special tokens, never truncated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from detect_ai.core.errors import BundleError, ConfigError

Ids = NDArray[np.int32]
MAX_WORDS = 100_000  # remembered, some 30 MB
LONGEST_WORD = 32  # characters of a word that is remembered: a text without spaces is one word


class Tokenizer:
    """A fast tokenizer and the special tokens that frame a window.

    Args:
        fast: the tokenizer; truncation and padding that its file may ask for are switched off.
        pad_id: the id that fills a batch up.
    """

    def __init__(self, fast: FastTokenizer, pad_id: int) -> None:
        fast.no_truncation()  # files of sentence encoders often ask for truncation to 128 tokens
        fast.no_padding()
        self._fast = fast
        self._words: dict[str, list[int]] | None = {} if _splits_at_spaces(fast) else None
        self.pad_id = pad_id
        self.prefix, self.suffix = _frame(fast)

    @classmethod
    def from_pretrained(cls, path: str, revision: str | None = None) -> Tokenizer:
        """Load from a local directory or the hub. Raises ConfigError for one without a padding token."""
        from transformers import AutoTokenizer

        pretrained = AutoTokenizer.from_pretrained(path, revision=revision, use_fast=True, trust_remote_code=False)
        if pretrained.pad_token_id is None:
            raise ConfigError(f"model.path={path}: its tokenizer has no padding token; expected an encoder's")
        return cls(pretrained.backend_tokenizer, pad_id=int(pretrained.pad_token_id))

    @classmethod
    def load(cls, folder: Path, pad_id: int) -> Tokenizer:
        """Load from a folder that `save` wrote. Raises BundleError when there is no readable tokenizer."""
        path = folder / "tokenizer.json"
        try:
            return cls(FastTokenizer.from_file(str(path)), pad_id)
        except Exception as error:
            raise BundleError(f"{path}: expected a tokenizer file of the tokenizers library: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into a folder."""
        self._fast.save(str(folder / "tokenizer.json"))

    @property
    def fingerprint(self) -> str:
        """sha256 over the whole tokenizer: vocabulary, rules and special tokens."""
        return hashlib.sha256(self._fast.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of normalised texts: one int32 array each, shape (num_tokens,)."""
        if self._words is not None:
            return self._encode_by_word([text.split(" ") for text in texts])
        return [np.asarray(ids, dtype=np.int32) for ids in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _encode_by_word(self, texts: Sequence[list[str]]) -> list[Ids]:
        """As `encode`, each word by itself, and each only once: most words of a text were in another text before."""
        known = self._words
        if known is None or len(known) > MAX_WORDS:
            known = self._words = {}  # not cleared: another thread may read the old one
        new = list(set().union(*texts).difference(known))
        found = dict(zip(new, self._encode(new), strict=True))
        long = {word: ids for word, ids in found.items() if len(word) > LONGEST_WORD}
        known.update(item for item in found.items() if item[0] not in long)

        def ids_of(word: str) -> list[int]:
            return long[word] if word in long else known[word]

        find = ids_of if long else known.__getitem__
        return [np.fromiter(chain.from_iterable(map(find, words)), np.int32) for words in texts]

    def encode_with_offsets(self, text: str) -> tuple[Ids, NDArray[np.int32]]:
        """Token ids of one normalised text, and the characters each came from: shape (num_tokens, 2)."""
        encoding = self._fast.encode(text, add_special_tokens=False)
        offsets = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        return np.asarray(encoding.ids, dtype=np.int32), offsets

    @property
    def vocabulary(self) -> int:
        """Number of tokens that it knows."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def num_special(self) -> int:
        """Special tokens that frame each window."""
        return len(self.prefix) + len(self.suffix)


def _splits_at_spaces(fast: FastTokenizer) -> bool:
    """Whether the tokens of a text are those of its words between spaces, one word after the other.

    So it is for BERT and its kin (DistilBERT, MiniLM, E5 …); not where a token may begin with the space before it.
    """
    rules = json.loads(fast.to_str())
    kinds = [(rules[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    special = [rules_of for rules_of in rules["added_tokens"] if _reaches_beyond_a_word(rules_of)]
    return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and not special


def _reaches_beyond_a_word(added: dict[str, Any]) -> bool:
    return bool(added["lstrip"] or added["rstrip"] or added["single_word"] or " " in added["content"])


def _frame(fast: FastTokenizer) -> tuple[Ids, Ids]:
    """Ids of the special tokens before and after a text."""
    bare = fast.encode("a", add_special_tokens=False).ids
    framed = fast.encode("a", add_special_tokens=True).ids
    start = next(i for i in range(len(framed) - len(bare) + 1) if framed[i : i + len(bare)] == bare)
    before, after = framed[:start], framed[start + len(bare) :]
    return np.asarray(before, dtype=np.int32), np.asarray(after, dtype=np.int32)
