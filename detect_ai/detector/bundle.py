"""A detector on disk: everything a replica needs and nothing else. No pickle; every byte is checked on loading.

A bundle is a folder of `detector.json`, `config.json`, `model.safetensors`, `tokenizer.json`, `registers.safetensors`
where registers are told apart and, once published, `metrics.json` and `MODEL_CARD.md`. One that was exported has the
weights in the form of its backend in place of `model.safetensors`. `detector.json` holds the sha256
of every other file and of itself; the version of a bundle is the beginning of that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detect_ai.calibration.calibration import Calibration
from detect_ai.core.errors import BundleError
from detect_ai.models.backends import BACKENDS, DEFAULT

if TYPE_CHECKING:
    from detect_ai.calibration.domain_classifier import Registers
    from detect_ai.models.tokenizer import Tokenizer

FORMAT = 2
SPEC_FILE, CARD_FILE = "detector.json", "MODEL_CARD.md"


@dataclass(frozen=True)
class DetectorSpec:
    """What turns the logits of an encoder into verdicts, and where it all came from.

    Attributes:
        window: tokens the encoder reads at once, special tokens included.
        stride: tokens between the starts of neighbouring windows.
        pad_id: token id of padding.
        min_tokens: shorter texts get no verdict.
        corpus: name, fingerprint, licences and language of the corpus it learnt from.
        provenance: run, configuration, library versions, git revision.
        registers: names of the registers that it tells apart.
        parent: version of the bundle that this one was exported from.
        backend: what runs the encoder, one of `backends.BACKENDS`.
        files: sha256 of every other file of the bundle.
    """

    base_model: str
    normaliser_version: int
    window: int
    stride: int
    pad_id: int
    calibration: Calibration
    default_target_fpr: float
    min_tokens: int
    corpus: dict[str, Any]
    provenance: dict[str, Any]
    registers: list[str] = field(default_factory=list)
    parent: str | None = None
    backend: str = DEFAULT
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """The one spelling of `detector.json`: its digest covers every other byte of it."""
        content = {**asdict(self), "calibration": self.calibration.to_dict()}
        if self.backend == DEFAULT:  # not said, so that bundles from before there were others keep their version
            del content["backend"]
        return _spelled({**content, "digest": hashlib.sha256(_spelled(content)).hexdigest()})

    def min_tokens_at(self, target_fpr: float) -> int:
        """Texts with fewer tokens get no verdict at a target: what was learnt, and never less than the floor."""
        return max(self.min_tokens, self.calibration.min_tokens.get(target_fpr, 0))

    @cached_property
    def version(self) -> str:
        """The name of the bundle with this content."""
        return str(json.loads(self.to_bytes())["digest"])[:16]


def seal(folder: Path, spec: DetectorSpec) -> DetectorSpec:
    """Write `detector.json` over the other files of a folder; afterwards nothing in it may change."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != SPEC_FILE}
    sealed = DetectorSpec(**{**_fields(spec), "files": files})
    (folder / SPEC_FILE).write_bytes(sealed.to_bytes())
    return sealed


def read_spec(folder: Path) -> DetectorSpec:
    """Read and check a bundle without loading its weights.

    Raises:
        BundleError: a file is missing, altered or one too many, or the format is another one.
    """
    path = folder / SPEC_FILE
    try:
        data = path.read_bytes()
        content = json.loads(data)
        format_found = content["format"]
    except FileNotFoundError:
        raise BundleError(f"bundle {folder}: no {SPEC_FILE}, so it is no finished bundle") from None
    except OSError as error:
        raise BundleError(f"bundle {folder}: {SPEC_FILE} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"bundle {folder}: {SPEC_FILE} is damaged: {error}") from error
    if format_found != FORMAT:
        raise BundleError(f"bundle {folder}: format {format_found}, this version reads {FORMAT}")
    spec = _parse(folder, content)
    if spec.to_bytes() != data:
        raise BundleError(f"bundle {folder}: {SPEC_FILE} was altered: its digest does not match its content")
    if spec.backend not in BACKENDS:
        raise BundleError(
            f"bundle {folder}: backend {spec.backend!r}, this version knows {', '.join(BACKENDS)}: update detect_ai, "
            f"or take the bundle that it was exported from, {spec.parent}"
        )
    _check_files(folder, spec.files)
    return spec


def load(folder: Path) -> tuple[DetectorSpec, Tokenizer]:
    """Specification and tokenizer of a bundle, everything checked. `backends.load` gives what runs its encoder."""
    from detect_ai.models.tokenizer import Tokenizer

    spec = read_spec(folder)
    return spec, Tokenizer.load(folder, spec.pad_id)


def load_registers(folder: Path, spec: DetectorSpec) -> Registers | None:
    """What tells the registers of a bundle apart; None where it has none. Raises BundleError."""
    from detect_ai.calibration.domain_classifier import Registers

    return Registers.load(folder, spec.registers) if spec.registers else None


def _parse(folder: Path, content: dict[str, Any]) -> DetectorSpec:
    given = {name: value for name, value in content.items() if name != "digest"}
    try:
        return DetectorSpec(**{**given, "calibration": Calibration.from_dict(given["calibration"])})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BundleError(f"bundle {folder}: {SPEC_FILE} has other fields than expected: {error}") from error


def _check_files(folder: Path, expected: Mapping[str, str]) -> None:
    found = {path.name for path in folder.iterdir() if path.name != SPEC_FILE}
    if missing := sorted(set(expected) - found):
        raise BundleError(f"bundle {folder}: {', '.join(missing)} missing: copy the whole folder again")
    if extra := sorted(found - set(expected)):
        raise BundleError(f"bundle {folder}: {', '.join(extra)} does not belong to it: remove it")
    for name, sha256 in expected.items():
        if (actual := _sha256(folder / name)) != sha256:
            raise BundleError(f"bundle {folder}: {name} has sha256 {actual}, expected {sha256}: it was altered")


def _fields(spec: DetectorSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _spelled(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
