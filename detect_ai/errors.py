"""What a user did that cannot be done: one clear line each, with the offending value and the way out."""

import re


class DetectAIError(Exception):
    """Base of every error that detect_ai raises on purpose."""


class InputError(DetectAIError, ValueError):
    """Something given by the user is wrong: a config, a file, a text."""


class ConfigError(InputError):
    """A configuration has an unknown key, a wrong type or an impossible value."""


class CorpusError(InputError):
    """A source or a prepared corpus cannot be used."""


class CalibrationError(InputError):
    """A calibration set cannot carry what is asked of it."""


class BundleError(InputError):
    """A bundle is incomplete, altered or made for something else."""


class RegistryError(InputError):
    """The registry has no such version, or no champion yet."""


class GateError(InputError):
    """A candidate did not pass the gate and was not published."""


class ResourceError(DetectAIError):
    """The cluster or the machine cannot give what the run needs (CPUs, GPUs, a port)."""


class TrainingError(DetectAIError):
    """A training run cannot go on: its loss is not finite."""


def without_row(message: str) -> str:
    """What a parser of rows said, without the row or the value it said it of: no text of a document is repeated."""
    return re.sub(r"(columns, got \d+|invalid value)\b.*", r"\1", message, flags=re.DOTALL)
