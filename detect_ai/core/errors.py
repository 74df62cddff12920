"""User-facing errors. Each message gives the offending value and a fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx
    from pydantic import ValidationError

# Attributes in which Ray Core, Ray Train and Python store the cause of an error.
_WRAPPED = ("cause", "_base_exc", "controller_failure", "__cause__", "__context__")


class DetectAIError(Exception):
    """Base of every error that detect_ai raises on purpose."""


class InputError(DetectAIError, ValueError):
    """Invalid user input: a configuration, a file, a text."""


class ConfigError(InputError):
    """A configuration has an unknown key, a wrong type or an impossible value."""


class CorpusError(InputError):
    """A source or a prepared corpus is unusable."""


class CalibrationError(InputError):
    """A calibration split is too small or unsuitable for the requested targets."""


class BundleError(InputError):
    """A bundle is incomplete, altered or incompatible."""


class RegistryError(InputError):
    """The registry has no such version, or no champion yet."""


class MissingExtraError(InputError, ImportError):
    """A command or class needs an extra of the package that is not installed."""


class ConflictError(DetectAIError):
    """Another process has changed shared state (champion, API keys, desired state of the service) first."""


class GateError(DetectAIError):
    """A candidate did not pass the gate and was not published."""


class ResourceError(DetectAIError):
    """The cluster or machine lacks a resource: CPUs, GPUs, a port."""


class StorageError(DetectAIError, OSError):
    """The object store did not respond within the retry limit, or rejected an operation."""


class TrainingError(DetectAIError):
    """A training run cannot continue, for example because the loss is not finite."""


class ServiceError(DetectAIError):
    """A request to the service failed.

    Attributes:
        detail: the service's explanation, or the client's; never contains submitted text, the key or a password.
        status: HTTP status code; None without a response.
        request_id: identifies the request in the service's log; None if unknown.
        retry_after: seconds to wait, from the header `Retry-After`; None without it.
    """

    def __init__(self, detail: str, response: httpx.Response | None = None, request_id: str | None = None) -> None:
        headers = {} if response is None else response.headers
        wait = headers.get("Retry-After", "")
        self.detail = detail
        self.status = None if response is None else response.status_code
        self.request_id = request_id or headers.get("X-Request-ID")
        self.retry_after = float(wait) if wait.isascii() and wait.isdigit() else None
        super().__init__(f"{detail} (request {self.request_id})" if self.request_id else detail)


class RejectedError(ServiceError, InputError):
    """The service rejected the request (4xx): wrong key, option or input, or a text that is too long (413)."""


class UnavailableError(ServiceError):
    """No response, an overloaded service or an exceeded rate limit (408, 429, 502, 503, 504), even after retries."""


class ResponseError(ServiceError):
    """The response does not match the schemas of this version."""


def first_problem(error: ValidationError) -> str:
    """The first validation error as `key: problem`, without the value."""
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def unwrap_ray_error(error: BaseException) -> BaseException:
    """The DetectAIError inside Ray's wrappers around a worker's error, or the error itself if there is none."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop(0)
        # Ray wraps the cause in a class derived from both types, whose message is a traceback.
        if isinstance(current, DetectAIError) and not hasattr(current, "cause"):
            return current
        seen.add(id(current))
        inner = [getattr(current, name, None) for name in _WRAPPED]
        inner += list((getattr(current, "worker_failures", None) or {}).values())
        queue += [e for e in inner if isinstance(e, BaseException) and id(e) not in seen]
    return error
