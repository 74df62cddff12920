from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from detect_ai.core.config import Config, MonitoringConfig, RetrainConfig
from detect_ai.core.errors import ConfigError, InputError
from detect_ai.core.storage import Storage
from detect_ai.detector.registry import Registry
from detect_ai.monitoring import retrain
from detect_ai.monitoring.feedback import Feedback
from detect_ai.monitoring.prediction_log import RowLog
from detect_ai.monitoring.retrain import audited, collect, hard_negatives, mirrors, with_sources
from detect_ai.schemas import Label
from tests.fixtures import tiny_models
from tests.unit.monitoring.test_feedback import prediction

HUMANS = [
    {"id": f"h{i}", "text": f"Report {i} of the council near the old bridge.", "group": f"g{i}", "domain": "news"}
    for i in range(3)
]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


class Endpoint:
    """An OpenAI-compatible server that answers with 40 words, and records what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.busy = 0  # requests that are refused with 503 first
        self.status = 200
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = 503 if endpoint.busy else endpoint.status
                endpoint.busy = max(0, endpoint.busy - 1)
                if status == 200:
                    endpoint.requests.append({**body, "authorization": self.headers["Authorization"]})
                answer = {"choices": [{"message": {"content": f"{len(endpoint.requests)} " + "robust " * 40}}]}
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer if status == 200 else {}).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.server.shutdown()


def config(endpoint: Endpoint, **changes: Any) -> RetrainConfig:
    own: dict[str, Any] = {"generator": "endpoint", "model": "small", "url": endpoint.url, "requests_per_minute": 1e6}
    return RetrainConfig(**own | changes)


def test_every_human_text_gets_a_mirror_of_its_group(storage: Storage, endpoint: Endpoint) -> None:
    made = mirrors(HUMANS, config(endpoint), storage, "mirrors")
    assert [(row["label"], row["group"], row["domain"], row["generator"]) for row in made] == [
        (1, f"g{i}", "news", "small") for i in range(3)
    ]
    assert HUMANS[0]["text"] in endpoint.requests[0]["messages"][0]["content"]
    assert endpoint.requests[0]["model"] == "small"


def test_mirrors_are_not_made_twice(storage: Storage, endpoint: Endpoint) -> None:
    first = mirrors(HUMANS[:2], config(endpoint), storage, "mirrors")
    again = mirrors(HUMANS, config(endpoint), storage, "mirrors")
    assert again[:2] == first
    assert len(endpoint.requests) == 3
    mirrors(HUMANS, config(endpoint, model="large"), storage, "mirrors")
    assert len(endpoint.requests) == 6


def test_generated_words_are_bounded(storage: Storage, endpoint: Endpoint) -> None:
    assert len(mirrors(HUMANS, config(endpoint, max_words=50), storage, "mirrors")) == 2


def test_a_busy_endpoint_is_asked_again(storage: Storage, endpoint: Endpoint) -> None:
    endpoint.busy = 1
    assert len(mirrors(HUMANS[:1], config(endpoint), storage, "mirrors")) == 1


def test_the_key_of_the_endpoint_comes_from_the_environment(
    storage: Storage, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(retrain.API_KEY, "secret")
    mirrors(HUMANS[:1], config(endpoint), storage, "mirrors")
    assert endpoint.requests[0]["authorization"] == "Bearer secret"


def test_an_endpoint_that_refuses_is_named(storage: Storage, endpoint: Endpoint) -> None:
    endpoint.status = 401
    with pytest.raises(ConfigError, match=r"retrain\.url=.*401"):
        mirrors(HUMANS, config(endpoint), storage, "mirrors")


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model": ""}, r"retrain\.model"), ({"url": ""}, r"retrain\.url"), ({"generator": "local"}, r"retrain\.model")],
)
def test_an_incomplete_generator_is_refused(
    storage: Storage, endpoint: Endpoint, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        mirrors(HUMANS, config(endpoint, **changes), storage, "mirrors")


def test_a_local_model_writes_mirrors(storage: Storage, tmp_path: Path, encoder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path / "generator"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder)
    tokenizer.save_pretrained(folder)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    own = RetrainConfig(generator="local", model=str(folder), requests_per_minute=1e6)
    (row,) = mirrors(HUMANS[:1], own, storage, "mirrors")
    assert row["generator"] == str(folder)
    assert len(row["text"].split()) >= retrain.MIN_MIRROR_WORDS


def test_audited_texts_are_those_of_the_audit_without_conflicts(storage: Storage) -> None:
    log, now = RowLog(storage, "texts", 9, 10**9), datetime.now(UTC)
    log.append([{"time": now, "request_id": f"r{i}", "index": 0, "text": f"text {i}"} for i in range(4)])
    log.flush()
    votes = Feedback(storage, MonitoringConfig())
    given = {"r0": [Label.HUMAN], "r1": [Label.AI], "r2": [Label.AI, Label.HUMAN], "r3": [Label.HUMAN]}
    for id_, labels in given.items():
        for number, label in enumerate(labels):
            votes.vote(prediction(id_), f"k{number}", label, may_audit=id_ != "r3")
    rows = audited(Config(), storage)
    assert [(row["text"], row["label"]) for row in rows] == [("text 0", 0), ("text 1", 1)]


def test_audited_texts_need_a_log_of_texts(storage: Storage) -> None:
    with pytest.raises(InputError, match=r"monitoring\.text_days"):
        audited(Config(), storage)


def test_hard_negatives_are_the_highest_texts_in_scope(
    storage: Storage, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, own = Registry(storage), Config()
    registry.set_champion(registry.add(tiny_bundle))
    own.retrain = RetrainConfig(
        humans=str(tiny_models.write_jsonl(tmp_path / "humans.jsonl", HUMANS)), hard_negatives=2
    )
    values = {"score": [5.0, 9.0, 7.0], "reason": ["", "mostly_code", ""]}
    scored = pd.DataFrame({"row": [f"0-{i}" for i in range(3)], **values})
    monkeypatch.setattr(retrain, "score_in_memory", lambda *_: scored)
    assert [row["group"] for row in hard_negatives(own, storage)] == ["g0", "g2"]


def test_nothing_to_collect_is_refused(storage: Storage) -> None:
    with pytest.raises(ConfigError, match=r"retrain\.humans"):
        collect(Config(), storage)


def test_sources_are_added_to_the_corpus() -> None:
    source = {"kind": "parquet", "path": "/x/mirrors.parquet", "name": "mirrors", "group": "group"}
    own = Config()
    changed = with_sources(own, [source])
    assert [one.name for one in changed.corpus.sources] == ["mirrors"]
    assert own.corpus.sources == []
