"""One client's connection: bytes in, requests out in their order, answers back. Keeps the limits; its server keeps the clock."""

import asyncio
from collections import deque
from enum import Enum
from typing import Protocol, cast

from live_bridge.http.answer import Answer, House
from live_bridge.http.incoming import SLICE_BYTES, Incoming
from live_bridge.http.message import STATUS_LINES, Count, Limits, Refusal, Request, error_body

HELD_BYTES = 65536
"""Kept of what a client sends while its last request is worked on; more stays in the kernel, and then its leaving is seen late."""
LINGER_S = 2.0
"""How long what a refused client still sends is read and dropped: closing at once would take the refusal from it (RST)."""
NEVER = float("inf")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(Enum):
    """What the deadline is for."""

    IDLE = "the next request"
    HEAD = "the rest of a head"
    BODY = "a window of a body"
    WORK = "nothing: the handler is at work"
    LEAVING = "the client to take the rest and close"


WORK = Phase.WORK


class Keeper(House, Protocol):
    """What a connection needs of its server."""

    limits: Limits
    count: Count
    tick_s: float  # seconds of the loop's clock when it was last looked at

    def opened(self, connection: "Connection") -> bool:
        """Take note of a connection; False when there are too many."""

    def closed(self, connection: "Connection") -> None:
        """Forget a connection."""

    def now_s(self) -> float:
        """Seconds of the loop's clock."""

    def start(self, answer: Answer) -> "asyncio.Task[None]":
        """Run the handler."""


class Connection(asyncio.Protocol):
    """Reads requests one after the other. A client that ends its half of the connection has left (as nginx and hyper have it)."""

    __slots__ = (
        "_answer", "_deaf", "_held", "_incoming", "_keeper", "_mark", "_paused", "_phase", "_queue", "_room", "_task", "_transport",
        "deadline_s", "full",
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

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse one too many."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._incoming = Incoming(self._keeper.limits, str(peer[0]) if isinstance(peer, tuple) else "", self._whole)
        self.deadline_s = self._keeper.now_s() + self._keeper.limits.header_s
        if not self._keeper.opened(self):
            self._refuse(Refusal(503, "connections_full", "too many connections; try again later"))
            self._transport.close()  # too many to linger

    def data_received(self, data: bytes) -> None:
        """Parse, or hold what is pipelined behind a request that is worked on."""
        if self._deaf:
            return
        if self._phase is not WORK:
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
        self._set_deadline()
        self._wake()
        if self._phase is Phase.WORK and self._answer is None:
            self._go_on()

    # -- requests

    def _feed(self, data: bytes) -> None:
        """Parse until a request is whole; hold what is behind it."""
        incoming = self._incoming
        try:
            if len(data) <= SLICE_BYTES:
                self._deaf = not incoming.feed(
                    data
                )  # what follows is of another protocol, of which we do as if it had not been asked
            else:
                view = memoryview(data)
                for place in range(0, len(data), SLICE_BYTES):
                    if self._answer is not None:
                        self._held += view[place:]
                        break
                    self._deaf = not incoming.feed(view[place : place + SLICE_BYTES])
                    if self._deaf:
                        break
        except Refusal as refusal:
            self._refuse(refusal)
        if self._answer is None and not self._deaf:
            self._wait()

    def _whole(self, request: Request, keep: bool, old: bool) -> None:
        answer = Answer(self, self._keeper, request, keep=keep, old=old)
        if self._answer is None:
            self._work(answer)
        else:
            self._queue.append(answer)

    def _work(self, answer: Answer) -> None:
        self._answer = answer
        self._phase = WORK
        if self.full:
            self._watch_buffer()
        else:
            self.deadline_s = NEVER
        self._task = self._keeper.start(answer)

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
        self.put(head % (STATUS_LINES[refusal.status], len(body), self._keeper.preamble) + body)
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

    def answered(self, *, keep: bool) -> None:
        """Go on to the next request, or close."""
        self._answer = self._task = None
        if not keep or self._keeper.draining:
            self._close()
        elif not self.full:  # else a client that asks and never reads would fill our memory
            self._go_on()

    def _go_on(self) -> None:
        """Take the next request."""
        if self._queue:
            first = self._queue.popleft()
            if isinstance(first, Refusal):
                self._turn_away(first)
            else:
                self._work(first)
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

    def abort(self) -> None:
        """Close at once."""
        self._answer = self._task = None
        self._transport.abort()

    # -- time

    def _wait(self) -> None:
        """Find what the client is to send next, and how long that may take."""
        incoming = self._incoming
        if incoming.in_body:
            phase = Phase.BODY
            if incoming.wants_continue():
                self.put(CONTINUE)
        elif incoming.in_head or self._phase is Phase.HEAD:  # a fresh connection has no more time than a head
            phase = Phase.HEAD
        else:
            phase = Phase.IDLE
        if phase is not self._phase:
            self._phase = phase
            self._set_deadline()

    def _set_deadline(self) -> None:
        """Give the client, from now, what its phase allows."""
        keeper, phase = self._keeper, self._phase
        if self.full:
            self._watch_buffer()
        elif phase is Phase.WORK:
            self.deadline_s = NEVER
        elif phase is Phase.IDLE:
            self.deadline_s = keeper.tick_s + keeper.limits.keepalive_s
        elif phase is Phase.HEAD:
            self.deadline_s = keeper.now_s() + keeper.limits.header_s
        elif phase is Phase.BODY:
            self._mark = self._incoming.body_bytes
            self.deadline_s = keeper.now_s() + keeper.limits.body_s
        else:
            self._watch_buffer()

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
            if self._incoming.body_bytes - self._mark >= limits.body_s * limits.body_floor_bytes_s:
                self._set_deadline()
            else:
                self._refuse(Refusal(408, "slow_body", f"the body comes at less than {limits.body_floor_bytes_s} bytes a second"))
        elif self._phase is Phase.HEAD and self._incoming.in_head:
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
        if self._phase is Phase.IDLE or (self._phase is Phase.HEAD and not self._incoming.in_head):
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
