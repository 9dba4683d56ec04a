"""A bare client and a bare server for tests of HTTP: bytes out, bytes in, and an answer read by rules of its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import uvloop

from live_bridge.http.message import Handler, HttpServer, Limits, Request, Response
from live_bridge.http.server import Server

Found = TypeVar("Found")
HOST = "127.0.0.1"
SOON_S = 5.0
LIMITS = Limits()
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def run(scenario: Coroutine[Any, Any, Found]) -> Found:
    """Run to the end, or fail after 30 s."""
    return uvloop.run(asyncio.wait_for(scenario, 30))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            with contextlib.suppress(RuntimeError):  # uvloop's word for a connection that the other side has closed
                self.writer.write(piece)

    async def head(self) -> tuple[int, dict[str, str]]:
        text = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), SOON_S)
        first, *lines = text.decode("latin-1").split("\r\n")[:-2]
        version, status, *_ = first.split(" ", 2)
        assert version in {"HTTP/1.1", "HTTP/1.0"}
        headers = {}
        for line in lines:
            name, colon, value = line.partition(": ")
            assert colon and name.lower() not in headers, line
            headers[name.lower()] = value
        if version == "HTTP/1.0":
            headers.setdefault("connection", "close")
        return int(status), headers

    async def answer(self, *, to_head: bool = False) -> Answer:
        status, headers = await self.head()
        assert not ("content-length" in headers and "transfer-encoding" in headers)
        if to_head or status in {100, 204, 304}:
            return Answer(status, headers, b"", True)
        if "content-length" in headers:
            body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), SOON_S)
            return Answer(status, headers, body, True)
        if "transfer-encoding" not in headers:
            return Answer(status, headers, await asyncio.wait_for(self.reader.read(), SOON_S), True)
        pieces = []
        try:
            while piece := await self.chunk():
                pieces.append(piece)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return Answer(status, headers, b"".join(pieces), False)
        return Answer(status, headers, b"".join(pieces), True)

    async def chunk(self) -> bytes:
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), SOON_S), 16)
        data = await asyncio.wait_for(self.reader.readexactly(size + 2), SOON_S)
        assert data[-2:] == b"\r\n"
        return data[:-2]

    async def ended(self) -> bytes:
        """What comes until the server ends the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(), SOON_S)
        except ConnectionResetError:
            return b""

    def leave(self) -> None:
        self.writer.transport.abort()


class Front:
    """A server under test, what its handler was asked, and what it counted."""

    def __init__(self, handler: Handler | None, limits: Limits, make: Callable[..., HttpServer]) -> None:
        self.asked: list[Request] = []
        self.counts: list[str] = []
        self.server = make(self.handle, limits, self.counts.append)
        self._handler = handler
        self.port = self.over = 0
        self.wires: list[Wire] = []

    async def handle(self, request: Request, response: Response) -> None:
        self.asked.append(request)
        try:
            if self._handler is not None:
                await self._handler(request, response)
            else:
                response.send(200, [(b"content-type", b"text/plain")], request.body)
        finally:
            self.over += 1

    async def wire(self) -> Wire:
        wire = Wire(*await asyncio.open_connection(HOST, self.port))
        self.wires.append(wire)
        return wire

    async def ask(self, *pieces: bytes) -> Answer:
        wire = await self.wire()
        wire.say(*pieces)
        return await wire.answer()

    def url(self, path: str = "/") -> str:
        return f"http://{HOST}:{self.port}{path}"


@asynccontextmanager
async def front(
    handler: Handler | None = None, limits: Limits = LIMITS, make: Callable[..., HttpServer] = Server
) -> AsyncIterator[Front]:
    """Serve for the length of a test; the default handler answers with the body it got."""
    one = Front(handler, limits, make)
    one.port = await one.server.listen(HOST, 0)
    try:
        yield one
    finally:
        for wire in one.wires:
            wire.leave()
        one.server.close()
        await until(lambda: one.server.connections == 0)


async def until(true: Callable[[], bool], within_s: float = SOON_S) -> float:
    """Let the loop turn until something is so; returns how long that took (s)."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    while not true():
        assert loop.time() - start_s < within_s, "it has not come to be"
        await asyncio.sleep(0.001)
    return loop.time() - start_s


def post(body: bytes, *headers: bytes, path: bytes = b"/") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST %b HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n%b" % (path, lines, len(body), body)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@asynccontextmanager
async def backend(talk: Callable[[Wire], Awaitable[None]]) -> AsyncIterator[tuple[int, list[Wire]]]:
    """A server that says what a test wants it to say; yields its port and the connections it has seen."""
    seen: list[Wire] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        seen.append(wire)
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            await talk(wire)
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request_head(wire: Wire) -> bytes:
    """The head of a request, and its body read away."""
    head = await wire.reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await wire.reader.readexactly(int(line.partition(b":")[2]))
    return head
