"""The same server and client over aiohttp: what ours is compared with, and what a node runs with `http: aiohttp`.

Limits of size and the cancellation of handlers are kept; aiohttp knows no deadline for a head, so that a slow sender of one is not
cut off, and a body has `body_s` in all.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Self

import aiohttp
from aiohttp import web
from yarl import URL

from live_bridge.http.client import KEPT_S, WITH_BODY
from live_bridge.http.incoming import split_target
from live_bridge.http.message import (
    BODILESS,
    FRAMING,
    Broken,
    ConnectFailed,
    Count,
    Handler,
    Headers,
    HttpError,
    Limits,
    Refusal,
    Request,
    TimedOut,
    TooLarge,
    error_body,
    header_bytes,
    header_of,
    place_of,
)
from live_bridge.http.server import BACKLOG, conclude

AHEAD = 2
"""Pieces of an answer between handler and socket."""
MOST_HEADERS = 1000


class AiohttpAnswer:
    """The Response to one request: the handler writes it in a task of its own, and aiohttp's task sends it."""

    def __init__(self, request: web.BaseRequest, asked: Request) -> None:
        self._transport = request.transport
        self.request = asked
        self.started = self.ended = False
        self.head: asyncio.Future[tuple[int, Headers, bytes | None]] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()  # the last is empty
        self.room = asyncio.Semaphore(AHEAD)

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer whole, with its length."""
        self._begin(status, headers, body)
        self.ended = True

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer whose length is not known."""
        self._begin(status, headers, None)

    async def write(self, data: bytes) -> None:
        """Add to a started answer; waits while the client is slower than we."""
        if not self.started:
            raise RuntimeError("write: the answer has not been started")
        if data and not self.ended:
            await self.room.acquire()
            self.pieces.put_nowait(data)

    def end(self) -> None:
        """End a started answer."""
        if not self.started:
            raise RuntimeError("end: the answer has not been started")
        self.ended = True
        self.pieces.put_nowait(b"")

    def abort(self) -> None:
        """Break off: the client sees that the answer is not whole."""
        if not self.ended:
            self.ended = True
            if self._transport is not None:
                self._transport.abort()

    def _begin(self, status: int, headers: Headers, body: bytes | None) -> None:
        if self.started:
            raise RuntimeError("send: the answer has been started already")
        header_bytes(headers)
        self.started = True
        if not self.head.done():
            self.head.set_result((status, headers, body))


class AiohttpServer:
    """A front."""

    def __init__(self, handler: Handler, limits: Limits, count: Count) -> None:
        """Take the handler that answers requests, and a counter of events."""
        self._handler, self._limits, self._count = handler, limits, count
        self._server: web.Server | None = None
        self._listeners: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Open at this moment."""
        return 0 if self._server is None else len(self._server.connections)

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Accept connections; port 0 takes any that is free. Returns the port."""
        loop = asyncio.get_running_loop()
        if self._server is None:
            self._server = web.Server(
                self._handle,
                request_factory=self._wrap,
                handler_cancellation=True,
                keepalive_timeout=self._limits.keepalive_s,
                access_log=None,
                auto_decompress=False,
                max_line_size=self._limits.header_bytes,
                max_field_size=self._limits.header_bytes,
                max_headers=MOST_HEADERS,
            )
        listener = await loop.create_server(self._server, host, port, ssl=tls, backlog=BACKLOG)
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, let answers under way end within `timeout_s`, then close everything."""
        self._stop_listening()
        if self._server is not None:
            self._server.pre_shutdown()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        if self._server is not None:
            await self._server.shutdown(timeout_s)
        self.close()

    def close(self) -> None:
        """Close everything now; handlers are cancelled."""
        self._stop_listening()
        for connection in [] if self._server is None else self._server.connections:
            connection.force_close()
        for task in list(self._tasks):
            task.cancel()

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _wrap(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=self._limits.body_bytes)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            asked = await self._read(request)
        except Refusal as refusal:
            self._count(refusal.code)
            body = error_body(refusal.status, refusal.code, str(refusal))
            response = web.Response(status=refusal.status, body=body, content_type="application/json")
            response.force_close()
            return response
        answer = AiohttpAnswer(request, asked)
        task = asyncio.get_running_loop().create_task(self._handler(asked, answer))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, answer))
        try:
            return await _send(request, answer)
        finally:
            if not answer.ended:
                answer.ended = True
                self._count("client_left")
                task.cancel()

    async def _read(self, request: web.BaseRequest) -> Request:
        limits = self._limits
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        if sum(len(name) + len(value) + 4 for name, value in headers) > limits.header_bytes:
            raise Refusal(431, "header_too_large", f"the head is longer than {limits.header_bytes} bytes")
        hosts = sum(name == b"host" for name, _ in headers)
        if hosts != 1 and (hosts or request.version.minor):
            raise Refusal(400, "bad_request", "a request names its host once")
        target = request.raw_path
        if not target.isascii() or request.method == "CONNECT":
            raise Refusal(400, "bad_request", "the target must be a path")
        path, query = split_target(target.encode(), request.method)
        too_large = Refusal(413, "body_too_large", f"the body is longer than {limits.body_bytes} bytes")
        if (request.content_length or 0) > limits.body_bytes:
            raise too_large
        if (header_of(headers, b"expect") or b"").lower() == b"100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            async with asyncio.timeout(limits.body_s):
                body = await request.read()
        except TimeoutError:
            raise Refusal(408, "slow_body", f"the body has taken more than {limits.body_s:g} s") from None
        except web.HTTPRequestEntityTooLarge:
            raise too_large from None
        return Request(request.method, path, query, headers, body, request.remote or "")

    def _done(self, answer: AiohttpAnswer, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        conclude(answer.request, answer, task, self._count)


async def _send(request: web.BaseRequest, answer: AiohttpAnswer) -> web.StreamResponse:
    status, headers, body = await answer.head
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name not in FRAMING]
    if body is not None:
        return web.Response(status=status, headers=aiohttp.typedefs.CIMultiDict(pairs), body=body)
    response = web.StreamResponse(status=status, headers=aiohttp.typedefs.CIMultiDict(pairs))
    await response.prepare(request)
    bare = request.method == "HEAD" or status in BODILESS  # aiohttp would write the body all the same
    while piece := await answer.pieces.get():
        if not bare:
            await response.write(piece)
        answer.room.release()
    if not bare:
        await response.write_eof()
    return response


class AiohttpReply:
    """The Reply of one exchange."""

    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self.status = response.status
        self.headers: Headers = [(name.lower(), value) for name, value in response.raw_headers]
        self._response, self._url = response, url

    def header(self, name: bytes) -> bytes | None:
        """Find the first header of this name (lower case)."""
        return header_of(self.headers, name)

    async def body(self, limit_bytes: int) -> bytes:
        """Read all of it."""
        found = bytearray()
        async for piece in self:
            found += piece
            if len(found) > limit_bytes:
                self.close()
                raise TooLarge(f"{self._url}: the answer is longer than {limit_bytes} bytes")
        return bytes(found)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Give what has arrived since, never empty."""
        try:
            piece = await self._response.content.readany()
        except (aiohttp.ClientError, ConnectionError) as error:
            self.close()
            raise _broken(self._url, error) from error
        if not piece:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Leave: an unfinished exchange is aborted, so that the server sees it."""
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AiohttpClient:
    """Asks other servers."""

    def __init__(self, kept_s: float = KEPT_S, trust: ssl.SSLContext | None = None) -> None:
        """Say how long idle connections are kept; `trust` in certificates, None: the system's."""
        self._kept_s = kept_s
        self._trust = trust
        self._session: aiohttp.ClientSession | None = None

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
    ) -> AiohttpReply:
        """Send a request and wait until the head of its answer is there; see message.HttpClient."""
        place = place_of(url)
        header_bytes(headers or [])
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers or [] if name not in FRAMING]
        if header_of(headers or [], b"host") is None:
            pairs.append(("host", place.host_line.decode().split()[1]))
        host = address or place.host
        host = f"[{host}]" if ":" in host else host
        try:
            async with asyncio.timeout(None if first_byte_s is None else connect_s + first_byte_s):
                response = await self._opened().request(
                    method,
                    URL(f"{place.scheme}://{host}:{place.port}{place.target.decode()}", encoded=True),
                    headers=aiohttp.typedefs.CIMultiDict(pairs),
                    data=body if body or method in WITH_BODY else None,
                    allow_redirects=False,
                    server_hostname=place.host if place.scheme == "https" else None,
                    ssl=tls or self._trust or True,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
                )
        except (aiohttp.ClientError, OSError) as error:
            raise _meaning(url, error) from error
        return AiohttpReply(response, url)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=self._kept_s),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session


def _meaning(url: str, error: Exception) -> HttpError:
    """Say in our words what aiohttp says."""
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)):
        return ConnectFailed(f"{url}: no connection: {error}")
    if isinstance(error, TimeoutError):
        return TimedOut(f"{url}: the answer has not begun in time")
    return _broken(url, error)


def _broken(url: str, error: Exception) -> Broken:
    return Broken(f"{url}: the connection ended before the answer was whole ({error})", sent=True)
