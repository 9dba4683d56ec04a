"""The answer to one request on our own server: head, chunks, end, and what a handler that fails leaves behind."""

import asyncio
from typing import Protocol

from live_bridge.http.message import BODILESS, STATUS_LINES, Headers, Request, header_bytes


class House(Protocol):
    """What an answer needs of its server."""

    preamble: bytes  # headers that every answer carries
    draining: bool  # every answer is the last of its connection

    def done(self, answer: "Answer", task: "asyncio.Task[None]") -> None:
        """Look at how a handler ended."""


class Line(Protocol):
    """What an answer needs of its connection."""

    full: bool

    def put(self, data: bytes) -> None:
        """Write."""

    async def room(self) -> None:
        """Wait until the client has taken some of what was written."""

    def answered(self, *, keep: bool) -> None:
        """Go on to the next request, or close."""

    def abort(self) -> None:
        """Close at once."""


class Answer:
    """The Response to one request."""

    __slots__ = ("_bare", "_chunked", "_house", "_keep", "_line", "_old", "ended", "request", "started")

    def __init__(self, line: Line, house: House, request: Request, *, keep: bool, old: bool) -> None:
        """Take the request's connection.

        keep   the client wants to ask again
        old    it speaks HTTP/1.0, which has no chunks
        """
        self._line, self._house = line, house
        self.request = request
        self._keep, self._old = keep, old
        self._bare = request.method == "HEAD"
        self._chunked = False
        self.started = self.ended = False

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer whole, with its length."""
        head = self._head(status, headers)
        if self.ended:
            return
        self.ended = True
        if status in BODILESS:
            self._line.put(head + b"\r\n")
        else:
            self._line.put(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), b"" if self._bare else body))
        self._line.answered(keep=self._keep)

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer whose length is not known."""
        self._bare = self._bare or status in BODILESS
        self._chunked = not self._old and not self._bare
        self._keep = self._keep and (self._chunked or self._bare)  # else the end of the connection is the end of the answer
        head = self._head(status, headers)
        if not self.ended:
            self._line.put(head + (b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"))

    async def write(self, data: bytes) -> None:
        """Add to a started answer; waits while the client is slower than we."""
        if not self.started:
            raise RuntimeError("write: the answer has not been started")
        if not data or self._bare or self.ended:
            return
        line = self._line
        line.put(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if line.full:
            await line.room()

    def end(self) -> None:
        """End a started answer; the connection takes its next request."""
        if not self.started:
            raise RuntimeError("end: the answer has not been started")
        if self.ended:
            return
        self.ended = True
        if self._chunked:
            self._line.put(b"0\r\n\r\n")
        self._line.answered(keep=self._keep)

    def abort(self) -> None:
        """Break off: the client sees that the answer is not whole."""
        if not self.ended:
            self.ended = True
            self._line.abort()

    def done(self, task: "asyncio.Task[None]") -> None:
        """Look at how the handler ended."""
        self._house.done(self, task)

    def _head(self, status: int, headers: Headers) -> bytes:
        if self.started:
            raise RuntimeError("send: the answer has been started already")
        text = header_bytes(headers)
        self.started = True
        house = self._house
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        if house.draining:
            self._keep = False
        if self._keep and not self._old:
            return line + text + house.preamble
        return line + text + house.preamble + (b"connection: keep-alive\r\n" if self._keep else b"connection: close\r\n")
