"""Schemas of verdicts, and of the requests and responses of the HTTP API."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from detect_ai.text.characters import is_blank

_EMPTY = "a text is empty: expected at least one visible character"
_EXAMPLE = "The council met on Tuesday to vote on the bridge."


class Label(StrEnum):
    """Label of a text."""

    HUMAN = "human"
    AI = "ai"
    UNCERTAIN = "uncertain"


class Reason(StrEnum):
    """Why a verdict is `uncertain`."""

    TOO_SHORT = "too_short"
    OTHER_SCRIPT = "other_script"
    OTHER_LANGUAGE = "other_language"
    NOT_LANGUAGE = "not_language"
    MOSTLY_CODE = "mostly_code"
    MOSTLY_TABLES = "mostly_tables"
    MOSTLY_QUOTATIONS = "mostly_quotations"
    NOT_PROSE = "not_prose"
    HIDDEN_TEXT = "hidden_text"
    BETWEEN_THRESHOLDS = "between_thresholds"
    UNLIKE_CALIBRATION = "unlike_calibration"
    ABSTAINING = "abstaining"


class Reference(StrEnum):
    """Kind of texts for which error rates hold."""

    NEW_DOMAIN = "new_domain"  # any kind of writing, even if calibration never saw it
    CALIBRATION_TEXTS = "calibration_texts"  # only texts like those of calibration
    POPULATION = "population"  # only texts of the writers that the detector was recalibrated for


class Span(BaseModel):
    """A sentence and its score."""

    start: int = Field(description="Offset of the first character in the submitted text, in code points")
    end: int = Field(description="Offset after the last character")
    probability: float = Field(description="Calibrated probability of AI of the sentence with its neighbours")
    effect: float | None = Field(default=None, description="Fall of the text's log-odds without it, if `explain`")


class Verdict(BaseModel):
    """Prediction for one text, with its evidence."""

    label: Label
    probability: float = Field(description="Calibrated probability of AI at the stated prevalence")
    prevalence: float = Field(description="Fraction of AI texts that probabilities and `ppv` assume")
    ppv: float | None = Field(
        default=None,
        description="Fraction of AI texts among those labelled `ai` at this target and prevalence, from "
        "`fpr_upper_bound` and the `detection_rate` of /v1/model; null where that is not known",
    )
    target_fpr: float = Field(description="Accepted false positive rate")
    threshold: float = Field(description="Texts with at least this probability are labelled `ai`; both at `prevalence`")
    p_value: float = Field(description="Smallest false positive rate whose threshold the score reaches; 1 if none")
    compared_with: Reference = Field(description="What `p_value`, `threshold` and `fpr_upper_bound` hold for")
    nearest_domain: str | None = Field(
        default=None,
        description="Most similar kind of writing in calibration, or the `population`; null if not compared",
    )
    num_compared: int = Field(description="Human calibration texts behind them")
    fpr_upper_bound: float | None = Field(
        description="Upper bound of the false positive rate of `threshold`; null for a text that the calibration says "
        "nothing about: `reasons` other than `between_thresholds`"
    )
    confidence: float | None = Field(description="Confidence of `fpr_upper_bound`; null without one")
    reasons: list[Reason] = Field(description="Why the label is `uncertain`; empty otherwise")
    tampering: dict[str, int] = Field(description="Characters removed or replaced before reading, by kind")
    content: dict[str, float] = Field(description="Fractions of the visible characters that are `prose`, `code` …")
    spans: list[Span] | None = Field(default=None, description="Scores by sentence, if requested")
    ai_fraction: float | None = Field(default=None, description="Fraction of the text in sentences more likely AI")
    num_tokens: int = Field(description="Length of the normalised text in tokens; all are read")
    num_windows: int = Field(description="Number of overlapping windows")
    model_version: str


class Problem(BaseModel):
    """An error as `application/problem+json` (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What was expected, what was found and the fix; never contains submitted text")
    request_id: str


class RequestOptions(BaseModel):
    """Options of a request for verdicts."""

    target_fpr: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="A target of /v1/model; default: the model's"
    )
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Fraction of AI texts that probabilities assume; labels do not depend on it; default: the model's",
    )
    return_spans: bool = Field(default=False, description="Return the score of each sentence")
    explain: bool = Field(default=False, description="Return spans with their `effect`; one pass per sentence")


class DetectRequest(RequestOptions):
    """One text, or several."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"text": _EXAMPLE}]})

    text: str | None = Field(default=None, description="One text")
    texts: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        default=None, description="Several texts, at most `max_texts` of /v1/model"
    )

    @model_validator(mode="after")
    def _check(self) -> DetectRequest:
        if (self.text is None) == (self.texts is None):
            raise ValueError("expected exactly one of `text` (a string) and `texts` (a list of strings)")
        if self.texts is not None and not self.texts:
            raise ValueError("`texts` is empty: expected at least one text")
        if any(map(is_blank, self.all_texts())):
            raise ValueError(_EMPTY)
        return self

    def all_texts(self) -> list[str]:
        """The texts in order."""
        return [self.text] if self.text is not None else list(self.texts or [])


class FeedbackRequest(BaseModel):
    """Who wrote a text of an earlier request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    request_id: str = Field(pattern=r"^[!-~]{1,128}$", description="That of the response with the verdict")
    index: int = Field(default=0, ge=0, le=2**31 - 1, description="Position of the text in the request, from 0")
    label: Literal["human", "ai"] = Field(description="Who wrote it")


class FeedbackResponse(BaseModel):
    """A label was recorded."""

    request_id: str
    audited: bool = Field(
        description="Whether the label counts in the audit: the text was drawn for it, and the key has the scope "
        "`audit`; else it is kept as an appeal"
    )
    conflict: bool = Field(description="Whether another key, of the audit or of an appeal too, disagrees")


class DetectResponse(BaseModel):
    """Verdicts in the order of the texts."""

    request_id: str
    model_version: str
    verdicts: list[Verdict]
    seconds: float = Field(description="Processing time of the request in the replica")


class FileOptions(RequestOptions):
    """Form fields of `/v1/detect/file` in addition to `files`."""

    model_config = ConfigDict(extra="forbid")

    return_text: bool = Field(default=False, description="Return the extracted text")


class FileVerdict(BaseModel):
    """Verdict of one file, or the problem with it."""

    name: str = Field(description="File name without directories; empty if none was sent")
    num_chars: int = Field(description="Characters of the extracted text; 0 if it could not be extracted")
    text: str | None = Field(default=None, description="Extracted text, if requested; `spans` refer to it")
    verdict: Verdict | None = Field(default=None, description="Null if there is a `problem`")
    problem: Problem | None = Field(default=None, description="Why there is no verdict; null if there is one")


class FilesResponse(BaseModel):
    """Files in the order of the request."""

    request_id: str
    model_version: str
    files: list[FileVerdict]
    seconds: float = Field(description="Processing time of the request in the replica")


class PredictParameters(BaseModel):
    """Parameters of a Hugging Face text classification request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    top_k: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Number of labels; default: both")
    return_all_scores: bool | None = Field(default=None, description="Older form of `top_k`: false returns one label")
    function_to_apply: Literal["sigmoid", "softmax"] | None = Field(
        default=None, description="Accepted; scores are always probabilities"
    )
    truncation: bool | str | None = Field(default=None, description="Accepted; the whole text is read in any case")


class PredictRequest(BaseModel):
    """A Hugging Face text classification request."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"inputs": _EXAMPLE, "parameters": {"top_k": 1}}]},
    )

    inputs: str | Annotated[list[str], Field(fail_fast=True)] = Field(description="One text or several")
    parameters: PredictParameters = PredictParameters()
    options: dict[str, Any] | None = Field(default=None, description="Ignored, such as `wait_for_model`")

    @model_validator(mode="after")
    def _not_empty(self) -> PredictRequest:
        if not self.inputs:
            raise ValueError("`inputs` is empty: expected at least one text")
        if any(map(is_blank, self.all_texts())):
            raise ValueError(_EMPTY)
        return self

    def all_texts(self) -> list[str]:
        """The texts in order."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class LabelScore(BaseModel):
    """A label and its probability, as in Hugging Face text classification."""

    label: Literal["ai", "human"]
    score: float = Field(description="Calibrated probability at the prevalence of `/v1/model`")


class ThresholdInfo(BaseModel):
    """Threshold and error rates at one target."""

    target_fpr: float
    probability: float = Field(
        description="Texts of one window with at least this probability, at the model's prevalence, are labelled `ai`; "
        "of texts unlike those of calibration, if the threshold depends on style"
    )
    fpr_upper_bound: float = Field(description="Upper bound of the false positive rate on texts of `compared_with`")
    confidence: float = Field(description="Confidence of `fpr_upper_bound`")
    detection_rate: float | None = Field(
        default=None,
        description="Fraction of AI texts labelled `ai` at calibration: the mean over domains that the threshold was "
        "set without; null where too few AI texts are known",
    )
    min_tokens: int = Field(description="Shorter texts are `uncertain` at this target")


class ModelInfo(BaseModel):
    """The served model and the limits of a request."""

    model_version: str
    base_model: str
    corpus: dict[str, Any]
    language: str
    prevalence: float
    default_target_fpr: float
    thresholds: list[ThresholdInfo]
    compared_with: Reference = Field(description="Kind of texts for which the error rates hold")
    population: str | None = Field(default=None, description="Whose texts, if `compared_with` is `population`")
    num_human: int = Field(description="Human texts of the calibration set")
    num_domains: int = Field(description="Kinds of writing in the calibration set")
    min_tokens: int
    window: int
    normaliser_version: int
    limits: dict[str, int] = Field(description="Limits of a request: texts, characters, tokens, bytes, files")
    guarantee: str
