"""Detector: the only code path from texts to scores and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detect_ai.calibration.calibration import AI, BOTH, NEITHER
from detect_ai.calibration.many_texts import precision
from detect_ai.core.errors import InputError
from detect_ai.detector import bundle
from detect_ai.metrics import Floats
from detect_ai.models import backends
from detect_ai.models.batch import collate, lane_tokens, plan_scoring
from detect_ai.models.style import STYLE_FILE, Style
from detect_ai.models.tokenizer import Tokenizer
from detect_ai.schemas import Label, Reason, Span, Verdict
from detect_ai.text.content import Content, content_report
from detect_ai.text.normalize import Normalised, normalise
from detect_ai.text.sentences import sentences
from detect_ai.text.windows import aggregate_windows, split_windows

if TYPE_CHECKING:
    from detect_ai.core.config import ModelConfig
    from detect_ai.detector.bundle import DetectorSpec
    from detect_ai.models.backends.base import Backend
    from detect_ai.models.tokenizer import Ids

Scores = NDArray[np.float64]
BATCH_TOKENS = 8192
UNDECIDED = {BOTH: Reason.BETWEEN_THRESHOLDS, NEITHER: Reason.UNLIKE_CALIBRATION}


@dataclass(frozen=True)
class Document:
    """A text as submitted and as the detector reads it."""

    text: str
    normalised: Normalised
    input_ids: Ids
    num_windows: int
    content: Content = field(default_factory=Content)  # for a detector only, not for a checkpoint
    # For a detector whose thresholds depend on style: the style of the text, the standardised scores required for the
    # label `ai` by false positive rate, and the most similar calibration domain.
    style: Floats = field(default_factory=lambda: np.empty(0))
    required: Floats = field(default_factory=lambda: np.empty(0))
    nearest_domain: str | None = None


@dataclass(frozen=True)
class Sentence:
    """A sentence of a document."""

    start: int  # offset of its first character in the submitted text, in code points
    end: int  # offset after its last character
    input_ids: Ids  # its tokens with those of its neighbours


class Scorer:
    """An encoder with its tokenizer: token ids in, log-odds out. A checkpoint has no more than this.

    A window has `window` tokens, including special tokens, and starts `stride` tokens after the previous one; a forward
    pass has at most `batch_tokens` padded tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, backend: Backend, window: int, stride: int, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self.tokenizer = tokenizer
        self.backend = backend
        self.stride = stride
        self.batch_tokens = batch_tokens
        self._content = window - tokenizer.num_special

    @classmethod
    def from_checkpoint(cls, folder: Path, config: ModelConfig, precision: str, device: str = "cpu") -> Scorer:
        """Load a training checkpoint. Raises BundleError if it is damaged."""
        from detect_ai.models import encoder

        backend = backends.get(backends.DEFAULT).load(folder, device, precision)
        return cls(encoder.load_tokenizer(config), backend, config.window, config.stride)

    def read(self, texts: Sequence[str]) -> list[Document]:
        """Normalise and tokenise texts."""
        return self.encode(texts, [normalise(text) for text in texts])

    def encode(self, texts: Sequence[str], normalised: Sequence[Normalised]) -> list[Document]:
        """Tokenise normalised texts."""
        encoded = self.tokenizer.encode([n.text for n in normalised])
        return [
            Document(text, n, ids, len(self.windows([ids])[0]))
            for text, n, ids in zip(texts, normalised, encoded, strict=True)
        ]

    def windows(self, token_ids: Sequence[Ids]) -> tuple[list[Ids], NDArray[np.int64]]:
        """The windows of documents, and the position of each window's document."""
        return split_windows(token_ids, self._content, self.stride)

    def score(self, token_ids: Sequence[Ids]) -> Scores:
        """Log-odds of documents given as token ids of normalised texts, shape (documents,)."""
        rows, owners = self.windows(token_ids)
        return aggregate_windows(self.window_scores(rows), owners, len(token_ids))

    def window_scores(self, rows: Sequence[Ids]) -> Scores:
        """Log-odds of windows, shape (windows,), computed in batches of similar length.

        If the backend allows it and there are several batches, each thread runs its own batch: on a CPU this is faster
        than all threads on one batch, where they wait for each other at every layer.
        """
        scores = np.empty(len(rows))
        lengths = np.asarray([len(row) + self.tokenizer.num_special for row in rows])

        def score(positions: NDArray[np.int64]) -> None:
            batch = [rows[i] for i in positions]
            scores[positions] = self.backend.log_odds(
                collate(batch, self.tokenizer.prefix, self.tokenizer.suffix, self.tokenizer.pad_id)
            )

        import torch

        threads = torch.get_num_threads() if self.backend.has_lanes else 1
        plan = plan_scoring(lengths, lane_tokens(self.batch_tokens, threads))
        if threads == 1 or len(plan) == 1:
            for positions in plan:
                score(positions)
        else:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(score, plan))
        return scores


class Detector(Scorer):
    """A loaded bundle."""

    def __init__(
        self,
        spec: DetectorSpec,
        tokenizer: Tokenizer,
        backend: Backend,
        batch_tokens: int = BATCH_TOKENS,
        style: Style | None = None,
    ) -> None:
        super().__init__(tokenizer, backend, spec.window, spec.stride, batch_tokens)
        self.spec = spec
        self.version = spec.version
        self._style = style  # for bundles whose thresholds depend on style

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", batch_tokens: int = BATCH_TOKENS) -> Detector:
        """Load and verify a bundle; it runs at the precision of its calibration. Raises BundleError."""
        spec = bundle.read_spec(folder)
        tokenizer = Tokenizer.load(folder, spec.pad_id)
        backend = backends.get(spec.backend).load(folder, device, spec.precision)
        style = Style.load(folder) if STYLE_FILE in spec.files else None
        return cls(spec, tokenizer, backend, batch_tokens, style)

    def encode(self, texts: Sequence[str], normalised: Sequence[Normalised]) -> list[Document]:
        """Tokenise normalised texts, report their content, and get the thresholds for their styles."""
        language = str(self.spec.corpus.get("language", ""))
        return [
            replace(
                document,
                content=content_report(document.text, document.normalised, language),
                **self._compare(document.input_ids),
            )
            for document in super().encode(texts, normalised)
        ]

    def _compare(self, input_ids: Ids) -> dict[str, Any]:
        """The style fields of a document, computed for one text at a time so that they do not depend on the batch."""
        calibration = self.spec.calibration
        style = self.styles([input_ids])
        required, nearest = calibration.required_scores(style)[0], calibration.nearest(style[0])
        return {"style": style[0], "required": required, "nearest_domain": nearest}

    def styles(self, token_ids: Sequence[Ids]) -> Floats:
        """Styles of texts, shape (texts, dimensions); zero dimensions in a bundle without styles."""
        return self._style.vectors(token_ids) if self._style else np.empty((len(token_ids), 0))

    def detect(
        self,
        texts: Sequence[str],
        target_fpr: float | None = None,
        return_spans: bool = False,
        prevalence: float | None = None,
    ) -> list[Verdict]:
        """Verdicts of texts, in order; texts are not truncated.

        `target_fpr` is one of `targets`; `return_spans` also scores each sentence; `prevalence` is the fraction of AI
        texts that probabilities assume, above 0 and below 1; labels do not depend on it. None means the default of the
        bundle. Raises InputError for other values.
        """
        target = self.check_target(target_fpr)
        self.check_prevalence(prevalence)
        documents = self.read(texts)
        scores = self.score([document.input_ids for document in documents])
        spans = [self.spans(document, prevalence=prevalence) if return_spans else None for document in documents]
        return [self.verdict(*scored, target, prevalence) for scored in zip(documents, scores, spans, strict=True)]

    @property
    def targets(self) -> list[float]:
        """Target false positive rates that this bundle has thresholds for."""
        return sorted(self.spec.calibration.thresholds)

    def check_target(self, target_fpr: float | None) -> float:
        """The target, or the bundle's default for None. Raises InputError if the target has no threshold."""
        target = self.spec.default_target_fpr if target_fpr is None else target_fpr
        if target not in self.spec.calibration.thresholds:
            allowed = ", ".join(f"{t:g}" for t in self.targets)
            raise InputError(f"target_fpr={target}: this model has thresholds for {allowed}")
        return target

    @staticmethod
    def check_prevalence(prevalence: float | None) -> None:
        """Raise InputError for a prevalence that is not between 0 and 1."""
        if prevalence is not None and not 0 < prevalence < 1:
            raise InputError(f"prevalence={prevalence}: expected a number above 0 and below 1")

    def spans(self, document: Document, with_occlusion: bool = False, prevalence: float | None = None) -> list[Span]:
        """Scores by sentence, each scored with its neighbours for context; with occlusion effects on request."""
        sentences, effects = self.sentences(document), None
        scores = self.score([sentence.input_ids for sentence in sentences])
        if with_occlusion:
            whole, *others = self.score([document.input_ids, *self.leave_one_out(document)])
            effects = whole - np.asarray(others)
        return self.score_spans(document, sentences, scores, effects, prevalence)

    def leave_one_out(self, document: Document) -> list[Ids]:
        """The tokens of a document without its first sentence, without its second, and so on."""
        text = document.normalised.text
        without = [f"{text[:start].rstrip()} {text[end:].lstrip()}".strip() for start, end in sentences(text)]
        return self.tokenizer.encode(without)

    def sentences(self, document: Document) -> list[Sentence]:
        """The sentences of a document, each with the tokens to score it on."""
        text = document.normalised.text
        places = sentences(text)
        ids, offsets = self.tokenizer.encode_with_offsets(text)
        starts, ends = np.asarray(places, dtype=np.int64).reshape(-1, 2).T
        first = np.searchsorted(offsets[:, 0], starts)
        last = np.searchsorted(offsets[:, 1], ends, side="right")
        neighbours = ((max(0, i - 1), min(len(places) - 1, i + 1)) for i in range(len(places)))
        return [
            Sentence(*document.normalised.to_source(start, end), ids[first[before] : last[after]])
            for (start, end), (before, after) in zip(places, neighbours, strict=True)
        ]

    def score_spans(
        self,
        document: Document,
        sentences: Sequence[Sentence],
        scores: Scores,
        effects: Scores | None = None,
        prevalence: float | None = None,
    ) -> list[Span]:
        """Spans of the submitted text, from the log-odds of its sentences and their effects on the whole text's."""
        calibration = self.spec.calibration
        scaling = calibration.span_scaling or calibration
        probabilities = scaling.probability(scores, calibration.prior_shift(prevalence))
        values: list[float | None] = [None] * len(sentences) if effects is None else effects.tolist()
        return [
            Span(start=sentence.start, end=sentence.end, probability=p, effect=effect)
            for sentence, p, effect in zip(sentences, probabilities.tolist(), values, strict=True)
        ]

    def verdict(
        self,
        document: Document,
        score: float,
        spans: list[Span] | None,
        target_fpr: float,
        prevalence: float | None = None,
    ) -> Verdict:
        """The verdict for a score at a target; probabilities assume `prevalence` (None: that of the calibration)."""
        calibration, num_tokens = self.spec.calibration, len(document.input_ids)
        threshold, shift = calibration.thresholds[target_fpr], calibration.prior_shift(prevalence)
        prevalence = calibration.prevalence if prevalence is None else prevalence
        is_short = num_tokens < self.spec.min_tokens_at(target_fpr)
        reasons = [*([Reason.TOO_SHORT] if is_short else []), *map(Reason, document.content.reasons)]
        decision = int(calibration.decide(score, num_tokens, document.required[None], target_fpr)[0])
        if decision in UNDECIDED:
            reasons.append(UNDECIDED[decision])
        bounded = set(reasons) <= {Reason.BETWEEN_THRESHOLDS}
        ai_fraction = None
        if spans is not None:
            lengths = np.asarray([span.end - span.start for span in spans], np.int64)
            is_ai = np.asarray([span.probability >= 0.5 for span in spans], np.bool_)
            ai_fraction = float(lengths[is_ai].sum() / max(1, lengths.sum()))
        return Verdict(
            label=Label.UNCERTAIN if reasons else (Label.AI if decision == AI else Label.HUMAN),
            probability=float(calibration.probability(score, shift)),
            prevalence=prevalence,
            ppv=precision(prevalence, threshold.fpr_bound, self.spec.detection_rates[target_fpr]),
            target_fpr=target_fpr,
            threshold=float(
                calibration.probability(calibration.ai_from(num_tokens, document.required, target_fpr), shift)
            ),
            p_value=calibration.p_value(score, num_tokens, document.required),
            compared_with=calibration.compared_with,
            nearest_domain=document.nearest_domain,
            num_compared=calibration.num_human,
            fpr_upper_bound=threshold.fpr_bound if bounded else None,
            confidence=threshold.confidence if bounded else None,
            reasons=reasons,
            tampering=document.normalised.tampering,
            content=document.content.rounded(),
            spans=spans,
            ai_fraction=ai_fraction,
            num_tokens=num_tokens,
            num_windows=document.num_windows,
            model_version=self.version,
        )
