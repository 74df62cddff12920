"""Paraphrase texts by a local sequence-to-sequence model: the attack of RAID (Dugan et al. 2024) that needs one.

RAID takes DIPPER (Krishna et al. 2023, arXiv:2303.13408), a T5 of 11B parameters. Any model that
`AutoModelForSeq2SeqLM` knows will do. DIPPER's template is "lexical = 40, order = 0 <sent> {text} </sent>".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from detect_ai.core.errors import InputError
from detect_ai.text.sentences import sentences

MAX_TOKENS = 512  # what T5 was trained on; a longer passage is left as it is
_BATCH = 8


class Paraphraser:
    """An attack: called with a normalised text and a generator of random numbers, it returns the paraphrase.

    Args:
        folder: a model in the hub's format: configuration, tokenizer, safetensors. Code in it never runs.
        template: what the model is given, with `{text}` where the passage goes.
        sentences_at_once: in a passage; each passage is paraphrased by itself.
        sampled: draw tokens from the likeliest with a mass of `top_p`; otherwise the likeliest one (greedy).
        top_p: see there; 0.75 is DIPPER's.
        device: of torch.

    Raises:
        InputError: no such folder, no safetensors in it, a model of another kind or without some of its weights.
    """

    def __init__(
        self,
        folder: str | Path,
        template: str = "paraphrase: {text}",
        sentences_at_once: int = 3,
        sampled: bool = True,
        top_p: float = 0.75,
        device: str = "cpu",
    ) -> None:
        if "{text}" not in template or sentences_at_once < 1:
            raise InputError(
                "paraphrase: need {text} in the template and sentences_at_once >= 1, "
                f"got template={template!r}, sentences_at_once={sentences_at_once}"
            )
        self._model, self._tokenizer = _load(Path(folder).expanduser(), device)
        self._template = template
        self._at_once = sentences_at_once
        self._draw = {"do_sample": True, "top_p": top_p, "top_k": 0} if sampled else {"do_sample": False}

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """Paraphrase passage by passage; what stands between them stays. The same generator, the same text."""
        import torch

        spans = sentences(text)
        groups = [spans[i : i + self._at_once] for i in range(0, len(spans), self._at_once)]
        passages = [(group[0][0], group[-1][1]) for group in groups]
        device = self._model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(int(rng.integers(2**62)))
            new: list[str] = []
            for at in range(0, len(passages), _BATCH):
                new += self._say([text[start:end] for start, end in passages[at : at + _BATCH]])
        edges = [0, *(edge for passage in passages for edge in passage), len(text)]
        gaps = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        return "".join(gap + said for gap, said in zip(gaps, [*new, ""], strict=True))

    def _say(self, passages: list[str]) -> list[str]:
        """The paraphrase of each passage; the passage itself where it is too long or the model says nothing."""
        prompts = [self._template.replace("{text}", passage) for passage in passages]
        ids = self._tokenizer(prompts).input_ids
        short = [i for i, tokens in enumerate(ids) if len(tokens) <= MAX_TOKENS]
        said = list(passages)
        if not short:
            return said
        batch = self._tokenizer([prompts[i] for i in short], padding=True, return_tensors="pt").to(self._model.device)
        longest = batch.input_ids.shape[1]
        tokens = self._model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=longest + longest // 2 + 16,
            num_beams=1,
            **self._draw,
        )
        for i, words in zip(short, self._tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            said[i] = words.strip() or passages[i]
        return said


def _load(folder: Path, device: str) -> tuple[Any, Any]:
    if not folder.is_dir():
        raise InputError(f"paraphrase: {folder}: expected a local directory of a sequence-to-sequence model")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"paraphrase: {folder}: expected safetensors in it; pickled weights are refused")
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, found = AutoModelForSeq2SeqLM.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **safe
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except Exception as error:
        raise InputError(
            f"paraphrase: {folder}: expected a sequence-to-sequence model and its tokenizer: {error}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise InputError(f"paraphrase: {folder}: weights are missing, {missing[0]} among them")
    return model.to(device).eval(), tokenizer
