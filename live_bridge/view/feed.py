"""Gives the live page and its snapshots to any number of browsers. A slow one loses old snapshots; it never holds the node up."""

import asyncio
import base64
import hashlib
import re
from collections import deque
from importlib import resources

import orjson

from live_bridge.http.message import Headers, Request, Response, error_body
from live_bridge.view.snapshot import Snapshot
from live_bridge.view.words import words

PAGE_PATH = "/"
EVENTS_PATH = "/live/events"
MOST_WATCHERS = 64
HELD = 2
"""Snapshots that wait for one browser."""
SILENCE_S = 15.0
"""Seconds on the wall after which a comment is sent: whoever has left is noticed, and proxies keep the stream."""
HERE = b": here\n\n"
BYE = b"event: bye\ndata: {}\n\n"
EVENT_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class _Watcher:
    """One browser's queue."""

    __slots__ = ("news", "over", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque(maxlen=HELD)
        self.news = asyncio.Event()
        self.over = False

    def offer(self, event: bytes) -> None:
        self.waiting.append(event)
        self.news.set()

    def end(self) -> None:
        self.over = True
        self.news.set()

    async def next(self) -> bytes | None:
        """Wait for what is due: an event, or HERE after SILENCE_S without one; None when all is given and no more will come."""
        if not self.waiting and not self.over:
            self.news.clear()
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self.news.wait()
            except TimeoutError:
                return HERE
        return self.waiting.popleft() if self.waiting else None


class Feed:
    """The latest snapshot and those who watch."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._latest: bytes | None = None
        self._serial = 0
        self._closed = False
        self._words = b"retry: 2000\nevent: words\ndata: %b\n\n" % orjson.dumps(words())
        self._page = (resources.files("live_bridge.view") / "page.html").read_bytes()
        self._tag = b'"%s"' % hashlib.sha256(self._page).hexdigest()[:32].encode()
        self._page_headers: Headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"etag", self._tag),
            (b"content-security-policy", content_policy(self._page)),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    @property
    def watchers(self) -> int:
        """Browsers that watch at this moment."""
        return len(self._watchers)

    def publish(self, snapshot: Snapshot) -> None:
        """Show a snapshot to all who watch, and to whoever comes next. Waits for nobody.

        errors   TypeError for a value that JSON has no form for
        """
        self._serial += 1
        self._latest = b"id: %d\ndata: %b\n\n" % (self._serial, orjson.dumps(snapshot))
        for watcher in self._watchers:
            watcher.offer(self._latest)

    async def handle(self, request: Request, response: Response) -> None:
        """Answer GET for PAGE_PATH and EVENTS_PATH."""
        if request.method not in {"GET", "HEAD"}:
            _refuse(response, 405, "the live page is read with GET", "method_not_allowed", [(b"allow", b"GET, HEAD")])
        elif request.path == PAGE_PATH:
            self._give_page(request, response)
        elif request.path == EVENTS_PATH:
            await self._stream(request, response)
        else:
            _refuse(response, 404, f"there is no {request.path}; the live page is at {PAGE_PATH}", "not_found", [])

    def _give_page(self, request: Request, response: Response) -> None:
        if request.header(b"if-none-match") == self._tag:
            response.send(304, self._page_headers, b"")
        else:
            response.send(200, self._page_headers, self._page)

    async def _stream(self, request: Request, response: Response) -> None:
        if self._closed or len(self._watchers) >= MOST_WATCHERS:
            why = "this node is stopping" if self._closed else f"{MOST_WATCHERS} browsers watch already"
            _refuse(response, 503, why, "busy", [(b"retry-after", b"5")])
            return
        if request.method == "HEAD":
            response.send(200, EVENT_HEADERS, b"")
            return
        watcher = _Watcher()
        if self._latest is not None:
            watcher.offer(self._latest)
        self._watchers.add(watcher)
        try:
            response.start(200, EVENT_HEADERS)
            await response.write(self._words)
            while (event := await watcher.next()) is not None:
                await response.write(event)
            await response.write(BYE)
            response.end()
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """Let every stream end after what it still holds: the node is stopping."""
        self._closed = True
        for watcher in self._watchers:
            watcher.end()


def content_policy(page: bytes) -> bytes:
    """Say what the page may do: run its own script and style, by their hashes, and listen to this node; nothing else."""

    def hashes(tag: bytes) -> bytes:
        bodies = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        return b" ".join(b"'sha256-" + base64.b64encode(hashlib.sha256(body).digest()) + b"'" for body in bodies)

    return (
        b"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        b"script-src " + hashes(b"script") + b"; style-src " + hashes(b"style")
    )


def _refuse(response: Response, status: int, message: str, code: str, more: Headers) -> None:
    response.send(status, [(b"content-type", b"application/json"), *more], error_body(status, code, message))
