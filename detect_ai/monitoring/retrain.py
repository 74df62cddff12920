"""The stage `retrain`: texts from operation that the next training should learn from, as sources of a corpus.

- *Hard negatives*: the texts of a large human corpus that the detector scores highest, found with Ray Data.
- *Mirrors*: for each of them an AI text on the same topic, of its length and style. Human texts without AI counterparts
  teach a detector that their topics are human (docs/experiments/log/2026-11-essays.md).
- *Audited texts*: those of the random audit that people have labelled, if the service kept their text.

Mirrors come from an OpenAI-compatible endpoint, or from a local model through transformers; each is kept when it
arrives, so that an interrupted run continues where it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pyarrow as pa
import tenacity

from detect_ai.core.config import Config, RetrainConfig, SourceConfig
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage, parquet
from detect_ai.detector.dataset import texts_of
from detect_ai.detector.registry import Registry
from detect_ai.detector.score import score_in_memory
from detect_ai.monitoring import prediction_log
from detect_ai.monitoring.feedback import Feedback
from detect_ai.schemas import Label

logger = logging.getLogger(__name__)

API_KEY = "DETECT_AI_GENERATOR_KEY"
PROMPT = (
    "Write a text of about {words} words on the same topic as the text below, in the same style and register. Do not "
    "repeat its sentences. Answer with the text alone.\n\n{text}"
)
PROMPT_CHARS = 4000
MIN_MIRROR_WORDS = 30
COLUMNS = ("id", "text", "label", "group", "domain", "generator")
SCHEMA = pa.schema([(name, pa.int64() if name == "label" else pa.string()) for name in COLUMNS])
Generate = Callable[[str, int], str]  # a prompt and a number of words to a text


def collect(config: Config, storage: Storage) -> dict[str, Any]:
    """Write the new texts under `runs/<run>/retrain/`. Returns their numbers and the `sources` for a corpus.

    The detector is `bundle`, the champion unless one is named. Raises ConfigError for nothing to collect from.
    """
    wanted = config.retrain
    if not (wanted.humans or wanted.audited):
        raise ConfigError("retrain.humans=: expected a file or folder of human texts, or retrain.audited=true")
    key = f"runs/{config.run}/retrain"  # always the same, so that the same texts give the same corpus
    rows = {"hard_negatives": hard_negatives(config, storage) if wanted.humans else []}
    if wanted.generator != "none":
        rows["mirrors"] = mirrors(rows["hard_negatives"], wanted, storage, f"runs/{config.run}/mirrors")
    if wanted.audited:
        rows["audited"] = audited(config, storage)
    sources = []
    for name, own in rows.items():
        if own:
            file = f"{key}/{name}.parquet"
            storage.write_bytes(file, parquet(pa.Table.from_pylist(own, SCHEMA)))
            columns = {column: column for column in ("id", "group", "domain", "generator")}
            sources.append({"kind": "parquet", "path": storage.uri(file), "name": name, **columns})
    return {"numbers": {name: len(own) for name, own in rows.items()}, "sources": sources}


def with_sources(config: Config, sources: Sequence[dict[str, Any]]) -> Config:
    """A configuration whose corpus also has these sources."""
    added = [SourceConfig(**source) for source in sources]
    corpus = config.corpus.model_copy(update={"sources": [*config.corpus.sources, *added]})
    return config.model_copy(update={"corpus": corpus})


def hard_negatives(config: Config, storage: Storage) -> list[dict[str, Any]]:
    """The human texts with the highest scores, at most `retrain.hard_negatives`; too short ones are left out."""
    wanted, bundle = config.retrain, Registry(storage).resolve(config.bundle)
    scored = score_in_memory(wanted.humans, bundle, config.score)
    chosen = set(scored[scored["reason"] == ""].nlargest(wanted.hard_negatives, "score")["row"])
    return [
        _row(text.text, 0, text.values["group"], text.values["domain"] or wanted.domain, "")
        for text in texts_of(wanted.humans, config.score)
        if text.row in chosen
    ]


def mirrors(
    humans: Sequence[dict[str, Any]], config: RetrainConfig, storage: Storage, key: str
) -> list[dict[str, Any]]:
    """An AI text for each human text, of the same group and domain; those that exist are not made again.

    Stops with a warning at `retrain.max_words` generated words. Raises ConfigError for a generator that cannot be used.
    """
    made: list[dict[str, Any]] = []
    words, last, generate = 0, 0.0, None
    for human in humans:
        file = f"{key}/{human['id']}-{hashlib.sha256(config.model.encode()).hexdigest()[:8]}.json"
        if not storage.exists(file):
            if words >= config.max_words:
                logger.warning("retrain.max_words=%d reached: %d of %d", config.max_words, len(made), len(humans))
                break
            generate = generate or generator(config)
            count = len(human["text"].split())
            time.sleep(max(0.0, last + 60 / config.requests_per_minute - time.monotonic()))
            last = time.monotonic()
            text = generate(PROMPT.format(words=count, text=human["text"][:PROMPT_CHARS]), count)
            words += len(text.split())
            storage.write_json(file, {"text": text})
        text = storage.read_json(file)["text"]
        if len(text.split()) >= MIN_MIRROR_WORDS:
            made.append(_row(text, 1, human["group"], human["domain"], config.model))
    return made


def generator(config: RetrainConfig) -> Generate:
    """The generator of a configuration. Raises ConfigError when it cannot be used."""
    if not config.model:
        raise ConfigError("retrain.model=: expected the name of a model of the endpoint, or the path of a local one")
    return _endpoint(config) if config.generator == "endpoint" else _local(config)


def _endpoint(config: RetrainConfig) -> Generate:
    """Chat completions of an OpenAI-compatible server, retried while it is busy."""
    if not config.url:
        raise ConfigError("retrain.url=: expected the address of an endpoint, such as http://127.0.0.1:8080/v1")
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(API_KEY)) else {}
    client = httpx.Client(headers=headers, timeout=120)

    @tenacity.retry(
        retry=tenacity.retry_if_exception(_is_temporary),
        wait=tenacity.wait_exponential(max=60),
        stop=tenacity.stop_after_attempt(6),
        reraise=True,
    )
    def complete(prompt: str, words: int) -> httpx.Response:
        body = {"model": config.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2 * words + 50}
        return client.post(f"{config.url.rstrip('/')}/chat/completions", json=body).raise_for_status()

    def generate(prompt: str, words: int) -> str:
        try:
            return str(complete(prompt, words).json()["choices"][0]["message"]["content"])
        except httpx.HTTPStatusError as error:
            raise ConfigError(f"retrain.url={config.url}: answered {error.response.status_code}") from None
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"retrain.url={config.url}: no chat completion ({type(error).__name__})") from None

    return generate


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def _local(config: RetrainConfig) -> Generate:
    """A causal language model through transformers. Without a chat template it continues the prompt's text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(config.model)
        model: Any = AutoModelForCausalLM.from_pretrained(config.model)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"retrain.model={config.model}: expected the folder of a causal language model ({type(error).__name__})"
        ) from error

    def generate(prompt: str, words: int) -> str:
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        longest = getattr(model.config, "max_position_embeddings", 2048)
        new = min(2 * words + 50, longest // 2)
        ids = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=longest - new)
        torch.manual_seed(0)
        with torch.inference_mode():
            made = model.generate(**ids, max_new_tokens=new, do_sample=True, pad_token_id=tokenizer.pad_token_id or 0)
        return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return generate


def audited(config: Config, storage: Storage) -> list[dict[str, Any]]:
    """Audited texts with a label that no key contradicts. Raises InputError where the service kept no texts."""
    texts = prediction_log.read(storage, "texts", ("request_id", "index", "text")).to_pandas()
    if texts.empty:
        raise InputError("retrain.audited=true: the service kept no texts; serve with monitoring.text_days above 0")
    labels = Feedback(storage, config.monitoring).audited_texts().dropna(subset="truth")
    joined = labels.merge(texts, on=["request_id", "index"])
    found = [(text, int(truth == Label.AI.value)) for text, truth in zip(joined["text"], joined["truth"], strict=True)]
    return [_row(text, label, "", config.retrain.domain, "unknown" if label else "") for text, label in found]


def _row(text: str, label: int, group: str, domain: str, made_by: str) -> dict[str, Any]:
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
    return dict(zip(COLUMNS, (digest, text, label, group or digest, domain, made_by), strict=True))
