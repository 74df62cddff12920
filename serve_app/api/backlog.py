"""What bounds a stream: the lines of it that are kept, and the tokens that streams may have waiting for the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

LINE_BYTES = 100  # that a line costs beside its own


@dataclass(frozen=True)
class Line:
    """A line that came.

    Attributes:
        number: its place in the body, from 1.
        content: without its end; None when it was too long to be kept.
        cost: bytes that it takes of the bound.
    """

    number: int
    content: bytes | None
    cost: int


@dataclass(eq=False)
class Backlog:
    """Lines that came and are not answered yet.

    Args:
        max_line_bytes: a longer line is counted and not kept.
        max_bytes: that are kept, those of lines at work included.
    """

    max_line_bytes: int
    max_bytes: int
    _partial: bytearray = field(default_factory=bytearray, init=False)
    _is_too_long: bool = field(default=False, init=False)
    _lines: deque[Line] = field(default_factory=deque, init=False)
    _number: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)
    _is_complete: bool = field(default=False, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def feed(self, chunk: bytes) -> None:
        """Take what came, however it is cut."""
        first, *others = chunk.split(b"\n")
        self._extend(first)
        for other in others:
            self._end_line()
            self._extend(other)
        self._changed.set()

    def __len__(self) -> int:
        """How many lines wait to be worked on."""
        return len(self._lines)

    @property
    def is_full(self) -> bool:
        """Whether more is kept than the bound allows."""
        return self._bytes + len(self._partial) > self.max_bytes

    @property
    def is_waiting(self) -> bool:
        """Whether all that came is answered, and more may come."""
        return not self._bytes and not self._is_complete

    def complete(self) -> None:
        """Nothing more will come."""
        self._end_line()
        self._is_complete = True
        self._changed.set()

    def _extend(self, piece: bytes) -> None:
        self._is_too_long = self._is_too_long or len(self._partial) + len(piece) > self.max_line_bytes
        if self._is_too_long:
            self._partial.clear()
        else:
            self._partial += piece

    def _end_line(self) -> None:
        self._number += 1
        content = None if self._is_too_long else bytes(self._partial)
        if content is None or content.strip():
            line = Line(self._number, content, LINE_BYTES + len(content or b""))
            self._bytes += line.cost
            self._lines.append(line)
        self._partial.clear()
        self._is_too_long = False

    async def next(self) -> Line | None:
        """The next line once it is there; None at the end."""
        while not self._lines:
            if self._is_complete:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._lines.popleft()

    def release(self, line: Line) -> None:
        """A line is answered."""
        self._bytes -= line.cost


@dataclass(eq=False)
class Budget:
    """Tokens that all streams of a replica may have waiting for the model.

    Args:
        tokens: at most, except for one line alone.
    """

    tokens: int
    used: int = field(default=0, init=False)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition, init=False)

    @asynccontextmanager
    async def of(self, tokens: int) -> AsyncIterator[None]:
        """Hold so many tokens, once there is room for them."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.used or self.used + tokens <= self.tokens)
            self.used += tokens
        try:
            yield
        finally:
            self.used -= tokens
            async with self._changed:
                self._changed.notify_all()
