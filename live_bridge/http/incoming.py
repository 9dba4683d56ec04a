"""Requests out of bytes: what of HTTP/1.1 is taken, what is refused, and how much of it. Knows no socket and no clock."""

from collections.abc import Callable
from functools import lru_cache

import httptools

from live_bridge.http.message import Headers, Limits, Refusal, Request

SLICE_BYTES = 16384
"""Fed at a time, so that a burst of pipelined requests is cut short where the first of them is answered."""
CHUNK_BYTES = 16
"""What a chunk may say about itself, on average; more is a way to make us read for nothing."""
WATCHED = frozenset({b"content-length", b"expect", b"host", b"transfer-encoding"})
Whole = Callable[[Request, bool, bool], None]


class Incoming:
    """Reads the requests of one connection."""

    __slots__ = (
        "_body", "_chunked", "_chunks", "_expects", "_headers", "_hosts", "_keep", "_length", "_limits", "_method", "_old",
        "_parser", "_path", "_peer", "_query", "_raw", "_size", "_sure", "_target", "_turn", "_whole", "in_body",
    )  # fmt: skip

    def __init__(self, limits: Limits, peer: str, whole: Whole) -> None:
        """Begin.

        peer    the client's IP address
        whole   called with each whole request, whether it wants to ask again, and whether it speaks HTTP/1.0
        """
        self._limits, self._peer, self._whole = limits, peer, whole
        self._parser = httptools.HttpRequestParser(self)
        self._sure = limits.header_bytes - SLICE_BYTES  # so few bytes, and a slice that was begun by another request, are within it
        self._turn = 0
        self._begin()

    def _begin(self) -> None:
        self._target = b""
        self._headers: Headers = []
        self._body: bytes | bytearray = b""
        self._raw = self._size = self._chunks = self._hosts = self._length = 0
        self.in_body = self._expects = self._chunked = False

    @property
    def in_head(self) -> bool:
        """Whether a head has begun, as far as it came in a piece of its own."""
        return not self.in_body and self._raw > 0

    @property
    def body_bytes(self) -> int:
        """How much of the body has come."""
        return len(self._body)

    def feed(self, data: bytes | memoryview) -> bool:
        """Parse; False when what follows is of another protocol.

        errors   Refusal: nothing more can be read
        """
        turn = self._turn
        self._raw += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return False
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, Refusal):
                raise error.__context__ from None
            raise
        except httptools.HttpParserError:
            raise _bad("this is not HTTP/1.1") from None
        if turn == self._turn:
            self._measure()
        return True

    def wants_continue(self) -> bool:
        """Whether the client waits to be told to send the body; True once."""
        wants = self._expects and not self._body and not self._old
        self._expects = False
        return wants

    def _measure(self) -> None:
        """Look at how much the parser keeps for itself, or reads for nothing."""
        if not self.in_body:
            self._check_head(self._raw)
        elif self._raw - len(self._body) - CHUNK_BYTES * self._chunks > self._limits.header_bytes + SLICE_BYTES:
            raise _bad("more is said about the chunks than is in them")

    # -- the parser's calls

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or drop a trailer."""
        if self.in_body:
            self._size += len(name) + len(value) + 4
            self._check_head(self._size)
            return
        name = name.lower()
        value = value.rstrip(b" \t")
        if name in WATCHED:
            self._watch(name, value)
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check a head."""
        parser = self._parser
        version = parser.get_http_version()
        self._old = version == "1.0"
        if version != "1.1" and not self._old:
            raise Refusal(505, "bad_request", f"HTTP/{version} is not spoken here, HTTP/1.1 is")
        if self._raw > self._sure:
            self._check_head(sum(len(name) + len(value) + 4 for name, value in self._headers) + len(self._target))
        if self._length:
            self._check_body(self._length)
        if self._hosts != 1 and (self._hosts or not self._old):
            raise _bad("a request names its host once")
        if self._old and self._chunked:
            raise _bad("HTTP/1.0 has no transfer codings")
        self._method = parser.get_method().decode()
        if self._method == "CONNECT":
            raise Refusal(501, "bad_request", "this is not a proxy")
        self._path, self._query = split_target(self._target, self._method)
        self._keep = parser.should_keep_alive()
        self.in_body = True
        self._raw = 0

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
        self._check_body(len(self._body))

    def on_message_complete(self) -> None:
        """Hand over a whole request."""
        body = self._body
        request = Request(
            self._method, self._path, self._query, self._headers, body if type(body) is bytes else bytes(body), self._peer
        )
        self._turn += 1
        self._begin()
        self._whole(request, self._keep, self._old)

    # -- rules

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

    def _check_head(self, size: int) -> None:
        most = self._limits.header_bytes
        if size > most:
            raise Refusal(431, "header_too_large", f"the head is longer than {most} bytes")

    def _check_body(self, size: int) -> None:
        most = self._limits.body_bytes
        if size > most:
            raise Refusal(413, "body_too_large", f"the body is longer than {most} bytes")


@lru_cache(maxsize=256)
def split_target(target: bytes, method: str) -> tuple[str, str]:
    """Take a request's target apart into path and query.

    errors   Refusal
    """
    text = target.decode("ascii")
    if text.startswith("/") or (text == "*" and method == "OPTIONS"):
        pass
    elif text.lower().startswith(("http://", "https://")):
        rest = text.partition("://")[2]
        place = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
        text = rest[place:] if rest[place:].startswith("/") else f"/{rest[place:]}"
    else:
        raise _bad("the target must be a path")
    if "#" in text:
        raise _bad("the target must not hold a fragment")
    path, _, query = text.partition("?")
    return path, query


def _bad(message: str) -> Refusal:
    return Refusal(400, "bad_request", message)
