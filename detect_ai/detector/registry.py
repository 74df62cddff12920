"""Published bundles and the pointer to the champion. Storage only: deploying is another stage's work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from detect_ai.core.errors import RegistryError
from detect_ai.core.storage import Storage
from detect_ai.detector import bundle
from detect_ai.detector.bundle import DetectorSpec

_VERSIONS = "registry/versions"
_CHAMPION = "registry/champion.json"


def spec_of(storage: Storage, key: str) -> DetectorSpec:
    """The specification of a bundle in storage, everything checked. Raises BundleError."""
    with storage.local_folder(key) as folder:
        return bundle.read_spec(folder)


class Registry:
    """The registry under a storage root. A version never changes; only the champion pointer moves, at once."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def versions(self) -> list[str]:
        """Every published version."""
        finished = f"{_VERSIONS}/{{}}/{bundle.SPEC_FILE}"
        return [name for name in self.storage.list(_VERSIONS) if self.storage.exists(finished.format(name))]

    def add(self, folder: Path) -> str:
        """Copy a sealed bundle into the registry, and return its version. One that is there already stays."""
        spec = bundle.read_spec(folder)
        key = f"{_VERSIONS}/{spec.version}"
        if not self.storage.exists(f"{key}/{bundle.SPEC_FILE}"):
            for name in [*spec.files, bundle.SPEC_FILE]:  # the specification last: without it there is no version
                self.storage.write_bytes(f"{key}/{name}", (folder / name).read_bytes())
        return spec.version

    def champion(self) -> str | None:
        """The version that serves, or None before the first one."""
        pointer = self._pointer()
        return str(pointer["version"]) if pointer else None

    def require_champion(self) -> str:
        """The champion. Raises RegistryError when nothing was published yet."""
        version = self.champion()
        if version is None:
            raise RegistryError(
                f"no champion under {self.storage.root}: run jobs/publish.py first; `make demo` makes one to look at"
            )
        return version

    def set_champion(self, version: str) -> None:
        """Move the pointer. Raises RegistryError for a version that is not in the registry."""
        self._require(version)
        pointer = self._pointer() or {"version": None, "history": []}
        if pointer["version"] == version:
            return
        history = [v for v in [*pointer["history"], pointer["version"]] if v]
        self._write(version, history[-20:])

    def rollback(self) -> str:
        """Move the pointer back to the version before. Raises RegistryError when there is none."""
        pointer = self._pointer()
        if not pointer or not pointer["history"]:
            now = f"the champion {pointer['version']}" if pointer else "the first one, and there is no champion yet"
            raise RegistryError(f"no version before {now}: nothing to roll back to")
        *history, version = pointer["history"]
        self._require(version)
        self._write(version, history)
        return str(version)

    def version(self, name: str) -> str:
        """The version that a name is the beginning of. Raises RegistryError when there is none, or several."""
        found = [version for version in self.versions() if version.startswith(name)]
        if len(found) > 1:
            raise RegistryError(f"bundle={name}: {len(found)} versions begin so: {', '.join(found)}")
        if not found:
            versions = ", ".join(self.versions()) or "it is empty"
            raise RegistryError(f"bundle={name}: expected a version of the registry ({versions})")
        return found[0]

    @contextmanager
    def folder(self, version: str) -> Iterator[Path]:
        """A local folder with the bundle of a version."""
        self._require(version)
        with self.storage.local_folder(f"{_VERSIONS}/{version}") as folder:
            yield folder

    def locate(self, name: str) -> tuple[Storage, str]:
        """Where a bundle lies: storage and key.

        Args:
            name: a version or its beginning, a key under the storage root, or a path or URI of a folder; empty: the
                champion.

        Raises:
            RegistryError: there is no such bundle, or several begin so.
        """
        if not name:
            return self.storage, f"{_VERSIONS}/{self.require_champion()}"
        found = [version for version in self.versions() if version.startswith(name)]
        if len(found) == 1:
            return self.storage, f"{_VERSIONS}/{found[0]}"
        if found:
            raise RegistryError(f"bundle={name}: {len(found)} versions begin so: {', '.join(found)}")
        is_key = "://" not in name and not name.startswith(("/", "~", "."))
        if is_key and self.storage.exists(f"{name.rstrip('/')}/{bundle.SPEC_FILE}"):
            return self.storage, name.rstrip("/")
        elsewhere, last = Storage.around(name)
        if not elsewhere.exists(f"{last}/{bundle.SPEC_FILE}"):
            raise RegistryError(
                f"bundle={name}: expected a version of the registry ({', '.join(self.versions()) or 'it is empty'}), a "
                f"key under {self.storage.root}, or a folder with {bundle.SPEC_FILE}"
            )
        return elsewhere, last

    def _require(self, version: str) -> None:
        if version not in (found := self.versions()):
            raise RegistryError(f"no version {version!r} under {self.storage.root}; found {', '.join(found) or 'none'}")

    def _pointer(self) -> dict[str, Any] | None:
        try:
            pointer: dict[str, Any] = self.storage.read_json(_CHAMPION)
        except FileNotFoundError:
            return None
        return pointer

    def _write(self, version: str, history: list[str]) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.storage.write_json(_CHAMPION, {"version": version, "history": history, "since": now})
