"""Desired state of the service: version and settings, recorded so that concurrent deployments cannot undo each other.

A deployment appends a `starting` record, and a `live` one with the same content when its version answers. Both are
compare-and-swap: a deployment that is no longer the last one fails instead of changing what replaced it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from detect_ai.core.config import ServeConfig
from detect_ai.core.errors import ConfigError, ConflictError
from detect_ai.core.pointer import Pointer, Record
from detect_ai.core.storage import Storage

KEY = "serve/desired"


class State(BaseModel):
    """Desired state of the service: a version and its settings.

    Attributes:
        status: whether its version has answered.
        version: of the bundle.
        settings: the section `serve` of the configuration.
        keys: hashed API keys of the deployer's environment, as JSON; None: no keys are required.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["starting", "live"]
    version: str
    settings: dict[str, Any]
    keys: str | None

    @property
    def config(self) -> ServeConfig:
        """The settings. Raises ConfigError when another release wrote them."""
        try:
            return ServeConfig(**self.settings)
        except ValidationError as error:
            raise ConfigError(f"{KEY}: the settings of {self.version} are of another release: deploy again") from error


class DesiredState:
    """The states of one service, the last one being in force.

    Args:
        storage: root of the registry; of a private Ray, a folder that ends with it.
    """

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

    def start(self, config: ServeConfig, version: str, keys: str | None) -> int:
        """Record a deployment that begins, and return its number. Raises ConflictError."""
        settings = config.model_dump() | {"version": version}
        return self._advance(State(status="starting", version=version, settings=settings, keys=keys), self.read()[0])

    def confirm(self, number: int) -> None:
        """Record that the deployment of this number answers. Raises ConflictError when a newer one has begun."""
        self.require(number)
        state = self.read()[1]
        assert state is not None
        self._advance(state.model_copy(update={"status": "live"}), number)

    def revert(self, number: int) -> State | None:
        """Return to the last live state, if there is one. Raises ConflictError when a newer deployment has begun."""
        self.require(number)
        if state := self.last_live():
            self._advance(state, number)
        return state

    def require(self, number: int) -> None:
        """Raise ConflictError, naming the newer deployment, unless a record is the current one."""
        record = self._pointer.read()
        assert record is not None
        if record.number != number:
            winner = _state(record)
            raise ConflictError(f"version {winner.version} was deployed meanwhile, by {record.by} at {record.when}")

    def _advance(self, state: State, after: int) -> int:
        try:
            return self._pointer.advance(state.model_dump(mode="json"), after).number
        except ConflictError:
            self.require(after)
            raise


def _state(record: Record) -> State:
    try:
        return State.model_validate(record.value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ConfigError(f"{KEY}, record {record.number}: {reason}: restore the file, or delete it") from error
