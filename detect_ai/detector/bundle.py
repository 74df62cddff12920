"""Bundle: a complete detector on disk, without pickle, verified by sha256 on loading.

A bundle is a folder with `detector.json`, `config.json`, `model.safetensors`, the tokenizer's files,
`style.safetensors` if thresholds depend on style and, once published, `metrics.json` and `MODEL_CARD.md`.
`detector.json` contains the sha256 of every other file and of its own content; the version is a prefix of the latter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from detect_ai.calibration.calibration import Calibration
from detect_ai.calibration.leave_one_out import detection_rate
from detect_ai.core.config import CalibrationConfig
from detect_ai.core.errors import BundleError, ConfigError, first_problem
from detect_ai.models.backends import BACKENDS, CPU_ONLY, DEFAULT
from detect_ai.text.normalize import NORMALISER_VERSION

FORMAT = 6
# For each older format that still loads, a function that converts the content of `detector.json` to the next format.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    4: lambda content: content,  # 5 added `DomainEffects.reach`; its default gives the decisions of format 4
    5: lambda content: content,  # 6 added `Calibration.population`, none by default
}
SPEC_FILE, CARD_FILE, METRICS_FILE = "detector.json", "MODEL_CARD.md", "metrics.json"


@dataclass(frozen=True)
class DetectorSpec:
    """Specification of a detector: from logits to verdicts, with provenance."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    base_model: str
    normaliser_version: int
    window: int  # tokens per window, including special tokens
    stride: int  # tokens between the starts of consecutive windows
    pad_id: int  # token id of padding
    precision: Literal["fp32", "bf16"]  # of the encoder at calibration; every code path uses this precision
    calibration: Calibration
    default_target_fpr: float
    min_tokens: int  # shorter texts are `uncertain`
    corpus: dict[str, Any]  # name, fingerprint, licences and language of the training corpus
    provenance: dict[str, Any]  # run, configuration, library versions, git revision
    parent: str | None = None  # version of the bundle that this one was exported from
    backend: str = DEFAULT  # runtime of the encoder, one of `backends.BACKENDS`
    files: dict[str, str] = field(default_factory=dict)  # sha256 of every other file of the bundle
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """The canonical content of `detector.json`, whose digest covers all of its other content."""
        content = TypeAdapter(DetectorSpec).dump_python(self, mode="json")
        return canonical_json({**content, "digest": hashlib.sha256(canonical_json(content)).hexdigest()})

    def min_tokens_at(self, target_fpr: float) -> int:
        """Texts with fewer tokens are `uncertain` at a target: the fitted minimum length, at least `min_tokens`."""
        return max(self.min_tokens, self.calibration.min_tokens[target_fpr])

    @property
    def calibration_config(self) -> CalibrationConfig:
        """The settings of the calibration."""
        return CalibrationConfig(**self.provenance["config"]["calibration"])

    @cached_property
    def detection_rates(self) -> dict[float, float | None]:
        """Detection rate at calibration by target, see `leave_one_out.detection_rate`."""
        calibration, config = self.calibration, self.calibration_config
        return {
            target: detection_rate(calibration, config, target, self.min_tokens_at(target))
            for target in calibration.thresholds
        }

    @cached_property
    def version(self) -> str:
        """The version of the bundle with this content; for a bundle read from disk, its published version."""
        return str(json.loads(self.to_bytes())["digest"])[:16]


def write_spec(folder: Path, spec: DetectorSpec) -> DetectorSpec:
    """Write `detector.json` with the hashes of the other files of a folder. The folder must not change afterwards."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != SPEC_FILE}
    written = replace(spec, files=files)
    (folder / SPEC_FILE).write_bytes(written.to_bytes())
    return written


def read_spec(folder: Path) -> DetectorSpec:
    """Read and verify a bundle without loading its weights. An older format is converted and keeps its version.

    Raises BundleError if a file is missing, altered or unexpected, or the format, normaliser or backend is unknown.
    """
    content, digest = _read_content(folder)
    try:
        while (found := content["format"]) != FORMAT:
            content = {**UPGRADES[found](content), "format": found + 1}
        spec = TypeAdapter(DetectorSpec).validate_python(content)
    except ValidationError as error:
        problem = first_problem(error)
        raise BundleError(f"bundle {folder}: {SPEC_FILE} has unexpected fields: {problem}") from error
    vars(spec)["version"] = digest[:16]  # not the digest of the converted content; `replace` computes a new one
    if spec.normaliser_version != NORMALISER_VERSION:
        raise BundleError(
            f"bundle {folder}: made with normaliser version {spec.normaliser_version}, this is {NORMALISER_VERSION}: "
            f"train it again, or use the release of detect_ai that made it"
        )
    if spec.backend not in BACKENDS:
        raise BundleError(
            f"bundle {folder}: backend {spec.backend!r}, this version has {', '.join(BACKENDS)}: use the "
            f"bundle that it was exported from, {spec.parent}, or a release of detect_ai that has this backend"
        )
    _check_files(folder, spec.files)
    return spec


def _read_content(folder: Path) -> tuple[dict[str, Any], str]:
    """The content of `detector.json`, verified against its digest, and the digest."""
    try:
        data = (folder / SPEC_FILE).read_bytes()
        content = json.loads(data)
        format_found = content["format"]
        content.pop("digest", None)
        digest = hashlib.sha256(canonical_json(content)).hexdigest()
        is_intact = data == canonical_json({**content, "digest": digest})
    except FileNotFoundError:
        raise BundleError(f"bundle {folder}: no {SPEC_FILE}, so it is not a finished bundle") from None
    except OSError as error:
        raise BundleError(f"bundle {folder}: {SPEC_FILE} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"bundle {folder}: {SPEC_FILE} is damaged: {error}") from error
    if format_found not in (FORMAT, *UPGRADES):
        raise BundleError(
            f"bundle {folder}: expected format {FORMAT}, found {format_found}: calibrate its checkpoint again "
            f"(python jobs/calibrate.py), or use the release of detect_ai that made it"
        )
    if not is_intact:
        raise BundleError(f"bundle {folder}: {SPEC_FILE} was altered: its digest does not match its content")
    return content, digest


def require_device(spec: DetectorSpec, key: str, use_gpu: bool) -> None:
    """Raise ConfigError if the setting `key`, such as `serve.use_gpu`, is true and the backend is for CPUs only."""
    if use_gpu and spec.backend in CPU_ONLY:
        raise ConfigError(
            f"{key}=true: bundle {spec.version} has the backend {spec.backend}, for CPUs only: set {key}=false, or use "
            f"its parent, {spec.parent}"
        )


def canonical_json(content: Mapping[str, Any]) -> bytes:
    """The canonical JSON of a value: sorted keys, indented, UTF-8."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _check_files(folder: Path, expected: Mapping[str, str]) -> None:
    present = {path.name for path in folder.iterdir() if path.name != SPEC_FILE}
    if missing := sorted(set(expected) - present):
        raise BundleError(f"bundle {folder}: {', '.join(missing)} missing: copy the whole folder again")
    if extra := sorted(present - set(expected)):
        raise BundleError(f"bundle {folder}: {', '.join(extra)} does not belong to it: remove it")
    for name, sha256 in expected.items():
        if (actual := _sha256(folder / name)) != sha256:
            raise BundleError(f"bundle {folder}: {name} has sha256 {actual}, expected {sha256}: it was altered")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
