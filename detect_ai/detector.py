"""The detector: texts in, verdicts out. The only way from a text to a score, on every path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from detect_ai import bundle
from detect_ai.batches import Batch, collate, plan_scoring
from detect_ai.calibration import p_value, probability
from detect_ai.errors import BundleError, InputError
from detect_ai.schemas import Label, Reason, Span, Verdict
from detect_ai.text import NORMALISER_VERSION, Normalised, latin_share, normalise, sentences
from detect_ai.windows import cut, document_scores

if TYPE_CHECKING:
    from detect_ai.bundle import DetectorSpec
    from detect_ai.tokenizer import Ids, Tokenizer

Scores = NDArray[np.float64]
MIN_LATIN_SHARE = 0.5


class Backend(Protocol):
    """Whatever runs the encoder."""

    def log_odds(self, batch: Batch) -> Scores:
        """Log-odds of AI for each row, shape (rows,)."""
        ...


@dataclass(frozen=True)
class Document:
    """A text as the detector reads it."""

    normalised: Normalised
    input_ids: Ids
    num_windows: int


class Detector:
    """A loaded bundle.

    Args:
        spec: calibration, windows and limits.
        tokenizer: of the encoder.
        backend: runs the encoder.
        batch_tokens: padded tokens in one forward pass.
    """

    def __init__(self, spec: DetectorSpec, tokenizer: Tokenizer, backend: Backend, batch_tokens: int = 8192) -> None:
        if spec.normaliser_version != NORMALISER_VERSION:
            raise BundleError(
                f"bundle made with normaliser version {spec.normaliser_version}, this is {NORMALISER_VERSION}: train it again"
            )
        self.spec = spec
        self.version = spec.version
        self.tokenizer = tokenizer
        self.backend = backend
        self.batch_tokens = batch_tokens
        self._content = spec.window - tokenizer.num_special
        self._human_scores = np.asarray(spec.calibration.human_scores)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", precision: str = "fp32", batch_tokens: int = 8192) -> Detector:
        """Load and check a bundle. Raises BundleError."""
        import torch

        from detect_ai.backends.torch import TorchBackend

        spec, model, tokenizer = bundle.load(folder)
        return cls(spec, tokenizer, TorchBackend(model, torch.device(device), precision), batch_tokens)

    def detect(
        self, texts: Sequence[str], target_fpr: float | None = None, return_spans: bool = False
    ) -> list[Verdict]:
        """Verdicts of texts, in their order.

        Args:
            texts: as sent; nothing is truncated.
            target_fpr: one of `targets`; the default of the bundle when None.
            return_spans: score each sentence too.

        Raises:
            InputError: the bundle has no threshold for this target.
        """
        target = self.check_target(target_fpr)
        documents = self.read(texts)
        scores = self.score([document.input_ids for document in documents])
        spans = [self.spans(document) if return_spans else None for document in documents]
        return [self.verdict(*each, target) for each in zip(documents, scores, spans, strict=True)]

    @property
    def targets(self) -> list[float]:
        """Target false positive rates that this bundle can hold."""
        return sorted(self.spec.calibration.thresholds)

    def check_target(self, target_fpr: float | None) -> float:
        """The target itself, or the bundle's default for None. Raises InputError for one without a threshold."""
        target = self.spec.default_target_fpr if target_fpr is None else target_fpr
        if target not in self.spec.calibration.thresholds:
            allowed = ", ".join(f"{t:g}" for t in self.targets)
            raise InputError(f"target_fpr={target:g}: this model has thresholds for {allowed}")
        return target

    def read(self, texts: Sequence[str]) -> list[Document]:
        """Normalise and tokenise."""
        normalised = [normalise(text) for text in texts]
        encoded = self.tokenizer.encode([n.text for n in normalised])
        return [Document(n, ids, len(self.windows([ids])[0])) for n, ids in zip(normalised, encoded, strict=True)]

    def windows(self, token_ids: Sequence[Ids]) -> tuple[list[Ids], NDArray[np.int64]]:
        """The windows of documents, and the position of the document that each belongs to."""
        return cut(token_ids, self._content, self.spec.stride)

    def score(self, token_ids: Sequence[Ids]) -> Scores:
        """Log-odds of documents given as token ids of normalised texts, shape (documents,)."""
        rows, owners = self.windows(token_ids)
        return document_scores(self.window_scores(rows), owners, len(token_ids))

    def window_scores(self, rows: Sequence[Ids]) -> Scores:
        """Log-odds of windows, in batches of like length, shape (windows,)."""
        scores = np.empty(len(rows))
        lengths = np.asarray([len(row) + self.tokenizer.num_special for row in rows])
        for positions in plan_scoring(lengths, self.batch_tokens):
            batch = [rows[i] for i in positions]
            scores[positions] = self.backend.log_odds(
                collate(batch, self.tokenizer.prefix, self.tokenizer.suffix, self.tokenizer.pad_id)
            )
        return scores

    def spans(self, document: Document) -> list[Span]:
        """Scores by sentence. Each is read with its neighbours: one sentence alone tells little."""
        found = sentences(document.normalised.text)
        if not found:
            return []
        scores = self.window_scores(self._sentence_rows(document, found))
        probabilities = probability(scores, self.spec.calibration.temperature)
        source = [document.normalised.to_source(start, end) for start, end in found]
        return [Span(start=s, end=e, probability=float(p)) for (s, e), p in zip(source, probabilities, strict=True)]

    def _sentence_rows(self, document: Document, found: list[tuple[int, int]]) -> list[Ids]:
        ids, offsets = self.tokenizer.encode_with_offsets(document.normalised.text)
        rows = []
        for i in range(len(found)):
            start, end = found[max(0, i - 1)][0], found[min(len(found) - 1, i + 1)][1]
            inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end)
            rows.append(ids[inside][: self._content])
        return rows

    def bounds(self, target_fpr: float) -> tuple[float, float]:
        """Scores below the first are `human`, from the second on `ai`, between them `uncertain`.

        `ai` needs both the conformal threshold and a probability of at least one half; so does `human` the opposite.
        """
        threshold = self.spec.calibration.thresholds[target_fpr].score
        return min(threshold, 0.0), max(threshold, 0.0)

    def verdict(self, document: Document, score: float, spans: list[Span] | None, target_fpr: float) -> Verdict:
        """What a score means at a target."""
        calibration = self.spec.calibration
        human_below, ai_from = self.bounds(target_fpr)
        reasons = self._reasons(document, score, human_below, ai_from)
        label = Label.UNCERTAIN if reasons else (Label.AI if score >= ai_from else Label.HUMAN)
        return Verdict(
            label=label,
            probability=float(probability(score, calibration.temperature)),
            prevalence=calibration.prevalence,
            target_fpr=target_fpr,
            threshold=float(probability(ai_from, calibration.temperature)),
            p_value=float(p_value(self._human_scores, score)),
            reasons=reasons,
            tampering=document.normalised.tampering,
            spans=spans,
            num_tokens=len(document.input_ids),
            num_windows=document.num_windows,
            model_version=self.version,
        )

    def _reasons(self, document: Document, score: float, human_below: float, ai_from: float) -> list[Reason]:
        reasons = []
        if len(document.input_ids) < self.spec.min_tokens:
            reasons.append(Reason.TOO_SHORT)
        if latin_share(document.normalised.text) < MIN_LATIN_SHARE:
            reasons.append(Reason.OTHER_SCRIPT)
        if human_below <= score < ai_from:
            reasons.append(Reason.BETWEEN_THRESHOLDS)
        return reasons
