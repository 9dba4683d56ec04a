"""Our own HTTP client: a pool of connections kept alive, answers streamed as they arrive, deadlines in one sweep."""

import asyncio
import contextlib
import ssl
from typing import cast

import httptools

from live_bridge.http.message import (
    BODILESS,
    SAFE_METHODS,
    Broken,
    ConnectFailed,
    Headers,
    Place,
    TimedOut,
    header_bytes,
    header_of,
    place_of,
)
from live_bridge.http.reply import Answered

SWEEP_S = 0.05
"""How late a time-out may be noticed."""
HEADER_BYTES = 65536
"""Of an answer's head."""
AHEAD_BYTES = 65536
"""Read ahead of the consumer; more stays with the sender."""
JOINED_BYTES = 16384
"""A body up to this long is copied behind its head, which is cheaper than a second write."""
NEVER = float("inf")
KEPT_S = 4.0
"""Less than the 5 s after which uvicorn, and so vLLM, closes an idle connection: a request sent into that closing is lost."""
KEPT = 512
"""Idle connections to one place."""
UNUSED_S = 1.0
"""A connection whose caller was cancelled as it came about is closed after this time."""
FRAMES = frozenset({b"content-length", b"transfer-encoding"})
WITH_BODY = frozenset({"PATCH", "POST", "PUT"})


Route = str | tuple[str, str | None, ssl.SSLContext | None]
"""What a connection can be used again for: an origin, where it says all, or origin, address and trust."""


class Line(asyncio.Protocol):
    """One connection: one exchange after the other."""

    __slots__ = (
        "_client", "_framed", "_headers", "_interim", "_keep", "_parser", "_paused", "_raw", "_reply", "_size",
        "_until_end", "began", "deadline_s", "route", "transport", "url",
    )  # fmt: skip

    def __init__(self, client: "Client", route: Route) -> None:
        self._client = client
        self.route = route
        self.url = ""
        self.began = False  # a byte of the answer has come
        self.deadline_s = NEVER
        self._reply: Answered | None = None
        self._paused = False
        self._parser = httptools.HttpResponseParser(self)
        self._begin()

    def _begin(self) -> None:
        self._headers: Headers = []
        self._size = self._raw = 0
        self._framed = self._interim = self._until_end = self._keep = False

    def ask(self, reply: Answered, deadline_s: float) -> None:
        """Expect the answer to what `send` sends."""
        self.url = reply.url
        self.began = False
        self._reply = reply
        self.deadline_s = deadline_s

    def send(self, reply: Answered, payload: tuple[bytes, ...]) -> None:
        """Send a request, unless nobody waits for it any more."""
        if self._reply is reply:
            for part in payload:
                self.transport.write(part)

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        self._client.opened(self)
        self.deadline_s = asyncio.get_running_loop().time() + UNUSED_S

    def data_received(self, data: bytes) -> None:
        """Parse; the consumer is woken once, with all that has come."""
        reply = self._reply
        if reply is None:
            self.abort()  # nobody has asked
            return
        self.began = True
        try:
            self._parser.feed_data(data)
            if not reply.head:
                self._measure(len(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(error.__context__, Broken):
                raise
            self._break(error.__context__ if isinstance(error.__context__, Broken) else self._broken("what came is not HTTP/1.1"))
        except Broken as error:
            self._break(error)
        if reply.head:
            waiter = reply.waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self._reply is None:
            self._release()

    def eof_received(self) -> bool:
        """The server has ended: the answer too, if it has no other end."""
        reply = self._reply
        if reply is not None and reply.head and self._until_end:
            self._reply = None
            reply.finish()
            reply.wake()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is under way."""
        self._paused = False  # there is nothing to read on from
        self._break(self._broken(f"the connection ended before the answer was whole{f' ({error})' if error else ''}"))
        self._client.closed(self)

    # -- the parser's calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or drop a trailer."""
        self._size += len(name) + len(value) + 4
        if self._size > HEADER_BYTES:
            raise self._broken(f"its head is longer than {HEADER_BYTES} bytes")
        name = name.lower()
        value = value.rstrip(b" \t")
        if name in FRAMES and not self._framed:
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                raise self._broken("its transfer coding is not chunked")
            self._framed = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Hand over a head; drop an interim one."""
        reply = self._reply
        status = self._parser.get_status_code()
        if status == 101:
            raise self._broken("it changes to another protocol unasked")
        self._interim = status < 200
        if reply is None or self._interim:
            return
        self._keep = self._parser.should_keep_alive()
        self._until_end = not self._framed and status not in BODILESS
        reply.status, reply.headers, reply.head = status, self._headers, True
        self._headers = []  # of the trailers, for nobody
        self.deadline_s = NEVER
        if reply.method == "HEAD":  # the parser cannot be told that no body follows
            self._keep = False
            self._reply = None
            reply.finish()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        reply = self._reply
        if reply is not None:
            reply.pieces.append(body)
            reply.ahead += len(body)
            if reply.ahead > AHEAD_BYTES and not self._paused:
                self._paused = True
                self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """End an exchange."""
        reply = self._reply
        if self._interim:
            self._begin()
        elif reply is not None:
            self._reply = None
            reply.finish()

    # -- the rest

    def taken(self) -> None:
        """Read on: the consumer has what has come."""
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once."""
        self._client.forget(self)
        self.transport.abort()

    def late(self) -> None:
        """Do what is due when the deadline has passed."""
        if self._reply is not None:
            self._break(TimedOut(f"{self.url}: the answer has not begun in time"))
        self.abort()
        self._client.closed(self)  # uvloop closes what a cancelled connect has opened, and tells nobody

    def _measure(self, size: int) -> None:
        self._raw += size  # what the parser keeps for itself
        if self._raw > HEADER_BYTES:
            raise self._broken(f"its head is longer than {HEADER_BYTES} bytes")

    def _release(self) -> None:
        """Go back to the pool, or close."""
        transport = self.transport
        keep = self._keep and not self._until_end
        self._begin()
        if keep and not transport.get_write_buffer_size() and not transport.is_closing():
            if self._paused:
                self.taken()
            self._client.keep(self)
        else:
            self.abort()

    def _break(self, error: Broken | TimedOut) -> None:
        reply, self._reply = self._reply, None
        self._keep = False
        if reply is not None:
            reply.fail(error)

    def _broken(self, reason: str) -> Broken:
        return Broken(f"{self.url}: {reason}", sent=True)


class Client:
    """Asks other servers."""

    def __init__(self, kept_s: float = KEPT_S, kept: int = KEPT, trust: ssl.SSLContext | None = None) -> None:
        """Say how long and how many idle connections are kept to one place; `trust` in certificates, None: the system's."""
        self._kept_s, self._kept = kept_s, kept
        self._lines: set[Line] = set()
        self._idle: dict[Route, list[Line]] = {}
        self._tick_s = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None
        self._trust = trust
        self._closed = False

    async def request(
        self,
        method: str,
        url: str,
        headers: Headers | None = None,
        body: bytes = b"",
        *,
        address: str | None = None,
        connect_s: float = 5.0,
        first_byte_s: float | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Answered:
        """Send a request and wait until the head of its answer is there; see message.HttpClient."""
        place = place_of(url)
        payload = _payload(method, place, headers or [], body)
        route: Route = place.origin if address is None and tls is None else (place.origin, address, tls)
        line = self._take(route)
        while True:
            fresh = line is None
            if line is None:
                line = await self._connect(place, route, url, connect_s, address, tls)
            reply = Answered(line, method, url)
            line.ask(reply, NEVER if first_byte_s is None else self._loop.time() + first_byte_s)
            # in the next turn: behind a journal that is written by call_soon, and with all that is asked in this one
            self._loop.call_soon(line.send, reply, payload)
            try:
                reply.waiter = self._loop.create_future()
                await reply.waiter
            except asyncio.CancelledError:  # perhaps as the head came: nobody will read the rest
                reply.close()
                raise
            if reply.head:
                return reply
            error = reply.error or Broken(f"{url}: no head", sent=True)
            if fresh or line.began or method not in SAFE_METHODS or isinstance(error, TimedOut):
                raise error
            line = None  # it was being closed as we asked; asking again changes nothing

    async def close(self) -> None:
        """Close all connections; requests under way end as Broken."""
        self._closed = True
        for line in list(self._lines):
            line.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNUSED_S):
                while self._lines:
                    self._quiet = asyncio.get_running_loop().create_future()
                    await self._quiet
        self._lines.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def _connect(
        self, place: Place, route: Route, url: str, connect_s: float, address: str | None, tls: ssl.SSLContext | None
    ) -> Line:
        if self._closed:
            raise ConnectFailed(f"{url}: the client has been closed")
        secure = place.scheme == "https"
        if secure and tls is None:
            if self._trust is None:
                self._trust = ssl.create_default_context()
            tls = self._trust
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_s):
                _, line = await self._loop.create_connection(
                    lambda: Line(self, route),
                    address or place.host,
                    place.port,
                    ssl=tls if secure else None,
                    server_hostname=place.host if secure else None,
                )
        except TimeoutError:
            raise ConnectFailed(f"{url}: no connection within {connect_s:g} s") from None
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(f"{url}: no connection: {error}") from error
        return line

    def _take(self, route: Route) -> Line | None:
        """Take the connection that was used last: the others may grow old and be closed."""
        idle = self._idle.get(route)
        while idle:
            line = idle.pop()
            if not line.transport.is_closing():
                return line
        return None

    # -- the connections' calls

    def opened(self, line: Line) -> None:
        """Take note of a connection."""
        self._lines.add(line)
        if self._sweeper is None:
            self._sweep()

    def keep(self, line: Line) -> None:
        """Keep a connection for the next request."""
        idle = self._idle.get(line.route)
        if idle is None:
            idle = self._idle[line.route] = []
        if self._closed or len(idle) >= self._kept:
            line.abort()
            return
        line.deadline_s = self._tick_s + self._kept_s
        idle.append(line)

    def forget(self, line: Line) -> None:
        """Do not use a connection again."""
        idle = self._idle.get(line.route)
        if idle is not None and line in idle:
            idle.remove(line)

    def closed(self, line: Line) -> None:
        """Forget a connection."""
        self.forget(line)
        self._lines.discard(line)
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._tick_s = loop.time()
        for line in [one for one in self._lines if one.deadline_s <= self._tick_s]:
            line.late()
        self._idle = {route: idle for route, idle in self._idle.items() if idle}
        self._sweeper = loop.call_later(SWEEP_S, self._sweep) if self._lines else None


def _payload(method: str, place: Place, headers: Headers, body: bytes) -> tuple[bytes, ...]:
    fields = header_bytes(headers)
    host = b"" if header_of(headers, b"host") is not None else place.host_line
    length = b"content-length: %d\r\n" % len(body) if body or method in WITH_BODY else b""
    words = (method.encode("ascii"), place.target, host, fields, length)
    if len(body) <= JOINED_BYTES:
        return (b"%b %b HTTP/1.1\r\n%b%b%b\r\n%b" % (*words, body),)
    return b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % words, body
