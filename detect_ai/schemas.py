"""The words of an answer: verdicts, and the requests and replies of the HTTP API. Shared by library and service."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Label(StrEnum):
    """What the detector says of a text."""

    HUMAN = "human"
    AI = "ai"
    UNCERTAIN = "uncertain"


class Reason(StrEnum):
    """Why a verdict is `uncertain`."""

    TOO_SHORT = "too_short"
    OTHER_SCRIPT = "other_script"
    OTHER_LANGUAGE = "other_language"
    MOSTLY_CODE = "mostly_code"
    MOSTLY_TABLES = "mostly_tables"
    MOSTLY_QUOTATIONS = "mostly_quotations"
    BETWEEN_THRESHOLDS = "between_thresholds"


class Span(BaseModel):
    """One sentence and its score."""

    start: int = Field(description="Offset of the first character in the text as sent (Unicode code points)")
    end: int = Field(description="Offset after the last character")
    probability: float = Field(description="Calibrated probability that the sentence, read with its neighbours, is AI")
    effect: float | None = Field(
        default=None, description="How far the log-odds of the whole text fall without the sentence, when asked for"
    )


class Verdict(BaseModel):
    """What the detector says of one text, and on what ground."""

    label: Label
    probability: float = Field(description="Calibrated probability of AI at the stated prevalence")
    prevalence: float = Field(description="Share of AI texts that `probability` assumes")
    target_fpr: float = Field(description="Share of human texts that may be called `ai`")
    threshold: float = Field(description="Probability from which a text is called `ai` at this target")
    p_value: float = Field(description="Conformal p-value: how many human texts score at least as high")
    compared_with: str = Field(
        default="",
        description="Register whose human texts it was compared with; empty where registers are not told apart, and "
        "for a text of none of them, which meets the strictest thresholds of its length",
    )
    num_compared: int = Field(default=0, description="Human calibration texts behind `p_value` and `threshold`")
    fpr_upper_bound: float = Field(
        default=1.0, description="95% upper bound of the false positive rate of `threshold`, given those texts"
    )
    reasons: list[Reason] = Field(description="Why the label is `uncertain`; empty otherwise")
    tampering: dict[str, int] = Field(description="Characters undone before reading, such as `invisible`, `homoglyph`")
    spans: list[Span] | None = Field(default=None, description="Scores by sentence, when asked for")
    ai_fraction: float | None = Field(
        default=None, description="Share of the text in sentences more likely AI than not, when spans are asked for"
    )
    num_tokens: int = Field(description="Length of the normalised text in tokens; all of them were read")
    num_windows: int = Field(description="Overlapping windows the text was read in")
    model_version: str


class Problem(BaseModel):
    """An error in the form of RFC 9457 (`application/problem+json`)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What was expected, what was found, and how to mend it; never a part of a text")
    request_id: str


class DetectRequest(BaseModel):
    """One text or many."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"text": "The council met on Tuesday to vote on the bridge."}]},
    )

    text: str | None = Field(default=None, description="One text")
    texts: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, description="Several texts, at most `max_texts` of /v1/model; verdicts come in their order"
    )
    target_fpr: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="One of the targets that /v1/model lists; the model's default when left out"
    )
    return_spans: bool = Field(default=False, description="Score each sentence too")
    explain: bool = Field(
        default=False,
        description="Say of each sentence what becomes of the text's score without it (`effect` of a span). Spans come "
        "with it. The text is read once more for every sentence",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> DetectRequest:
        if (self.text is None) == (self.texts is None):
            raise ValueError("expected exactly one of `text` (a string) and `texts` (a list of strings)")
        if self.texts is not None and not self.texts:
            raise ValueError("`texts` is empty: expected at least one text")
        if any(not text.strip() for text in self.all_texts()):
            raise ValueError("a text is empty: expected at least one character that is not white space")
        return self

    def all_texts(self) -> list[str]:
        """The texts in their order."""
        return [self.text] if self.text is not None else list(self.texts or [])


class DetectResponse(BaseModel):
    """Verdicts in the order of the texts."""

    request_id: str
    model_version: str
    verdicts: list[Verdict]
    seconds: float = Field(description="Time spent on this request in the replica")


class StreamOptions(BaseModel):
    """What `/v1/detect/stream` takes as query parameters."""

    model_config = ConfigDict(extra="forbid")

    target_fpr: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="One of the targets that /v1/model lists; the model's default when left out"
    )
    return_spans: bool = Field(default=False, description="Score each sentence too")
    explain: bool = Field(default=False, description="Say of each sentence what becomes of the text's score without it")


class FileOptions(StreamOptions):
    """What `/v1/detect/file` takes as form fields beside `files`."""

    return_text: bool = Field(default=False, description="Return the text found in each file, which spans point into")


class FileVerdict(BaseModel):
    """What became of one file: a verdict, or a problem with this file alone."""

    name: str = Field(description="The file's name as sent, without folders; empty where none was sent")
    num_chars: int = Field(description="Characters of the text found in the file; 0 where it could not be read")
    text: str | None = Field(
        default=None, description="The text found in the file, when asked for; the offsets of `spans` point into it"
    )
    verdict: Verdict | None = Field(default=None, description="Null where there is a `problem`")
    problem: Problem | None = Field(default=None, description="Why there is no verdict; null where there is one")


class FilesResponse(BaseModel):
    """Files in the order in which they were sent."""

    request_id: str
    model_version: str
    files: list[FileVerdict]
    seconds: float = Field(description="Time spent on this request in the replica")


class StreamText(BaseModel):
    """One line of a request to `/v1/detect/stream`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(description="One text")
    id: Annotated[str, Field(max_length=256)] | int | None = Field(
        default=None, description="Comes back with the verdict"
    )

    @model_validator(mode="after")
    def _not_empty(self) -> StreamText:
        if not self.text.strip():
            raise ValueError("`text` is empty: expected at least one character that is not white space")
        return self


class StreamLine(BaseModel):
    """One line of an answer of `/v1/detect/stream`; exactly one of `verdict` and `problem` is there."""

    line: int = Field(description="Number of the line it answers, from 1; empty lines count and get no answer")
    id: str | int | None = Field(default=None, description="As sent; null where there was none or it cannot be read")
    verdict: Verdict | None = Field(default=None, description="Left out where there is a `problem`")
    problem: Problem | None = Field(default=None, description="Left out where there is a `verdict`")


class PredictParameters(BaseModel):
    """Parameters of Hugging Face's text classification."""

    model_config = ConfigDict(extra="forbid", strict=True)

    top_k: Annotated[int, Field(ge=1)] | None = Field(default=None, description="How many labels; both when left out")
    function_to_apply: Literal["sigmoid", "softmax"] | None = Field(
        default=None,
        description="With two labels both give the calibrated probability, which is what there is without it, too",
    )


class PredictRequest(BaseModel):
    """A request in the form of Hugging Face's text classification."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: str | Annotated[list[str], Field(fail_fast=True)] = Field(description="One text or several")
    parameters: PredictParameters | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> PredictRequest:
        if not self.inputs:
            raise ValueError("`inputs` is empty: expected at least one text")
        if any(not text.strip() for text in self.all_texts()):
            raise ValueError("a text is empty: expected at least one character that is not white space")
        return self

    def all_texts(self) -> list[str]:
        """The texts in their order."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class LabelScore(BaseModel):
    """A label and its probability, in the form of Hugging Face's text classification."""

    label: Literal["ai", "human"]
    score: float = Field(description="Calibrated probability at the prevalence that `/v1/model` states")


class CategoryInfo(BaseModel):
    """What holds at one target for texts of one register and of like length."""

    compared_with: str = Field(description="Name of the register; empty where registers are not told apart")
    min_tokens: int = Field(description="Tokens of its shortest texts")
    max_tokens: int | None = Field(description="All its texts are shorter than this")
    num_human: int = Field(description="Human texts that its threshold is made from")
    probability: float = Field(description="Probability from which a text is called `ai`")
    expected_fpr: float = Field(description="Expected false positive rate on texts exchangeable with those")
    fpr_lower_bound: float = Field(description="95% lower bound of the false positive rate, given those texts")
    fpr_upper_bound: float = Field(description="95% upper bound of the same")


class ThresholdInfo(BaseModel):
    """What holds at one target; where texts are judged by categories, of the one with the highest figure."""

    target_fpr: float
    probability: float = Field(description="Probability from which a text is called `ai`")
    expected_fpr: float = Field(
        description="Expected false positive rate on texts exchangeable with the calibration set"
    )
    fpr_lower_bound: float = Field(
        default=0.0, description="95% lower bound of the false positive rate, given this calibration set"
    )
    fpr_upper_bound: float = Field(description="95% upper bound of the same: 90% of calibration sets lie between both")
    min_tokens: int = Field(description="Shorter texts get no verdict at this target")
    categories: list[CategoryInfo] = Field(
        default=[], description="What texts are compared with, where that is not all human texts alike"
    )


class ModelInfo(BaseModel):
    """The model that answers, and its limits."""

    model_version: str
    base_model: str
    corpus: dict[str, Any]
    language: str
    prevalence: float
    default_target_fpr: float
    thresholds: list[ThresholdInfo]
    num_human: int = Field(description="Human texts of the calibration set, which p-values compare with")
    min_tokens: int
    window: int
    normaliser_version: int
    limits: dict[str, int] = Field(description="Of a request: texts, characters, tokens, bytes, files, lines")
    guarantee: str
