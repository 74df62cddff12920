"""Many items as several requests, each within the limits of the service. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something that is sent."""

    @property
    def size(self) -> tuple[float, ...]:
        """How much it counts against each limit."""
        ...


Item = TypeVar("Item", bound=Sized)


class Parts(Generic[Item]):
    """Gathers items into parts, as many to each as it holds. What alone is beyond a limit is a part of its own.

    Args:
        limits: of one part, in the order of the sizes.
    """

    def __init__(self, limits: tuple[float, ...]) -> None:
        self._limits = limits
        self._items: list[Item] = []
        self._sums: tuple[float, ...] = (0,) * len(limits)

    def push(self, item: Item) -> list[list[Item]]:
        """Add an item. Returns the parts to which nothing can come any more: none, one or two."""
        ready = []
        if self._items and any(total > limit for total, limit in zip(self._plus(item), self._limits, strict=True)):
            ready.append(self.rest())
        self._sums = self._plus(item)
        self._items.append(item)
        if any(total >= limit for total, limit in zip(self._sums, self._limits, strict=True)):
            ready.append(self.rest())
        return ready

    def rest(self) -> list[Item]:
        """The items that are left."""
        items, self._items, self._sums = self._items, [], (0,) * len(self._limits)
        return items

    def _plus(self, item: Item) -> tuple[float, ...]:
        return tuple(total + more for total, more in zip(self._sums, item.size, strict=True))


def split(items: Iterable[Item], limits: tuple[float, ...]) -> Iterator[list[Item]]:
    """The parts of items, in order."""
    parts: Parts[Item] = Parts(limits)
    for item in items:
        yield from parts.push(item)
    if rest := parts.rest():
        yield rest
