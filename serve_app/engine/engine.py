"""Inference engine of one model version: turns the texts of a request into verdicts. Independent of Ray."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from detect_ai.core.config import ANY_DOMAIN, ServeConfig
from detect_ai.core.errors import InputError
from detect_ai.detector.detector import Detector, Document, Sentence
from detect_ai.monitoring.prediction_log import PredictionLog
from detect_ai.schemas import Label, Reason, RequestOptions, Verdict
from detect_ai.text.normalize import Normalised, expanded_length, normalise
from detect_ai.text.windows import aggregate_windows
from serve_app.engine.batcher import Batcher, ClosedError, Ids, Scores, timed
from serve_app.engine.metrics import SHORT_TOKENS, Record, discard
from serve_app.errors import ProblemError, QueueFullError
from serve_app.files.reader import SLACK, FileReader, taken

T = TypeVar("T")
Charge = Callable[[int], object]

PASS_TOKENS = 64  # fixed cost of a forward pass on a CPU, in tokens (docs/SERVING.md)
READERS = 2  # threads that normalise and tokenise
CHARS_PER_TOKEN = 4
MIN_MEASURED_CHARS = 2000  # shorter requests say little about the time per character
MAX_WAITING_BATCHES = 64


@dataclass(frozen=True)
class Options:
    """Options of a request."""

    target_fpr: float | None = None  # the model's default when None
    spans: bool = False  # score each sentence
    explain: bool = False  # score the text without each sentence; needs `spans`
    prevalence: float | None = None  # the model's when None

    @classmethod
    def of(cls, request: RequestOptions) -> Self:
        """The options of a request."""
        spans = request.return_spans or request.explain
        return cls(request.target_fpr, spans, request.explain, request.prevalence)


@dataclass(frozen=True)
class RequestInfo:
    """Id, caller and token accounting of a request."""

    id: str
    caller: str  # in the queue
    charge: Charge  # charges tokens to the caller's rate limit; a negative number refunds them


@dataclass(frozen=True)
class EncodedRequest:
    """A request, normalised and tokenised."""

    target_fpr: float  # one of the model's targets
    options: Options
    documents: list[Document]
    sentences: list[list[Sentence]]  # of each document; empty unless spans were requested
    rows: list[Ids]  # windows of all documents, then of all sentences, then of the documents without each sentence
    owners: NDArray[np.int64]  # index of the document or sentence that each window belongs to, shape (windows,)


class Engine:
    """Serves concurrent requests with one detector.

    A request that finds the engine idle runs as one job in a model thread, with two thread switches. Otherwise reader
    threads encode requests and build responses, and the batcher runs their windows in the model threads.
    """

    def __init__(
        self,
        detector: Detector,
        config: ServeConfig,
        record: Record = discard,
        card: str = "",
        log: PredictionLog | None = None,
    ) -> None:
        self.detector, self.config, self.record, self.card, self.log = detector, config, record, card, log
        lanes = config.threads if detector.backend.has_lanes else 1
        self.model = ThreadPoolExecutor(lanes, "model")
        self.teams = ThreadPoolExecutor(max(1, min(lanes, config.threads // 2)), "team")
        self.readers = ThreadPoolExecutor(READERS, "reader")
        self.files = FileReader(config)
        self.batcher = Batcher(
            self._score,
            self.model,
            self.teams,
            config.batch_tokens,
            MAX_WAITING_BATCHES * config.batch_tokens,
            detector.tokenizer.num_special,
            # A GPU needs a good part of a batch to be busy: many short windows take no longer than a few.
            config.batch_tokens // 4 if config.use_gpu else PASS_TOKENS,
            config.max_wait_s,
            config.threads,
            lanes,
            record,
            detector.version,
        )
        self.abstain_domains: frozenset[str] = frozenset()  # `serve.abstain_domains`
        self._unread_chars: Counter[str] = Counter()  # by caller
        self._char_s = 0.0  # moving average of a reader's seconds per character

    def warm_up(self) -> None:
        """Score texts of several lengths, alone and in a lane, so that kernels and memory are ready for requests."""

        def detect(threads: int) -> None:
            torch.set_num_threads(threads)
            if threads == self.config.threads:  # a text alone
                self.detector.backend.warm_up(self.detector.spec.window)
            for words in (8, 100, 1000):
                self.detector.detect([" ".join(["word"] * words)])

        for threads in {self.config.threads, 1 if self.detector.backend.has_lanes else self.config.threads}:
            self.batcher.executor(threads).submit(detect, threads).result()

    def require_room(self, size: int, caller: str) -> None:
        """Raise QueueFullError if the estimated queueing delay is too long for a request of `size` characters."""
        seconds = taken(self._unread_chars, caller) * self._char_s / READERS
        if self.batcher.waiting_tokens:
            seconds += self.batcher.delay_s(1, caller)
        if seconds > self.config.max_wait_s:
            self.batcher.offered_tokens += size / CHARS_PER_TOKEN  # the autoscaler counts refused work too
            raise QueueFullError(max(1, math.ceil(seconds)))

    async def run(
        self,
        encode: Callable[[], EncodedRequest],
        respond: Callable[[list[Verdict]], T],
        size: int,
        request: RequestInfo,
    ) -> T:
        """Encode a request, score it, log its verdicts and build its response, off the event loop.

        `size` is in characters. Callers share the model evenly; the tokens of a failed request are refunded. Raises
        QueueFullError, or ClosedError if the replica is shutting down.
        """
        self.require_room(size, request.caller)
        if not self.batcher.alive:
            raise ClosedError
        loop, began, rows = asyncio.get_running_loop(), time.perf_counter(), list[Ids]()
        seconds: dict[str, float] = {}  # by phase

        def encode_and_charge() -> EncodedRequest:
            nonlocal rows
            encoded, seconds["read"] = timed(encode)
            rows = encoded.rows
            loop.call_soon_threadsafe(request.charge, sum(map(len, rows)))  # even if the caller disconnected
            return encoded

        def conclude(encoded: EncodedRequest, scores: Scores) -> tuple[list[Verdict], T]:
            start = time.perf_counter()
            verdicts, document_scores = self.verdicts(encoded, scores)
            response = respond(verdicts)
            if self.log:  # after `respond`, which may change the verdicts of files
                self.log.add(request.id, encoded.documents, document_scores, verdicts)
            seconds["respond"] = time.perf_counter() - start
            return verdicts, response

        try:
            if self.batcher.is_idle and not self._unread_chars.total():
                result = await self._run_alone(encode_and_charge, conclude, size, seconds)
            else:
                result = await self._encode(encode_and_charge, size, request.caller)
            if isinstance(result, EncodedRequest):
                scores = await self.batcher.scores(result.rows, request.caller, seconds)
                result = await loop.run_in_executor(self.readers, conclude, result, scores)
        except Exception:  # not CancelledError: a caller that disconnects pays for the work
            if rows:
                request.charge(-sum(map(len, rows)))
            raise
        verdicts, response = result
        self._report(verdicts, rows, seconds, time.perf_counter() - began)
        return response

    def _report(
        self, verdicts: Sequence[Verdict], rows: Sequence[Ids], seconds: Mapping[str, float], total_s: float
    ) -> None:
        """Record the metrics of a request that has been answered, with its seconds by phase."""
        version = self.detector.version
        self.batcher.measure_rest(rows, sum(seconds.values()) - seconds.get("model", 0.0))
        size = "short" if sum(map(len, rows)) <= SHORT_TOKENS else "long"
        wait_s = max(0.0, total_s - sum(seconds.values()))  # batches in parallel lanes overlap
        for phase, value in {**seconds, "wait": wait_s, "total": total_s}.items():
            self.record("request_seconds", value, phase=phase, size=size, model_version=version)
        self.record("windows", len(rows), model_version=version)
        texts = Counter((verdict.label.value, verdict.nearest_domain or "none") for verdict in verdicts)
        for (label, domain), number in texts.items():
            self.record("texts", number, label=label, nearest_domain=domain, model_version=version)
        for reason, number in Counter(reason.value for verdict in verdicts for reason in verdict.reasons).items():
            self.record("abstentions", number, reason=reason, model_version=version)
        for kind, number in Counter(kind for verdict in verdicts for kind in verdict.tampering).items():
            self.record("tampered_texts", number, kind=kind)

    async def _run_alone(
        self,
        encode: Callable[[], EncodedRequest],
        conclude: Callable[[EncodedRequest, Scores], tuple[list[Verdict], T]],
        size: int,
        seconds: dict[str, float],
    ) -> EncodedRequest | tuple[list[Verdict], T]:
        """Run all steps as one job in a model thread. A request longer than a batch is only encoded: it takes turns."""
        rows: list[Ids] = []

        def run(threads: int) -> EncodedRequest | tuple[list[Verdict], T]:
            nonlocal rows
            encoded = encode()
            if not 0 < sum(self.batcher.costs(encoded.rows)) <= self.batcher.lane_tokens:
                return encoded
            scores, seconds["model"] = timed(self._score, encoded.rows, threads)
            rows = encoded.rows
            return conclude(encoded, scores)

        occupied = ExitStack()
        threads = occupied.enter_context(self.batcher.lane(size // CHARS_PER_TOKEN))
        future = asyncio.get_running_loop().run_in_executor(self.batcher.executor(threads), run, threads)

        def finish(done: asyncio.Future[Any]) -> None:
            occupied.close()
            if not done.cancelled() and done.exception() is None and rows:
                self.batcher.offered_tokens += sum(self.batcher.costs(rows))
                self.batcher.measure(rows, seconds["model"], threads)

        future.add_done_callback(finish)
        return await asyncio.shield(future)  # the thread frees the lane, not a caller that disconnects

    async def _encode(self, encode: Callable[[], EncodedRequest], size: int, caller: str) -> EncodedRequest:
        self._unread_chars[caller] += size
        try:
            encoded, seconds = await asyncio.get_running_loop().run_in_executor(self.readers, timed, encode)
        finally:
            self._unread_chars -= Counter({caller: size})  # forgets callers without any
        char_s = seconds / max(size, MIN_MEASURED_CHARS)
        self._char_s = 0.8 * self._char_s + 0.2 * char_s if self._char_s else char_s
        return encoded

    def _score(self, rows: Sequence[Ids], threads: int) -> Scores:
        """Log-odds of windows. In torch, the number of threads belongs to the calling thread."""
        torch.set_num_threads(threads)
        return self.detector.window_scores(rows)

    def encode(self, texts: Sequence[str], options: Options) -> EncodedRequest:
        """Normalise and tokenise texts. Raises ProblemError: an unknown target, or too much text."""
        self.check_target(options.target_fpr)
        if len(texts) > self.config.max_texts:
            detail = f"The request has {len(texts)} texts, at most {self.config.max_texts}: send several requests."
            raise ProblemError(413, detail)
        bound, chars = self.config.max_chars, sum(map(expanded_length, texts))
        normalised: list[Normalised] = []
        if chars <= SLACK * bound:
            normalised = [normalise(text) for text in texts]
            chars = sum(len(n.text) for n in normalised)
        if chars > bound:
            raise ProblemError(413, f"The request has {chars} characters, at most {bound}: send several requests.")
        return self.encode_normalised(texts, normalised, options)

    def encode_normalised(
        self, texts: Sequence[str], normalised: Sequence[Normalised], options: Options
    ) -> EncodedRequest:
        """Tokenise normalised texts. Raises ProblemError: an unknown target, or too many tokens."""
        target = self.check_target(options.target_fpr)
        documents = self.detector.encode(texts, normalised)
        sentences = [self.detector.sentences(document) if options.spans else [] for document in documents]
        sequences = [document.input_ids for document in documents]
        sequences += [sentence.input_ids for of_document in sentences for sentence in of_document]
        tokens = sum(map(len, sequences))
        if options.explain:
            tokens += sum(len(d.input_ids) * len(s) for d, s in zip(documents, sentences, strict=True))
        if tokens > self.config.max_tokens:
            option = "`explain`" if options.explain else "`return_spans`" if options.spans else ""
            advice = f", or leave out {option}, which reads each text again." if option else "."
            detail = (
                f"The request takes {tokens} tokens, at most {self.config.max_tokens}: send several requests{advice}"
            )
            raise ProblemError(413, detail)
        if options.explain:
            sequences += [ids for document in documents for ids in self.detector.leave_one_out(document)]
        rows, owners = self.detector.windows(sequences)
        return EncodedRequest(target, options, documents, sentences, rows, owners)

    def check_target(self, target_fpr: float | None) -> float:
        """The target, or the model's default for None. Raises ProblemError for a target without a threshold."""
        try:
            return self.detector.check_target(target_fpr)
        except InputError as error:
            raise ProblemError(422, f"{error}.") from None

    def verdicts(self, encoded: EncodedRequest, window_scores: Scores) -> tuple[list[Verdict], list[float]]:
        """The verdict of each text, and its score in log-odds."""
        lengths = [len(sentences) for sentences in encoded.sentences]
        counts = [len(encoded.documents), *lengths, *(lengths if encoded.options.explain else [])]
        scores = aggregate_windows(window_scores, encoded.owners, sum(counts))
        texts, *parts = np.split(scores, np.cumsum(counts)[:-1])
        verdicts, prevalence = [], encoded.options.prevalence
        for i, (document, score) in enumerate(zip(encoded.documents, texts.tolist(), strict=True)):
            spans = None
            if encoded.options.spans:
                effects = score - parts[len(texts) + i] if encoded.options.explain else None
                spans = self.detector.score_spans(document, encoded.sentences[i], parts[i], effects, prevalence)
            verdict = self.detector.verdict(document, score, spans, encoded.target_fpr, prevalence)
            is_paused = self.abstain_domains & {ANY_DOMAIN, verdict.nearest_domain}
            verdicts.append(abstained(verdict) if is_paused else verdict)
        return verdicts, texts.tolist()


def abstained(verdict: Verdict) -> Verdict:
    """The verdict, changed to `uncertain` because its error rates may not hold at present."""
    changes = {"label": Label.UNCERTAIN, "reasons": [*verdict.reasons, Reason.ABSTAINING]}
    return verdict.model_copy(update={**changes, "fpr_upper_bound": None, "confidence": None})
