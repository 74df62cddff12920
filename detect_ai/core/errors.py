"""What a user did that cannot be done: one clear line each, with the offending value and the way out."""

import re

# Where Ray Core, Ray Train's workers, its controller and Python itself keep the error inside an error.
_WRAPPED = ("cause", "_base_exc", "controller_failure", "__cause__", "__context__")


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


class ConflictError(DetectAIError):
    """Somebody else changed shared state (the champion, API keys, the desired state of the service) first."""


class GateError(DetectAIError):
    """A candidate did not pass the gate and was not published."""


class ResourceError(DetectAIError):
    """The cluster or the machine cannot give what the run needs (CPUs, GPUs, a port)."""


class TrainingError(DetectAIError):
    """A training run cannot go on: its loss is not finite."""


def without_row(message: str) -> str:
    """What a parser of rows said, without the row or the value it said it of: no text of a document is repeated."""
    return re.sub(r"(columns, got \d+|invalid value)\b.*", r"\1", message, flags=re.DOTALL)


def ours(error: BaseException) -> BaseException:
    """The DetectAIError inside the wrappers that Ray puts around what a worker raised, or the error itself."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop(0)
        # Ray makes an error of both types around its cause: what it says is a traceback.
        if isinstance(current, DetectAIError) and not hasattr(current, "cause"):
            return current
        seen.add(id(current))
        inner = [getattr(current, name, None) for name in _WRAPPED]
        inner += list((getattr(current, "worker_failures", None) or {}).values())
        queue += [e for e in inner if isinstance(e, BaseException) and id(e) not in seen]
    return error
