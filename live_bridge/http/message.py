"""What both sides of HTTP share: requests, answers, limits, errors and the bytes of a head. Knows no socket."""

from collections.abc import AsyncIterator, Callable, Coroutine
from functools import lru_cache
from http import HTTPStatus
from ssl import SSLContext
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

import orjson

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, in the order in which they came."""
Count = Callable[[str], None]
"""Is told the name of each event that a metric counts."""

FRAMING = frozenset({b"connection", b"content-length", b"date", b"keep-alive", b"transfer-encoding"})
"""Headers that say where a message ends: the protocol writes them itself, and drops a caller's."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Asking these again changes nothing (RFC 9110, 9.2.1)."""
BODILESS = frozenset({204, 304})
STATUS_LINES = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Limits(NamedTuple):
    """What one client may send, and how slowly; seconds are those on the wall."""

    header_bytes: int = 32768
    body_bytes: int = 8 * 2**20
    header_s: float = 10.0  # from a head's first byte to its last
    body_s: float = 30.0  # a window: each must bring body_floor_bytes_s a second, and a slow reader must take something
    body_floor_bytes_s: int = 1000
    keepalive_s: float = 75.0
    connections: int = 4096


class HttpError(OSError):
    """An exchange with another server came to nothing; the text names the URL and the reason."""


class ConnectFailed(HttpError):  # noqa: N818 - it says what happened
    """No connection: refused, not resolved, not trusted, or not there in time. Nothing was sent."""


class Broken(HttpError):  # noqa: N818 - it says what happened
    """The connection ended, or what came was not HTTP, before the answer was whole."""

    def __init__(self, message: str, *, sent: bool) -> None:
        """Say whether the request was `sent`: then the server may have acted on it."""
        super().__init__(message)
        self.sent = sent


class TimedOut(HttpError):  # noqa: N818 - it says what happened
    """The answer did not begin in time; the server may have acted on the request."""


class TooLarge(HttpError):  # noqa: N818 - it says what happened
    """The body of an answer is longer than the caller accepts."""


class Refusal(ValueError):  # noqa: N818 - it says what happened
    """A request is answered by the protocol itself; `code` is its name in metrics and in the answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Request:
    """One request, whole."""

    __slots__ = ("body", "headers", "method", "path", "peer", "query")

    def __init__(self, method: str, path: str, query: str, headers: Headers, body: bytes, peer: str) -> None:
        """Take what came.

        path    as sent, before the first '?'; begins with '/', or is '*'
        query   as sent, behind the first '?'
        body    within the limits, chunks joined
        peer    the client's IP address
        """
        self.method, self.path, self.query = method, path, query
        self.headers, self.body, self.peer = headers, body, peer

    def header(self, name: bytes) -> bytes | None:
        """Find the first header of this name (lower case)."""
        return header_of(self.headers, name)


class Response(Protocol):
    """The answer to one request. Every method does nothing once the client has left: the handler is being cancelled."""

    @property
    def started(self) -> bool:
        """Whether a head has been written."""

    @property
    def ended(self) -> bool:
        """Whether nothing more can be written: whole, or aborted."""

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer whole, with its length."""

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer whose length is not known."""

    async def write(self, data: bytes) -> None:
        """Add to a started answer; waits while the client is slower than we."""

    def end(self) -> None:
        """End a started answer; the connection takes its next request."""

    def abort(self) -> None:
        """Break off: the client sees that the answer is not whole."""


Handler = Callable[[Request, Response], Coroutine[Any, Any, None]]
"""Answers one request. Cancelled at once when the client leaves before the answer has ended."""


class Reply(Protocol):
    """A server's answer, whose body may still be coming. Iterate, or take `body`; close it when it is not read to its end."""

    status: int
    headers: Headers

    def header(self, name: bytes) -> bytes | None:
        """Find the first header of this name (lower case)."""

    async def body(self, limit_bytes: int) -> bytes:
        """Read all of it.

        errors   TooLarge, and the connection is closed; Broken
        """

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes:
        """Give what has arrived since, never empty.

        errors   Broken when the connection ended too early
        """

    def close(self) -> None:
        """Leave: an unfinished exchange is aborted, so that the server sees it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class HttpServer(Protocol):
    """A front, by our own protocol code or by aiohttp."""

    @property
    def connections(self) -> int:
        """Open at this moment."""

    async def listen(self, host: str, port: int, tls: SSLContext | None = None) -> int:
        """Accept connections; port 0 takes any that is free. Returns the port."""

    async def drain(self, timeout_s: float) -> None:
        """Accept no more, let answers under way end within `timeout_s`, then close everything."""

    def close(self) -> None:
        """Close everything now; handlers are cancelled."""


class HttpClient(Protocol):
    """What asks other servers."""

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
        tls: SSLContext | None = None,
    ) -> Reply:
        """Send a request and wait until the head of its answer is there. Never follows a redirect.

        url            http or https
        address        IP to connect to; the URL's host then only names itself in Host and SNI
        connect_s      s on the wall
        first_byte_s   s on the wall from sending to the answer's head; None = as long as it takes
        errors         ConnectFailed, Broken, TimedOut
        """

    async def close(self) -> None:
        """Close all connections; requests under way end as Broken."""


class Place(NamedTuple):
    """A URL, taken apart."""

    scheme: str
    host: str
    port: int
    origin: str  # the three together
    host_line: bytes  # the header Host
    target: bytes  # path and query


@lru_cache(maxsize=1024)
def place_of(url: str) -> Place:
    """Take a URL apart.

    errors   ValueError naming it
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or not url.isascii():
        raise ValueError(f"{url!r}: must be http://HOST[:PORT]/... or https://..., in ASCII, without a user")
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    if not url.isprintable() or " " in url:
        raise ValueError(f"{url!r}: holds a space or a control character; quote it")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    origin = f"{parts.scheme}://{parts.hostname}:{port}"
    return Place(parts.scheme, parts.hostname, port, origin, b"host: %b\r\n" % parts.netloc.encode(), target.encode())


def header_of(headers: Headers, name: bytes) -> bytes | None:
    """Find the first header of this name (lower case)."""
    for known, value in headers:
        if known == name:
            return value
    return None


def header_bytes(headers: Headers) -> bytes:
    """Write headers as they travel, without those of the framing.

    errors   ValueError when one would begin a line of its own
    """
    lines = [name + b": " + value for name, value in headers if name not in FRAMING]
    lines.append(b"")
    text = b"\r\n".join(lines)
    if len(text) - len(text.translate(None, b"\r\n\0")) != 2 * (len(lines) - 1):  # more than our own line breaks
        raise ValueError("headers: a name or value holds a line break or NUL")
    return text


def error_body(status: int, code: str, message: str) -> bytes:
    """Write an error as OpenAI's API does, in JSON."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
