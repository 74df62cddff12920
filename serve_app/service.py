"""From the body of a request to the body of its answer. Knows nothing of HTTP and of Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from detect_ai.config import ServeConfig
from detect_ai.detector import Detector, Document, Sentence
from detect_ai.errors import InputError
from detect_ai.schemas import DetectRequest, DetectResponse, ModelInfo, ThresholdInfo, Verdict
from detect_ai.text import Normalised, normalise
from detect_ai.windows import document_scores
from serve_app.batching import Batcher, Ids, Scores
from serve_app.problems import ProblemError, invalid_body

T = TypeVar("T")

READERS = 2  # threads that normalise and tokenise
WAITING_BATCHES = 64  # batches that may wait for the model before requests are refused
GUARANTEE = (
    "The false positive rate holds on average for human texts exchangeable with the calibration set: the same sources, "
    "topics, writers and lengths. For other texts there is no guarantee. Never judge a person by a score alone."
)


@dataclass(frozen=True)
class Reading:
    """A request as it was read, ready for the model.

    Attributes:
        sentences: of each document; none unless spans were asked for.
        rows: windows of all documents, then of all sentences.
        owners: the position of the document or sentence that each window belongs to, shape (windows,).
    """

    target_fpr: float
    with_spans: bool
    documents: list[Document]
    sentences: list[list[Sentence]]
    rows: list[Ids]
    owners: NDArray[np.int64]


class Service:
    """A detector that answers many requests at once.

    Args:
        detector: loaded and warmed up.
        config: limits and the size of a batch.
        model: the single thread that the encoder runs in.
    """

    def __init__(self, detector: Detector, config: ServeConfig, model: Executor) -> None:
        self.detector = detector
        self.config = config
        self.batcher = Batcher(
            detector.window_scores, model, config.batch_tokens, WAITING_BATCHES * config.batch_tokens, config.max_wait_s
        )
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def detect(self, body: bytes, request_id: str, spend: Callable[[int], None]) -> bytes:
        """The JSON of a DetectResponse for the JSON of a DetectRequest. Raises ProblemError for a bad one.

        Args:
            body: of the request.
            request_id: of the request.
            spend: takes the texts beside the first from the rate of who asks.
        """
        started = time.perf_counter()
        reading = await self._off_loop(lambda: self.read(body))
        spend(len(reading.documents) - 1)
        scores = await self.batcher.scores(reading.rows)
        return await self._off_loop(lambda: self.answer(reading, scores, request_id, started))

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    def read(self, body: bytes) -> Reading:
        """Check a request, and read its texts as the model will see them."""
        request = parse(body)
        target = self._check_target(request.target_fpr)
        texts = request.all_texts()
        documents = self.detector.encode(texts, self._normalise(texts))
        self._check_tokens(documents)
        sentences = [self.detector.sentences(d) if request.return_spans else [] for d in documents]
        scored = [d.input_ids for d in documents] + [s.input_ids for each in sentences for s in each]
        rows, owners = self.detector.windows(scored)
        return Reading(target, request.return_spans, documents, sentences, rows, owners)

    def _check_target(self, target_fpr: float | None) -> float:
        try:
            return self.detector.check_target(target_fpr)
        except InputError as error:
            raise ProblemError(422, f"{error}.") from None

    def _normalise(self, texts: Sequence[str]) -> list[Normalised]:
        if len(texts) > self.config.max_texts:
            raise ProblemError(
                413, f"`texts` has {len(texts)}, at most {self.config.max_texts} are read: send several requests."
            )
        normalised = [normalise(text) for text in texts]
        chars = sum(len(each.text) for each in normalised)
        if chars > self.config.max_chars:
            raise ProblemError(
                413, f"{chars} characters, at most {self.config.max_chars} are read: send several requests."
            )
        return normalised

    def _check_tokens(self, documents: Sequence[Document]) -> None:
        tokens = sum(len(document.input_ids) for document in documents)
        if tokens > self.config.max_tokens:
            raise ProblemError(
                413, f"{tokens} tokens, at most {self.config.max_tokens} are read: send several requests."
            )

    def answer(self, reading: Reading, window_scores: Scores, request_id: str, started: float) -> bytes:
        """What the scores say, as JSON."""
        counts = [len(reading.documents), *map(len, reading.sentences)]
        scores = document_scores(window_scores, reading.owners, sum(counts))
        texts, *spans = np.split(scores, np.cumsum(counts)[:-1])
        response = DetectResponse(
            request_id=request_id,
            model_version=self.detector.version,
            verdicts=[self._verdict(reading, i, float(texts[i]), spans[i]) for i in range(len(texts))],
            seconds=round(time.perf_counter() - started, 6),
        )
        return response.model_dump_json().encode()

    def _verdict(self, reading: Reading, i: int, score: float, sentence_scores: Scores) -> Verdict:
        document, spans = reading.documents[i], None
        if reading.with_spans:
            spans = self.detector.score_spans(document, reading.sentences[i], sentence_scores)
        return self.detector.verdict(document, score, spans, reading.target_fpr)

    def info(self) -> ModelInfo:
        """The model and its limits."""
        return model_info(self.detector, self.config)


def parse(body: bytes) -> DetectRequest:
    """Read a request. Raises ProblemError: 400 for what is no JSON in UTF-8, 422 for another shape."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProblemError(400, f"The body is not UTF-8: invalid byte at position {error.start}.") from None
    try:
        return DetectRequest.model_validate_json(text)
    except ValidationError as error:
        raise invalid_body(error) from None


def model_info(detector: Detector, config: ServeConfig) -> ModelInfo:
    """What `/v1/model` tells."""
    spec, calibration = detector.spec, detector.spec.calibration
    thresholds = [
        ThresholdInfo(
            target_fpr=target,
            probability=float(calibration.probability(calibration.bounds(target)[1])),
            expected_fpr=calibration.thresholds[target].expected_fpr,
            fpr_upper_bound=calibration.thresholds[target].fpr_bound,
            min_tokens=spec.min_tokens_at(target),
        )
        for target in detector.targets
    ]
    return ModelInfo(
        model_version=detector.version,
        base_model=spec.base_model,
        corpus=spec.corpus,
        language=str(spec.corpus.get("language", "")),
        prevalence=calibration.prevalence,
        default_target_fpr=spec.default_target_fpr,
        thresholds=thresholds,
        num_human=calibration.num_human,
        min_tokens=spec.min_tokens,
        window=spec.window,
        normaliser_version=spec.normaliser_version,
        limits={name: getattr(config, name) for name in ("max_texts", "max_chars", "max_body_bytes")},
        guarantee=GUARANTEE,
    )
