"""The answer of another server, as our own client reads it: head, then pieces as they arrive."""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol, Self

from live_bridge.http.message import Broken, Headers, HttpError, TooLarge, header_of


class Line(Protocol):
    """What an answer needs of its connection."""

    def taken(self) -> None:
        """Read on: the consumer has what has come."""

    def abort(self) -> None:
        """Close at once."""


class Answered:
    """The Reply of one exchange."""

    __slots__ = ("_line", "ahead", "done", "error", "head", "headers", "method", "pieces", "status", "url", "waiter")

    def __init__(self, line: "Line", method: str, url: str) -> None:
        self.status = 0
        self.headers: Headers = []
        self.head = self.done = False
        self.method = method
        self.url = url
        self._line: Line | None = line
        self.pieces: list[bytes] = []
        self.ahead = 0
        self.error: HttpError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """Find the first header of this name (lower case)."""
        return header_of(self.headers, name)

    async def body(self, limit_bytes: int) -> bytes:
        """Read all of it.

        errors   TooLarge, and the connection is closed; Broken
        """
        if self.done and self.error is None and self.ahead <= limit_bytes:  # it has all come already
            pieces, self.pieces, self.ahead = self.pieces, [], 0
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        found, size = [], 0
        async for piece in self:
            size += len(piece)
            if size > limit_bytes:
                self.close()
                raise TooLarge(f"{self.url}: the answer is longer than {limit_bytes} bytes")
            found.append(piece)
        return found[0] if len(found) == 1 else b"".join(found)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Give what has arrived since, never empty.

        errors   Broken when the connection ended too early
        """
        while not self.pieces:
            if self.error is not None:
                raise self.error
            if self.done:
                raise StopAsyncIteration
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
        pieces = self.pieces
        self.pieces, self.ahead = [], 0
        if self._line is not None:
            self._line.taken()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Leave: an unfinished exchange is aborted, so that the server sees it."""
        line, self._line = self._line, None
        if not self.done:
            self.fail(Broken(f"{self.url}: closed by us before the answer was whole", sent=True))
        if line is not None:
            line.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- the connection's calls

    def wake(self) -> None:
        """Tell whoever waits."""
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def finish(self) -> None:
        """The answer is whole."""
        self.done, self._line = True, None

    def fail(self, error: HttpError) -> None:
        """The answer will not be whole."""
        if not self.done:
            self.done, self.error = True, error
            self.wake()
