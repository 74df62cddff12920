"""Mirrors: AI texts with the topic, length and style of given human texts, generated with Ray Data.

They come from an OpenAI-compatible endpoint or from a local transformers model. Each mirror is stored when it arrives,
so an interrupted run generates only the missing ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any
from urllib.parse import urlsplit

import httpx
import pyarrow as pa
import tenacity

from detect_ai.core import ray_runtime
from detect_ai.core.config import RetrainConfig, ScoreConfig, public_path
from detect_ai.core.errors import ConfigError
from detect_ai.core.storage import Storage
from detect_ai.corpus.shards import reraise_own_errors

logger = logging.getLogger(__name__)

API_KEY = "DETECT_AI_GENERATOR_KEY"
PROMPT = (
    "Write a text of about {words} words on the same topic as the text below, in the same style and register. Do not "
    "repeat its sentences. Answer with the text alone.\n\n{text}"
)
PROMPT_CHARS = 4000  # of the human text
MIN_WORDS = 30  # shorter answers are discarded
CONCURRENT = 8  # requests to an endpoint
MAX_BLOCKS = 1000  # of the dataset of texts
LOG_EVERY_S = 10
Generate = Callable[[str, int], str]  # takes a human text and a number of words, returns a mirror


def mirrors(
    humans: Sequence[dict[str, Any]], config: RetrainConfig, score: ScoreConfig, storage: Storage, key: str
) -> list[dict[str, Any]]:
    """The mirrors of human texts (`id`, `text`, `group`, `domain`): `text`, `group`, `domain` and `generator` of each.

    Mirrors under `key` are not generated again. New ones are generated for the first texts whose requested words fit
    into `retrain.max_words` less the words of all mirrors under `key`. Raises ConfigError for an unusable generator.
    """
    if not config.model:
        raise ConfigError("retrain.model=: expected the name of a model of the endpoint, or the path of a local one")
    if config.generator == "endpoint" and not config.url:
        raise ConfigError("retrain.url=: expected the address of an endpoint, such as http://127.0.0.1:8080/v1")
    of_model = hashlib.sha256(config.model.encode()).hexdigest()[:8]
    files = {human["id"]: f"{key}/{human['id']}-{of_model}.json" for human in humans}
    kept = {f"{key}/{name}" for name in storage.list(key) if name.endswith(".json")}  # not a killed actor's leftovers
    room = config.max_words - sum(_words(storage.read_json(file)["text"]) for file in kept)
    missing = [human for human in humans if files[human["id"]] not in kept]
    totals = accumulate(_words(human["text"]) for human in missing)
    planned = [human for human, total in zip(missing, totals, strict=True) if total <= room]
    if len(planned) < len(missing):
        few = len(missing) - len(planned)
        logger.warning("retrain.max_words=%d: %d texts stay without a mirror", config.max_words, few)
    if planned:
        rows = [{"text": human["text"], "file": files[human["id"]]} for human in planned]
        _generate(rows, config, score, storage)
    generator = public_path(config.model) if config.generator == "local" else config.model
    without = {human["id"] for human in missing[len(planned) :]}
    texts = [(human, storage.read_json(files[human["id"]])["text"]) for human in humans if human["id"] not in without]
    return [
        {"text": text, "group": human["group"], "domain": human["domain"], "generator": generator}
        for human, text in texts
        if _words(text) >= MIN_WORDS
    ]


def _words(text: str) -> int:
    return len(text.split())


def _generate(rows: list[dict[str, str]], config: RetrainConfig, score: ScoreConfig, storage: Storage) -> None:
    """Generate a mirror of each `text` and write it to its `file`."""
    is_local = config.generator == "local"
    workers = min(score.workers if is_local else CONCURRENT, len(rows))
    cpus, gpus = int(is_local), int(is_local and score.use_gpu)
    ray_runtime.connect(storage)
    ray_runtime.require_resources(f"mirrors ({workers} workers)", workers * cpus + 1, workers * gpus)
    import ray

    pace = ray.remote(Pace).options(num_cpus=0).remote(config.requests_per_minute)
    made = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS)).map_batches(
        MirrorActor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus,
        num_gpus=gpus,
        fn_constructor_args=(config, score, storage.root, pace, os.environ.get(API_KEY, "")),
    )
    made.context.enable_progress_bars = False
    done, logged = 0, time.monotonic()
    with reraise_own_errors():
        for batch in made.iter_batches(batch_size=None, batch_format="pyarrow"):
            done += len(batch)
            if time.monotonic() - logged > LOG_EVERY_S:
                logged = time.monotonic()
                logger.info("%d of %d mirrors", done, len(rows))


class Pace:
    """Rate limiter: `per_minute` requests over all callers."""

    def __init__(self, per_minute: float) -> None:
        self._step, self._next = 60 / per_minute, 0.0

    def seconds(self) -> float:
        """Seconds to wait before the next request."""
        now = time.monotonic()
        wait = max(0.0, self._next - now)
        self._next = now + wait + self._step
        return wait


class MirrorActor:
    """A Ray Data actor that writes the mirrors of texts to their files; a local model is loaded once."""

    def __init__(self, config: RetrainConfig, score: ScoreConfig, root: str, pace: Any, api_key: str) -> None:
        self._storage, self._arguments = Storage(root), (config, score, pace, api_key)
        self._generate: Generate | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the mirrors of a batch. Returns their numbers of words."""
        # Load here, not in the constructor, because Ray reports constructor errors as a dead actor.
        self._generate = self._generate or self._load(*self._arguments)
        words = []
        for row in batch.to_pylist():
            text = self._generate(row["text"], _words(row["text"]))
            self._storage.write_json(row["file"], {"text": text})
            words.append(_words(text))
        return pa.table({"words": words})

    def _load(self, config: RetrainConfig, score: ScoreConfig, pace: Any, api_key: str) -> Generate:
        import ray

        if config.generator == "endpoint":
            return endpoint(config, api_key, lambda: time.sleep(ray.get(pace.seconds.remote())))
        return local(config.model, score)


def endpoint(config: RetrainConfig, api_key: str, wait: Callable[[], None]) -> Generate:
    """Chat completions of an OpenAI-compatible server, retried while it is busy; calls `wait` before each request."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    client = httpx.Client(headers=headers, timeout=120)
    address, name = f"{config.url.rstrip('/')}/chat/completions", f"retrain.url: {urlsplit(config.url).netloc}"

    @tenacity.retry(
        retry=tenacity.retry_if_exception(_is_temporary),
        wait=tenacity.wait_exponential(max=60),
        stop=tenacity.stop_after_attempt(6),
        reraise=True,
    )
    def complete(body: dict[str, Any]) -> httpx.Response:
        wait()
        return client.post(address, json=body).raise_for_status()

    def generate(text: str, words: int) -> str:
        prompt = PROMPT.format(words=words, text=text[:PROMPT_CHARS])
        body = {"model": config.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2 * words + 50}
        try:
            content = complete(body).json()["choices"][0]["message"]["content"]
        except httpx.HTTPStatusError as error:
            raise ConfigError(f"{name} answered {error.response.status_code}") from None
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"{name} sent no chat completion ({type(error).__name__})") from None
        return content if isinstance(content, str) else ""  # null: a refusal, or a filter

    return generate


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def local(folder: str, score: ScoreConfig) -> Generate:
    """A causal language model of transformers. Without a chat template it continues the text of the prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(score.threads_per_worker)
    device = "cuda" if score.use_gpu else "cpu"
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"retrain.model={folder}: expected the folder of a causal language model ({type(error).__name__})"
        ) from error
    model.to(device)
    longest = getattr(model.config, "max_position_embeddings", 2048)

    def encode(text: str, words: int) -> Any:
        prompt = PROMPT.format(words=words, text=text)
        if not tokenizer.chat_template:
            return tokenizer(prompt, return_tensors="pt")
        chat = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tokenizer(prompt, return_tensors="pt", add_special_tokens=False)  # the template adds them

    def generate(text: str, words: int) -> str:
        new, quoted = min(2 * words + 50, longest // 2), text[:PROMPT_CHARS]
        # Shorten the quoted text, never the prompt, which ends with the start of the answer.
        while (ids := encode(quoted, words))["input_ids"].shape[1] > longest - new:
            if not quoted:
                raise ConfigError(
                    f"retrain.model={folder}: its context of {longest} tokens is too short for the prompt"
                )
            quoted = quoted[: len(quoted) * 9 // 10]
        torch.manual_seed(0)
        with torch.inference_mode():
            made = model.generate(
                **ids.to(device), max_new_tokens=new, do_sample=True, pad_token_id=tokenizer.pad_token_id or 0
            )
        return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    return generate
