"""From the body of a request to the body of its answer. Knows nothing of HTTP and of Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError

from detect_ai.core.config import ServeConfig
from detect_ai.core.errors import InputError
from detect_ai.detector.detector import Detector, Document, Sentence, with_effects
from detect_ai.detector.model_info import model_info
from detect_ai.schemas import (
    DetectRequest,
    DetectResponse,
    LabelScore,
    ModelInfo,
    PredictParameters,
    PredictRequest,
    Verdict,
)
from detect_ai.text.normalize import Normalised, normalise
from detect_ai.text.windows import aggregate_windows
from serve_app.api.backlog import Budget
from serve_app.api.errors import ProblemError, invalid_body
from serve_app.engine.batcher import Batcher, ClosedError, Ids, QueueFullError, Scores
from serve_app.engine.cache import ScoreCache
from serve_app.engine.metrics import Telemetry
from serve_app.engine.waiting import WorkQueue
from serve_app.files.reader import SLACK, FileReader

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
Score = Callable[[Sequence[Ids]], Awaitable[Scores]]
Charge = Callable[[int], None]

PASS_TOKENS = 64  # what a forward pass on a CPU costs besides its tokens, as so many more (docs/SERVING.md)
READERS = 2  # threads that normalise and tokenise
MANY_BYTES = 2000  # of a request from which on its time says how long a byte takes
WAITING_BATCHES = 64  # batches that may wait for the model before requests are refused
STREAM_SHARE = 0.25  # of them for streams, which wait for their turn and leave the rest to those who cannot
LIMITS = (
    "max_texts",
    "max_chars",
    "max_tokens",
    "max_explain_tokens",
    "max_body_bytes",
    "max_files",
    "max_file_bytes",
    "max_upload_bytes",
    "max_pages",
    "stream_lines",
    "stream_backlog_bytes",
)
PREDICTIONS = TypeAdapter(list[list[LabelScore]])


@dataclass(frozen=True)
class Wanted:
    """What to say of texts.

    Attributes:
        target_fpr: the model's default when None.
        spans: score each sentence, too.
        effects: say what becomes of the text's score without each sentence; needs `spans`.
    """

    target_fpr: float | None = None
    spans: bool = False
    effects: bool = False


@dataclass(frozen=True)
class Reading:
    """A request as it was read, ready for the model.

    Attributes:
        target_fpr: one that the model has a threshold for.
        wanted: what to say.
        sentences: of each document; none unless spans were asked for.
        rows: windows of all documents, then of all sentences, then of the documents without each sentence.
        owners: the position of the document or sentence that each window belongs to, shape (windows,).
    """

    target_fpr: float
    wanted: Wanted
    documents: list[Document]
    sentences: list[list[Sentence]]
    rows: list[Ids]
    owners: NDArray[np.int64]


class Service:
    """A detector that answers many requests at once.

    Args:
        detector: loaded and warmed up.
        config: limits and the size of a batch.
        model: the threads that the encoder runs in, one for each lane.
        telemetry: counts what is done.
        card: the model card as Markdown, if there is one.
        lanes: batches that run at once.

    Attributes:
        on_answer: is told what was read and answered, on the event loop.
    """

    def __init__(
        self,
        detector: Detector,
        config: ServeConfig,
        model: Executor,
        telemetry: Telemetry | None = None,
        card: str = "",
        lanes: int = 1,
    ) -> None:
        telemetry = telemetry or Telemetry()
        self.detector = detector
        self.config = config
        self.card = card
        self.batcher = Batcher(
            self._score,
            model,
            config.batch_tokens,
            WAITING_BATCHES * config.batch_tokens,
            detector.tokenizer.num_special,
            # A GPU is not full before a good part of a batch: there many short windows take no longer than few.
            config.batch_tokens // 4 if config.use_gpu else PASS_TOKENS,
            config.max_wait_s,
            config.threads,
            lanes,
            telemetry.ran,
        )
        self.telemetry = telemetry
        self.on_answer: Callable[[Reading, list[Verdict]], None] | None = None
        self._cache = ScoreCache(config.cache_texts)
        self.files = FileReader(config)
        self.stream_budget = Budget(int(STREAM_SHARE * WAITING_BATCHES * config.batch_tokens))
        self.open_streams = 0
        self._queue = WorkQueue(config.max_wait_s, READERS, MANY_BYTES)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def detect(self, body: bytes, request_id: str, charge: Charge) -> bytes:
        """The JSON of a DetectResponse for the JSON of a DetectRequest. Raises ProblemError for a bad one."""
        started = time.perf_counter()

        def read() -> Reading:
            request = parse(body, DetectRequest)
            wanted = Wanted(request.target_fpr, request.return_spans or request.explain, request.explain)
            return self.read(request.all_texts(), wanted)

        def say(verdicts: list[Verdict]) -> bytes:
            seconds = round(time.perf_counter() - started, 6)
            response = DetectResponse(
                request_id=request_id, model_version=self.detector.version, verdicts=verdicts, seconds=seconds
            )
            return response.model_dump_json().encode()

        return await self.judge(read, say, charge, size=len(body))

    async def predict(self, body: bytes, charge: Charge) -> bytes:
        """The answer to a PredictRequest: for each text its labels, the likelier first. Raises ProblemError."""
        parameters = PredictParameters()

        def read() -> Reading:
            nonlocal parameters
            request = parse(body, PredictRequest)
            parameters = request.parameters or parameters
            return self.read(request.all_texts(), Wanted(), "inputs")

        return await self.judge(read, lambda verdicts: predictions(verdicts, parameters.top_k), charge, size=len(body))

    async def judge(
        self,
        read: Callable[[], Reading],
        say: Callable[[list[Verdict]], T],
        charge: Charge | None = None,
        score: Score | None = None,
        size: int = 0,
    ) -> T:
        """Read texts, score them, say what came of it. All but the scoring happens in threads for reading.

        Args:
            read: texts as the model sees them.
            say: makes an answer of their verdicts.
            charge: counts the tokens that the model reads against the caller's rate limit; refunded where the model
                has no room for them.
            score: windows to log-odds; at once or not at all unless given.
            size: bytes that `read` reads, where the request is refused rather than kept waiting for that.

        Raises:
            ProblemError: from `read` or `say`.
            QueueFullError: too much waits to be read, or for the model.
            ClosedError: the replica is shutting down.
        """
        with self._queue.place(size, self._seconds_after()):
            reading = await self.off_loop(partial(self._queue.measure, read, size))
        tokens = sum(map(len, reading.rows))
        if charge:
            charge(tokens)
        try:
            scores = await self._scored(reading.rows, score or self.batcher.scores)
        except (QueueFullError, ClosedError):
            if charge:
                charge(-tokens)
            raise

        def conclude() -> tuple[list[Verdict], T]:
            verdicts = self.verdicts(reading, scores)
            return verdicts, say(verdicts)

        verdicts, answer = await self.off_loop(conclude)
        self.telemetry.answered(verdicts)
        if self.on_answer is not None:
            self.on_answer(reading, verdicts)
        return answer

    def require_room(self, size: int) -> None:
        """Refuse a request by its announced size in bytes, before its body is read. Raises QueueFullError."""
        with self._queue.place(size, self._seconds_after()):
            pass

    def _seconds_after(self) -> float:
        """How long a request that has been read waits for the model."""
        return self.batcher.seconds_before(1) if self.batcher.waiting_tokens else 0.0

    def _score(self, rows: Sequence[Ids], threads: int) -> Scores:
        """Log-odds of windows, by so many threads: in torch the number belongs to the thread that this runs in."""
        import torch

        torch.set_num_threads(threads)
        return self.detector.window_scores(rows)

    async def _scored(self, rows: Sequence[Ids], score: Score) -> Scores:
        """Log-odds of windows, those that the cache knows taken from there."""
        known = self._cache.find(rows)
        missing = np.flatnonzero(np.isnan(known))
        asked = [rows[int(i)] for i in missing]
        known[missing] = await score(asked)
        self._cache.keep(asked, known[missing])
        return known

    async def off_loop(self, work: Callable[[], T]) -> T:
        """Run what takes its time in a thread for reading."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    def read(self, texts: Sequence[str], wanted: Wanted, field: str = "texts") -> Reading:
        """Texts as the model will see them.

        Args:
            texts: of one request.
            wanted: what to say of them.
            field: of the request that they stand in.

        Raises:
            ProblemError: an unknown target, too many texts, too many characters.
        """
        self.check_target(wanted.target_fpr)
        if len(texts) > self.config.max_texts:
            raise ProblemError(
                413, f"`{field}` has {len(texts)}, at most {self.config.max_texts} are read: send several requests."
            )
        return self.read_normalised(texts, self._normalise(texts), wanted)

    def read_normalised(self, texts: Sequence[str], normalised: Sequence[Normalised], wanted: Wanted) -> Reading:
        """As `read`, for texts that are normalised already and not too long."""
        target = self.check_target(wanted.target_fpr)
        documents = self.detector.encode(texts, normalised)
        self._check_tokens(documents)
        sentences = [self.detector.sentences(d) if wanted.spans else [] for d in documents]
        scored = [d.input_ids for d in documents] + [s.input_ids for each in sentences for s in each]
        if wanted.effects:
            self._check_explained(documents, sentences)
            scored += [ids for d in documents for ids in self.detector.without_each_sentence(d)]
        rows, owners = self.detector.windows(scored)
        return Reading(target, wanted, documents, sentences, rows, owners)

    def _check_tokens(self, documents: Sequence[Document]) -> None:
        tokens = sum(len(document.input_ids) for document in documents)
        if tokens > self.config.max_tokens:
            raise ProblemError(
                413, f"{tokens} tokens, at most {self.config.max_tokens} are read: send several requests."
            )

    def _check_explained(self, documents: Sequence[Document], sentences: Sequence[Sequence[Sentence]]) -> None:
        tokens = sum(len(d.input_ids) * len(each) for d, each in zip(documents, sentences, strict=True))
        if tokens > self.config.max_explain_tokens:
            raise ProblemError(
                413,
                f"`explain` reads a text once more for each of its sentences: {tokens} tokens, at most "
                f"{self.config.max_explain_tokens} are read: send shorter texts, or leave `explain` out.",
            )

    def check_target(self, target_fpr: float | None) -> float:
        """The target, or the model's default for None. Raises ProblemError for one without a threshold."""
        try:
            return self.detector.check_target(target_fpr)
        except InputError as error:
            raise ProblemError(422, f"{error}.") from None

    def _normalise(self, texts: Sequence[str]) -> list[Normalised]:
        most = self.config.max_chars
        chars = sum(map(len, texts))
        normalised: list[Normalised] = []
        if chars <= SLACK * most:
            normalised = [normalise(text) for text in texts]
            chars = sum(len(each.text) for each in normalised)
        if chars > most:
            raise ProblemError(413, f"{chars} characters, at most {most} are read: send several requests.")
        return normalised

    def verdicts(self, reading: Reading, window_scores: Scores) -> list[Verdict]:
        """What the scores say of each text."""
        lengths = [len(each) for each in reading.sentences]
        counts = [len(reading.documents), *lengths, *(lengths if reading.wanted.effects else [])]
        scores = aggregate_windows(window_scores, reading.owners, sum(counts))
        texts, *spans = np.split(scores, np.cumsum(counts)[:-1])
        spans, without = spans[: len(texts)], spans[len(texts) :]
        return [
            self._verdict(reading, i, float(texts[i]), spans[i], without[i] if without else None)
            for i in range(len(texts))
        ]

    def _verdict(self, reading: Reading, i: int, score: float, sentences: Scores, without: Scores | None) -> Verdict:
        document, spans = reading.documents[i], None
        if reading.wanted.spans:
            spans = self.detector.score_spans(document, reading.sentences[i], sentences)
        if spans is not None and without is not None:
            spans = with_effects(spans, score, without)
        return self.detector.verdict(document, score, spans, reading.target_fpr)

    def info(self) -> ModelInfo:
        """The model and its limits."""
        return model_info(self.detector.spec, {name: getattr(self.config, name) for name in LIMITS})


def parse(body: bytes, model: type[Model], what: str = "body") -> Model:
    """Read a request. Raises ProblemError: 400 for what is no JSON in UTF-8, 422 for another shape."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProblemError(400, f"The {what} is not UTF-8: invalid byte at position {error.start}.") from None
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise invalid_body(error, list(model.model_fields), what) from None


def predictions(verdicts: Sequence[Verdict], top_k: int | None) -> bytes:
    """Labels and probabilities, the likelier first, as JSON in the form of Hugging Face's text classification."""
    both = [
        [LabelScore(label="ai", score=each.probability), LabelScore(label="human", score=1 - each.probability)]
        for each in verdicts
    ]
    ordered = [sorted(labels, key=lambda label: label.score, reverse=True)[:top_k] for labels in both]
    return PREDICTIONS.dump_json(ordered)
