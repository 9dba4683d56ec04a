"""One client's connection: bytes in, requests out in their order, answers back. Keeps the limits; its server keeps the clock."""

import asyncio
from collections import deque
from enum import Enum
from typing import Protocol, cast

import httptools

from live_bridge.http.answer import Answer
from live_bridge.http.message import Count, Headers, Limits, Refusal, Request, error_body, status_line

SLICE_BYTES = 16384
"""Parsed at a time, so that a burst of pipelined requests is cut short where the first of them is answered."""
HELD_BYTES = 65536
"""Kept of what a client sends while its last request is worked on; more stays in the kernel, and then its leaving is seen late."""
LINGER_S = 2.0
"""How long what a refused client still sends is read and dropped: closing at once would take the refusal from it (RST)."""
CHUNK_BYTES = 16
"""What a chunk may say about itself, on average; more is a way to make us read for nothing."""
NEVER = float("inf")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
WATCHED = frozenset({b"content-length", b"expect", b"host", b"transfer-encoding"})


class Phase(Enum):
    """What the deadline is for."""

    IDLE = "the next request"
    HEAD = "the rest of a head"
    BODY = "a window of a body"
    WORK = "nothing: the handler is at work"
    LEAVING = "the client to take the rest and close"


class Keeper(Protocol):
    """What a connection needs of its server."""

    limits: Limits
    count: Count
    preamble: bytes
    draining: bool
    tick_s: float  # seconds of the loop's clock when it was last looked at

    def opened(self, connection: "Connection") -> bool:
        """Take note of a connection; False when there are too many."""

    def closed(self, connection: "Connection") -> None:
        """Forget a connection."""

    def now_s(self) -> float:
        """Seconds of the loop's clock."""

    def start(self, answer: Answer) -> "asyncio.Task[None]":
        """Run the handler."""

    def done(self, answer: Answer, task: "asyncio.Task[None]") -> None:
        """Look at how a handler ended."""


class Connection(asyncio.Protocol):
    """Reads requests one after the other. A client that ends its half of the connection has left (as nginx and hyper have it)."""

    __slots__ = (
        "_answer", "_body", "_body_raw", "_chunked", "_chunks", "_deaf", "_expects", "_head_done", "_head_raw", "_head_size",
        "_headers", "_held", "_hosts", "_keep", "_keeper", "_length", "_mark", "_method", "_old", "_parser", "_path", "_paused",
        "_peer", "_phase", "_query", "_queue", "_room", "_target", "_task", "_transport", "deadline_s", "full",
    )  # fmt: skip

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self.deadline_s = NEVER
        self.full = False  # the client reads more slowly than we write
        self._room: asyncio.Future[None] | None = None
        self._answer: Answer | None = None  # under way
        self._task: asyncio.Task[None] | None = None
        self._queue: deque[Answer | Refusal] = deque()
        self._held = bytearray()
        self._paused = False
        self._deaf = False  # what comes now is dropped
        self._phase = Phase.HEAD
        self._mark = 0  # bytes when the deadline was set
        self._parser = httptools.HttpRequestParser(self)
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._body: bytes | bytearray = b""
        self._head_size = self._head_raw = self._body_raw = self._chunks = self._hosts = 0
        self._length = 0
        self._head_done = self._expects = self._chunked = False

    # -- the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse one too many."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else ""
        self.deadline_s = self._keeper.now_s() + self._keeper.limits.header_s
        if not self._keeper.opened(self):
            self._refuse(Refusal(503, "connections_full", "too many connections; try again later"))

    def data_received(self, data: bytes) -> None:
        """Parse, or hold what is pipelined behind a request that is worked on."""
        if self._deaf:
            return
        if self._answer is None:
            self._feed(data)
            return
        self._held += data
        if len(self._held) > HELD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Cancel what is under way; what has been written still goes out."""
        self._leave("client_left")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel what is under way."""
        self._leave("client_left")
        self._keeper.closed(self)

    def pause_writing(self) -> None:
        """Let writers wait."""
        self.full = True
        self._watch_buffer()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self.full = False
        if self._phase is Phase.WORK:
            self.deadline_s = NEVER
        self._wake()

    # -- the parser calls

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or drop a trailer."""
        self._head_size += len(name) + len(value) + 4
        if self._head_done:
            self._check_head_size()
            return
        name = name.lower()
        value = value.rstrip(b" \t")
        if name in WATCHED:
            self._watch(name, value)
        self._headers.append((name, value))

    def _watch(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            if not value.isdigit():
                raise _bad("content-length must be a number")
            self._length = int(value)
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise Refusal(417, "bad_request", "the one expectation that can be met is 100-continue")
            self._expects = True
        elif value.lower() != b"chunked":
            raise _bad("the one transfer coding that is read is chunked")
        else:
            self._chunked = True

    def _check_head_size(self) -> None:
        most = self._keeper.limits.header_bytes
        if max(self._head_size + len(self._target), self._head_raw) > most:
            raise Refusal(431, "header_too_large", f"the head is longer than {most} bytes")

    def _check_body_size(self, size: int) -> None:
        most = self._keeper.limits.body_bytes
        if size > most:
            raise Refusal(413, "body_too_large", f"the body is longer than {most} bytes")

    def on_headers_complete(self) -> None:
        """Check a head."""
        version = self._parser.get_http_version()
        self._old = version == "1.0"
        if version != "1.1" and not self._old:
            raise Refusal(505, "bad_request", f"HTTP/{version} is not spoken here, HTTP/1.1 is")
        self._check_head_size()
        self._check_body_size(self._length)
        if self._hosts != 1 and (self._hosts or not self._old):
            raise _bad("a request names its host once")
        if self._old and self._chunked:
            raise _bad("HTTP/1.0 has no transfer codings")
        self._method = self._parser.get_method().decode()
        if self._method == "CONNECT":
            raise Refusal(501, "bad_request", "this is not a proxy")
        self._path, self._query = split_target(self._target)
        self._keep = self._parser.should_keep_alive()
        self._head_done = True
        self._head_size = self._head_raw = 0

    def on_chunk_header(self) -> None:
        """Count a chunk."""
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if not self._body:
            self._body = body
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body) + body
        self._check_body_size(len(self._body))

    def on_message_complete(self) -> None:
        """Hand over a whole request."""
        request = Request(self._method, self._path, self._query, self._headers, bytes(self._body), self._peer)
        self._queue.append(Answer(self, request, keep=self._keep, old=self._old))
        self._begin()
        if self._answer is None:
            self._next()

    # -- requests

    def _feed(self, data: bytes) -> None:
        """Parse until a request is whole; hold what is behind it."""
        if len(data) <= SLICE_BYTES:
            self._parse(data)
        else:
            view = memoryview(data)
            for place in range(0, len(data), SLICE_BYTES):
                if self._answer is not None:
                    self._held += view[place:]
                    break
                self._parse(view[place : place + SLICE_BYTES])
        if self._answer is None and not self._deaf:
            self._wait()

    def _parse(self, data: bytes | memoryview) -> None:
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
            if self._head_done or self._answer is None:
                self._measure(len(data))
        except httptools.HttpParserUpgrade:
            self._deaf = True  # the request is answered as if it had not asked; what follows it is of another protocol
        except Refusal as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(cause, Refusal):
                raise
            self._refuse(cause if isinstance(cause, Refusal) else _bad("this is not HTTP/1.1"))

    def _measure(self, size: int) -> None:
        """Count what the parser keeps for itself."""
        if not self._head_done:
            self._head_raw += size
            self._check_head_size()
            return
        self._body_raw += size
        excess = self._body_raw - len(self._body) - CHUNK_BYTES * self._chunks
        if excess > self._keeper.limits.header_bytes + SLICE_BYTES:
            raise _bad("more is said about the chunks than is in them")

    def _next(self) -> None:
        """Begin with what is first in the queue."""
        first = self._queue.popleft()
        if isinstance(first, Refusal):
            self._turn_away(first)
            return
        self._answer = first
        self._phase = Phase.WORK
        self.deadline_s = NEVER
        if self.full:
            self._watch_buffer()
        self._task = self._keeper.start(first)

    def _refuse(self, refusal: Refusal) -> None:
        """Refuse what has been read, behind the answers to what came before it; read nothing more."""
        self._deaf = True
        self._held.clear()
        self._keeper.count(refusal.code)
        if self._answer is None:
            self._turn_away(refusal)
        else:
            self._queue.append(refusal)

    def _turn_away(self, refusal: Refusal) -> None:
        body = error_body(refusal.status, refusal.code, str(refusal))
        head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n"
        self.put(head % (status_line(refusal.status), len(body), self._keeper.preamble) + body)
        self._close()

    # -- answers

    def put(self, data: bytes) -> None:
        """Write."""
        self._transport.write(data)

    async def room(self) -> None:
        """Wait until the client has taken some of what was written."""
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._room)  # another writer's cancellation is not ours

    def preamble(self) -> bytes:
        """Headers that every answer carries."""
        return self._keeper.preamble

    def draining(self) -> bool:
        """Whether this is to be the last answer."""
        return self._keeper.draining

    def answered(self, *, keep: bool) -> None:
        """Go on to the next request, or close."""
        self._answer = self._task = None
        if not keep or self._keeper.draining:
            self._close()
            return
        if self._queue:
            self._next()
            return
        if self._held:
            data = bytes(self._held)
            self._held.clear()
            self._feed(data)
        elif self._deaf:
            self._close()
        else:
            self._wait()
        if self._paused and len(self._held) <= HELD_BYTES:
            self._paused = False
            self._transport.resume_reading()

    def done(self, answer: Answer, task: "asyncio.Task[None]") -> None:
        """Look at how a handler ended."""
        self._keeper.done(answer, task)

    def abort(self) -> None:
        """Close at once."""
        self._answer = self._task = None
        self._transport.abort()

    # -- time

    def _wait(self) -> None:
        """Set how long the client's next bytes may take, where that has not been set."""
        if self._head_done:
            if self._expects and not self._body_raw:
                self.put(CONTINUE)
            self._expects = False
            if self._phase is not Phase.BODY:
                self._phase = Phase.BODY
                self._open_window()
        elif self._head_raw:
            if self._phase is not Phase.HEAD:
                self._phase = Phase.HEAD
                self.deadline_s = self._keeper.now_s() + self._keeper.limits.header_s
        elif self._phase is not Phase.HEAD:  # a fresh connection has no more time than a head
            self._phase = Phase.IDLE
            self.deadline_s = self._keeper.tick_s + self._keeper.limits.keepalive_s

    def _open_window(self) -> None:
        self._mark = len(self._body)
        self.deadline_s = self._keeper.now_s() + self._keeper.limits.body_s

    def _watch_buffer(self) -> None:
        """Give the client time to take some of what has been written."""
        self._mark = self._transport.get_write_buffer_size()
        self.deadline_s = self._keeper.now_s() + (self._keeper.limits.body_s if self._mark else LINGER_S)

    def late(self) -> None:
        """Do what is due when the deadline has passed."""
        limits = self._keeper.limits
        if self.full or self._phase is Phase.LEAVING:
            self._late_reader()
        elif self._phase is Phase.BODY:
            if len(self._body) - self._mark >= limits.body_s * limits.body_floor_bytes_s:
                self._open_window()
            else:
                self._refuse(Refusal(408, "slow_body", f"the body comes at less than {limits.body_floor_bytes_s} bytes a second"))
        elif self._phase is Phase.HEAD and self._head_raw:
            self._refuse(Refusal(408, "slow_header", f"the head has taken more than {limits.header_s:g} s"))
        else:
            self._close()

    def _late_reader(self) -> None:
        if 0 < self._transport.get_write_buffer_size() < self._mark:
            self._watch_buffer()
            return
        if self._phase is not Phase.LEAVING:
            self._keeper.count("slow_reader")
        self._transport.abort()

    # -- the end

    def close_idle(self) -> None:
        """Close, where no request has begun."""
        if self._phase is Phase.IDLE or (self._phase is Phase.HEAD and not self._head_raw):
            self._close()

    def cut(self) -> None:
        """Close at once, and cancel what is under way."""
        self._leave("cut")
        self._transport.abort()

    def _close(self) -> None:
        """Let what has been written go out; where the client may still be sending, read on and drop it."""
        if self._phase is Phase.LEAVING:
            return
        self._phase = Phase.LEAVING
        self._watch_buffer()
        if self._deaf and self._transport.can_write_eof():
            self._transport.write_eof()
            if self._paused:
                self._transport.resume_reading()
        else:
            self._deaf = True
            self._transport.close()

    def _leave(self, event: str) -> None:
        """The client is gone."""
        self._deaf = True
        self._held.clear()
        self._queue.clear()
        answer, task = self._answer, self._task
        self._answer = self._task = None
        if answer is not None and task is not None:
            answer.ended = True
            self._keeper.count(event)
            task.cancel()
        self._wake()
        if self._phase is not Phase.LEAVING:
            self._phase = Phase.LEAVING
            self._watch_buffer()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


def _bad(message: str) -> Refusal:
    return Refusal(400, "bad_request", message)


def split_target(target: bytes) -> tuple[str, str]:
    """Take a request's target apart into path and query.

    errors   Refusal
    """
    text = target.decode("ascii")
    if not text.startswith("/") and text != "*":
        scheme, colon, rest = text.partition("://")
        if not colon or scheme.lower() not in {"http", "https"}:
            raise _bad("the target must be a path")
        place = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
        text = rest[place:] if rest[place:].startswith("/") else f"/{rest[place:]}"
    if "#" in text:
        raise _bad("the target must not hold a fragment")
    path, _, query = text.partition("?")
    return path, query
