"""Our own HTTP server: accepts connections, runs handlers, and looks at every connection's deadline in one sweep."""

import asyncio
import logging
import traceback
from email.utils import formatdate
from ssl import SSLContext

from live_bridge.http.answer import Answer
from live_bridge.http.connection import Connection
from live_bridge.http.message import Count, Handler, Limits, Request, Response, error_body

SWEEPS = 10
"""Sweeps within the shortest limit; at least one a second."""
BACKLOG = 4096
LOG = logging.getLogger(__name__)
JSON = [(b"content-type", b"application/json")]


class Server:
    """A front."""

    def __init__(self, handler: Handler, limits: Limits, count: Count) -> None:
        """Take the handler that answers requests, and a counter of events: refusals by their code, client_left, handler_failed."""
        self._handler = handler
        self.limits = limits
        self.count = count
        self.draining = False
        self.preamble = b""
        self.tick_s = 0.0
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None
        self._period_s = min(1.0, min(limits.header_s, limits.body_s, limits.keepalive_s) / SWEEPS)

    @property
    def connections(self) -> int:
        """Open at this moment."""
        return len(self._connections)

    async def listen(self, host: str, port: int, tls: SSLContext | None = None) -> int:
        """Accept connections; port 0 takes any that is free. Returns the port."""
        self._loop = asyncio.get_running_loop()
        if self._sweeper is None:
            self._sweep()
        listener = await self._loop.create_server(
            lambda: Connection(self),
            host,
            port,
            ssl=tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=self.limits.header_s if tls else None,
        )
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, let answers under way end within `timeout_s`, then close everything."""
        self.draining = True
        self._stop_listening()
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_empty(self._tasks)
                for connection in list(self._connections):
                    connection.close_idle()
                await self._until_empty(self._connections)
        except TimeoutError:
            self.count("drain_cut")
        self.close()

    def close(self) -> None:
        """Close everything now; handlers are cancelled."""
        self.draining = True
        self._stop_listening()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._connections):
            connection.cut()
        for task in list(self._tasks):
            task.cancel()

    # -- the connections' calls

    def opened(self, connection: Connection) -> bool:
        """Take note of a connection; False when there are too many."""
        self._connections.add(connection)
        return len(self._connections) <= self.limits.connections

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        self._notice()

    def now_s(self) -> float:
        """Seconds of the loop's clock."""
        return self._loop.time()

    def start(self, answer: Answer) -> "asyncio.Task[None]":
        """Run the handler."""
        task = self._loop.create_task(self._handler(answer.request, answer))
        self._tasks.add(task)
        task.add_done_callback(answer.done)
        return task

    def done(self, answer: Answer, task: "asyncio.Task[None]") -> None:
        """Look at how a handler ended."""
        self._tasks.discard(task)
        self._notice()
        conclude(answer.request, answer, task, self.count)

    # -- the rest

    def _sweep(self) -> None:
        self.tick_s = self._loop.time()
        self.preamble = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        for connection in [one for one in self._connections if one.deadline_s <= self.tick_s]:
            connection.late()
        self._sweeper = self._loop.call_later(self._period_s, self._sweep)

    async def _until_empty(self, these: set[Connection] | set[asyncio.Task[None]]) -> None:
        while these:
            self._quiet = self._loop.create_future()
            await self._quiet

    def _notice(self) -> None:
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


def conclude(request: Request, answer: Response, task: "asyncio.Task[None]", count: Count) -> None:
    """Look at how a handler ended: one that fails, or leaves without an answer, is a 500 or a broken stream."""
    if task.cancelled():
        answer.abort()
        return
    error = task.exception()
    if error is None and answer.ended:
        return
    count("handler_failed")
    LOG.error("%s %s: %s", request.method, request.path, failure(error))
    if answer.started:
        answer.abort()
    elif not answer.ended:
        answer.send(500, JSON, error_body(500, "handler_failed", "the server failed to answer this request"))


def failure(error: BaseException | None) -> str:
    """Say what failed and where, without its text: that may quote a prompt."""
    if error is None:
        return "the handler ended without an answer"
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-3:]]
    return f"{type(error).__name__} at {', '.join(places)}"
