"""Registry of published bundles: immutable versions, and the pointer to the champion. Storage only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detect_ai.core.errors import BundleError, InputError, RegistryError, first_problem
from detect_ai.core.pointer import Pointer, Record
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec

_VERSIONS, _CHAMPION = "registry/versions", "registry/champion"


def spec_of(storage: Storage, key: str) -> DetectorSpec:
    """The specification of a bundle in storage, fully verified. Raises BundleError."""
    with storage.local_folder(key) as folder:
        return bundle.read_spec(folder)


class Champion(BaseModel):
    """A state of the champion pointer."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: str = Field(min_length=1)
    previous: int = Field(ge=0)  # number of the record that a rollback returns to; 0: none


class Registry:
    """The registry under a storage root. A version never changes; only the champion pointer moves.

    Reading the pointer raises RegistryError if a record is malformed, InputError if it is not JSON.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._pointer = Pointer(storage, _CHAMPION)

    def versions(self) -> list[str]:
        """All complete versions."""
        names = self.storage.list(_VERSIONS)
        return [name for name in names if self.storage.exists(f"{_VERSIONS}/{name}/{bundle.SPEC_FILE}")]

    def add(self, folder: Path) -> str:
        """Copy a bundle into the registry and return its version. An existing version stays unchanged."""
        spec = bundle.read_spec(folder)
        key = f"{_VERSIONS}/{spec.version}"
        if not self.storage.exists(f"{key}/{bundle.SPEC_FILE}"):
            self.storage.delete(key)  # leftovers of an interrupted copy
            for name in [*spec.files, bundle.SPEC_FILE]:  # the specification last: it completes the version
                self.storage.write_bytes(f"{key}/{name}", (folder / name).read_bytes())
        return spec.version

    def history(self) -> list[Champion]:
        """All states of the champion pointer, oldest first."""
        return [self._state(record) for record in self._pointer.history()]

    def champion(self) -> str | None:
        """The champion version, or None before the first one."""
        return self.read_champion()[1]

    def read_champion(self) -> tuple[int, str | None]:
        """The number of the current state, for `set_champion`, and its version; (0, None) before the first state."""
        record = self._pointer.read()
        return (record.number, self._state(record).version) if record else (0, None)

    def require_champion(self) -> str:
        """The champion version. Raises RegistryError if nothing was published yet."""
        version = self.champion()
        if version is None:
            raise RegistryError(
                f"no champion under {self.storage.root}: run jobs/publish.py first, or `make demo` for a demonstration"
            )
        return version

    def set_champion(self, version: str, after: int | None = None) -> None:
        """Move the pointer if its state is still `after` (a number from `read_champion`); None: the current state.

        Raises RegistryError if the version is missing or cannot be loaded, ConflictError if another process has moved
        the pointer since.
        """
        self._require_loadable(version)
        number, champion = self.read_champion()
        after = number if after is None else after
        if (after, version) != (number, champion):
            self._pointer.advance(Champion(version=version, previous=after).model_dump(), after)

    def rollback(self) -> str:
        """Move the pointer back to the previous champion, and return it.

        Raises RegistryError if there is none or its bundle cannot be loaded, ConflictError as `set_champion`.
        """
        history = self.history()
        if not history:
            raise RegistryError("there is no champion yet: nothing to roll back to")
        if not history[-1].previous:
            raise RegistryError(f"no version before the champion {history[-1].version}: nothing to roll back to")
        target = history[history[-1].previous - 1]
        self._require_loadable(target.version)
        self._pointer.advance(target.model_dump(), len(history))
        return target.version

    @contextmanager
    def folder(self, version: str) -> Iterator[Path]:
        """A local folder with the bundle of a version. Raises RegistryError if there is no such version."""
        self._require(version)
        with self.storage.local_folder(f"{_VERSIONS}/{version}") as folder:
            yield folder

    def verify(self) -> dict[str, Any]:
        """Verify the hash of every file of every version, and the champion pointer with its history.

        Returns the numbers of `versions` and of champion `records`, the `champion` (None if unknown) and `problems`,
        one line each.
        """
        names, broken = self.storage.list(_VERSIONS), {}
        for name in names:
            try:
                if (found := spec_of(self.storage, f"{_VERSIONS}/{name}").version) != name:
                    broken[name] = f"its content is that of version {found}"
            except BundleError as error:
                broken[name] = str(error)
        problems = [f"version {name}: {problem}" for name, problem in broken.items()]
        records, champion, named, last = self._pointer.names(), None, {}, 0
        for record in records:
            number = int(record.removesuffix(".json"))
            if number > last + 1:
                problems.append(f"{_CHAMPION}: no record between {last} and {number}")
            last = number
            try:
                state = self._state(self._pointer.load(record))
                champion, named[state.version] = state.version, record
            except InputError as error:
                champion = None
                problems.append(str(error))
        for version, record in named.items():
            if version not in names or version in broken:
                problem = "does not load" if version in names else "does not exist"
                problems.append(f"{_CHAMPION}/{record}: version {version} {problem}")
        return {"versions": len(names), "records": len(records), "champion": champion, "problems": problems}

    def find(self, name: str) -> str | None:
        """The version that starts with a name, or None. Raises RegistryError if several match."""
        matches = [version for version in self.versions() if version.startswith(name)]
        if len(matches) > 1:
            raise RegistryError(f"bundle={name}: matches several versions: {', '.join(matches)}; give more characters")
        return matches[0] if matches else None

    def resolve(self, name: str) -> tuple[Storage, str]:
        """Storage and key of a bundle, or of the champion if `name` is empty.

        A name is a version or its prefix, a key under the storage root, or a path or URI of a folder. Raises
        RegistryError if there is no such bundle, or several versions match.
        """
        if version := self.find(name) if name else self.require_champion():
            return self.storage, f"{_VERSIONS}/{version}"
        is_key = "://" not in name and not name.startswith(("/", "~", "."))
        if is_key and self.storage.exists(f"{name.rstrip('/')}/{bundle.SPEC_FILE}"):
            return self.storage, name.rstrip("/")
        elsewhere, key = Storage.around(name)
        if not elsewhere.exists(f"{key}/{bundle.SPEC_FILE}"):
            raise RegistryError(
                f"bundle={name}: expected a version of the registry ({self._listed()}), a key under "
                f"{self.storage.root}, or a folder with {bundle.SPEC_FILE}"
            )
        return elsewhere, key

    def _listed(self) -> str:
        return ", ".join(self.versions()) or "it is empty"

    def _require(self, version: str) -> None:
        if version not in self.versions():
            raise RegistryError(f"no version {version!r} under {self.storage.root}: the registry has {self._listed()}")

    def _require_loadable(self, version: str) -> None:
        """Raise RegistryError if a version is missing, damaged or of another format."""
        self._require(version)
        try:
            spec_of(self.storage, f"{_VERSIONS}/{version}")
        except BundleError as error:
            raise RegistryError(f"version {version} cannot become champion: {error}") from error

    def _state(self, record: Record) -> Champion:
        try:
            champion = Champion.model_validate(record.value)
            if champion.previous < record.number:
                return champion
            problem = f"previous: expected a number below {record.number}, found {champion.previous}"
        except ValidationError as error:
            problem = first_problem(error)
        advice = "restore the file, or delete it to return to the state before"
        raise RegistryError(f"{self.storage.root}/{_CHAMPION}, record {record.number}: {problem}: {advice}")
