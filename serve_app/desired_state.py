"""Desired state of the service: version and settings, recorded so that concurrent deployments cannot undo each other.

A deployment appends a `starting` record, and a `live` one with the same content when its version answers. Both writes
are compare-and-swap: a deployment that is no longer the latest fails instead of overwriting its successor.
"""

from __future__ import annotations

from typing import Any, Literal, Self, TypedDict

from pydantic import BaseModel, ConfigDict, ValidationError

from detect_ai.core.config import Config, MonitoringConfig, ServeConfig
from detect_ai.core.errors import ConfigError, ConflictError, InputError, first_problem
from detect_ai.core.pointer import Pointer, Record
from detect_ai.core.storage import Storage

KEY = "serve/desired"


class Sections(TypedDict):
    """The sections of the configuration that a service depends on."""

    serve: ServeConfig
    monitoring: MonitoringConfig


class State(BaseModel):
    """Desired state of the service: a version and its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["starting", "live"]  # live: its version has answered
    version: str  # of the bundle
    settings: dict[str, Any]  # the section `serve` of the configuration
    monitoring: dict[str, Any] = {}  # the section `monitoring`
    keys: str | None  # hashed API keys of the deployer's environment, as JSON; None: no keys are required
    replicas: str = ""  # states with the same value differ only in settings that need no restart

    @classmethod
    def of(
        cls,
        config: Config,
        version: str,
        keys: str | None,
        replicas: str = "",
        status: Literal["starting", "live"] = "starting",
    ) -> Self:
        """The state that serves a version with the settings of a configuration."""
        settings = config.serve.model_dump() | {"version": version}
        monitoring = config.monitoring.model_dump()
        return cls(
            status=status, version=version, settings=settings, monitoring=monitoring, keys=keys, replicas=replicas
        )

    @property
    def sections(self) -> Sections:
        """The sections of the configuration. Raises ConfigError when another release wrote them."""
        try:
            return Sections(serve=ServeConfig(**self.settings), monitoring=MonitoringConfig(**self.monitoring))
        except ValidationError as error:
            raise ConfigError(f"{KEY}: the settings of {self.version} are of another release: deploy again") from error


class DesiredState:
    """The states of one service; the last one is in force. A private Ray instance loses its states when it ends."""

    def __init__(self, storage: Storage) -> None:
        self._pointer = Pointer(storage, KEY)

    def read(self) -> tuple[int, State | None]:
        """Number and content of the current record; (0, None) before the first."""
        record = self._pointer.read()
        return (record.number, _state(record)) if record else (0, None)

    def last_live(self) -> State | None:
        """The last state whose version has answered."""
        states = map(_state, reversed(self._pointer.history()))
        return next((state for state in states if state.status == "live"), None)

    def advance(self, state: State, after: int) -> int:
        """Record a state and return its number. Raises ConflictError when one was recorded since number `after`."""
        try:
            return self._pointer.advance(state.model_dump(mode="json"), after).number
        except ConflictError:
            self.require(after)
            raise

    def require(self, number: int) -> None:
        """Raise ConflictError, which names the newer deployment, unless record `number` is the current one."""
        record = self._pointer.read()
        assert record is not None
        if record.number != number:
            winner = _state(record).version
            raise ConflictError(f"version {winner} was deployed meanwhile, by {record.by} at {record.when}")


def _state(record: Record) -> State:
    """The state in a record. Raises InputError, without the values: they contain hashed keys."""
    try:
        return State.model_validate(record.value)
    except ValidationError as error:
        problem = first_problem(error)
    raise InputError(f"{KEY}/{record.number:06d}.json: {problem}. Restore the file, or delete it")
